"""What one evaluation found and under which conventions: scores, the error of every layer, time, memory, calibration.

Units: accuracy in percent (top-1), errors in dB (higher is better) and as a share, sizes in bytes, time in seconds.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from qsearch import __version__
from qsearch.evaluate.base import Evaluator, evaluation_key, resolve_device
from qsearch.evaluate.conventions import conventions
from qsearch.evaluate.engine import Engine, Guarded
from qsearch.evaluate.measure import PhaseTimer, peak_memory_bytes
from qsearch.evaluate.ptq import FLOAT_BITS, tensor_bits
from qsearch.evaluate.target import Target
from qsearch.hardware import SizeRules, layer_size_bytes
from qsearch.models import describe_graph
from qsearch.quant.program import Plan
from qsearch.types import BitConfig, LayerShape


@runtime_checkable
class Inspectable(Protocol):
    """An evaluator that shows how it quantizes; what this adds to a report is left out for others."""

    @property
    def engine(self) -> Engine:
        """Runs its candidates."""

    def prepare(self, config: BitConfig) -> Guarded:
        """A candidate as it is scored."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a tensor is from what it is in the float network.

    Attributes:
        signal: Sum of squares of the float values.
        noise: Sum of squares of the differences.
    """

    signal: float
    noise: float

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise, ``10 log10(signal / noise)``; None where nothing differs, or all is zero."""
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 and self.noise > 0 else None

    @property
    def relative(self) -> float | None:
        """``sqrt(noise / signal)``; None where the float values are all zero."""
        return math.sqrt(self.noise / self.signal) if self.signal > 0 else None


def evaluation_report(
    evaluator: Evaluator,
    target: Target,
    config: BitConfig,
    splits: Sequence[str],
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Scores a configuration and reports everything that is known of it.

    Args:
        evaluator: Made of the target, with the options, seed and device that are given here.
        target: Network and data.
        config: The widths.
        splits: Where to score; at least one.
        options: Options of the evaluator.
        seed: Seed of the evaluation.
        device: torch device.

    Returns:
        JSON-ready:

        - ``fidelity``, ``version``, ``options``, ``seed``, ``quantizer`` (the section of a study file).
        - ``accuracy``: ``float`` (on the test split if that is scored), ``validation`` and ``test``, percent; null
          for a split that is not scored. ``scores`` and ``float_scores``: the same with counts and loss, by split.
        - ``layers``: ``name``, ``kind``, ``weight_bits``, ``activation_bits``, and of an :class:`Inspectable`
          ``weight_sqnr_db``, ``output_sqnr_db`` (null: nothing differs) and ``output_relative_error``. Weights are
          compared before the correction of statistics, outputs after it, on held-out calibration images.
        - ``tensors``: where the activation quantizers stand, and their widths (null: float).
        - ``mean_weight_bits``, ``mean_activation_bits``, ``size_bytes``.
        - ``seconds`` by phase, ``peak_memory_bytes`` up to the end of scoring.
        - ``calibration``: ``digest``, ``images``; of an :class:`Inspectable` ``held_out`` and ``ids``, the positions
          in the calibration split that were fitted on and held out, as ``[first, last + 1]``.
        - ``guard`` of an :class:`Inspectable`: ``logit_error`` against the float network on held-out images, the
          same ``uncorrected``, and whether the correction was ``kept`` (false where there is none).
        - ``notes``: what stays float, and why. ``digests``, ``environment``.
        - ``conventions``: ``name``, ``value`` and ``why`` of every convention in force.

    Raises:
        EvaluationError: The configuration cannot be scored, or there is no such split.
    """
    place = resolve_device(device)
    engine = evaluator.engine if isinstance(evaluator, Inspectable) else None
    timer = PhaseTimer(place)
    before = {} if engine is None else engine.timer.seconds
    with timer.phase("evaluate"):
        scores = {split: evaluator.evaluate(config, split) for split in splits}
    inside = {} if engine is None else _difference(engine.timer.seconds, before)
    peak = peak_memory_bytes(place)
    with timer.phase("float_forward"):
        exact = engine or Engine(target.to(place), place, correction_images=1, max_cache_bytes=0)
        float_scores = {split: exact.score(Plan(), split) for split in splits}
    with timer.phase("layer_errors"):
        layers, guard = _layers(evaluator, target, config)
    float_split = "test" if "test" in splits else splits[0]
    return {
        "fidelity": evaluator.name,
        "version": evaluator.version,
        "options": dict(options or {}),
        "seed": seed,
        "quantizer": target.quantizer.model_dump(mode="json"),
        "accuracy": {
            "float": float_scores[float_split].accuracy,
            **{split: scores[split].accuracy if split in scores else None for split in ("validation", "test")},
        },
        "scores": {split: score.to_json() for split, score in scores.items()},
        "float_scores": {split: score.to_json() for split, score in float_scores.items()},
        "layers": layers,
        "tensors": _tensors(target, config),
        "mean_weight_bits": config.mean_weight_bits(target.graph.layers),
        "mean_activation_bits": config.mean_activation_bits(target.graph.layers),
        "size_bytes": stored_bytes(target, config),
        "seconds": _seconds(timer.seconds, inside),
        "peak_memory_bytes": peak,
        "calibration": _calibration(target, engine),
        **({} if engine is None else {"guard": guard}),
        "notes": list(target.graph.notes),
        "digests": _digests(evaluator, target, config, splits, seed),
        "environment": {
            "qsearch": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "device": str(place),
        },
        "conventions": [
            {"name": row.name, "value": row.value, "why": row.why}
            for row in conventions(evaluator, target, config, float_split, seed, str(place), engine)
        ],
    }


def stored_bytes(target: Target, config: BitConfig) -> int:
    """Stored size of a network: layers at their widths, and 32 bits for every other parameter.

    A layer that is not quantized has 16 or 32 bits a weight and no scales.

    Args:
        target: The network and its quantizer.
        config: The widths.
    """
    rules = SizeRules.from_spec(target.quantizer)
    sizes = [
        _float_bytes(layer, bits) if bits in FLOAT_BITS else layer_size_bytes(layer, bits, rules)
        for layer, bits in zip(target.graph.layers, config.weights, strict=True)
    ]
    return sum(sizes) + 4 * target.graph.float_parameters


def _float_bytes(layer: LayerShape, bits: int) -> int:
    return layer.weight_count * bits // 8 + (4 * layer.out_channels if layer.has_bias else 0)


@torch.no_grad()
def weight_errors(target: Target, plan: Plan) -> dict[int, LayerError]:
    """Errors of the quantized weights, by layer index.

    Args:
        target: The network.
        plan: A candidate, on the device of the network.
    """
    found = {}
    for index, layer in plan.layers.items():
        exact = target.graph.layer_module(index).weight.double()
        weight = layer.weight.double()
        if layer.multiplier is not None:
            weight = weight * layer.multiplier.double().reshape(-1, *([1] * (weight.dim() - 1)))
        found[index] = LayerError(float(exact.square().sum()), float((weight - exact).square().sum()))
    return found


@torch.no_grad()
def output_errors(engine: Engine, plan: Plan) -> list[LayerError]:
    """Errors of every layer's output on held-out calibration images, those of earlier layers included.

    Both networks are run step by step beside each other, a chunk of images at a time, so no output is kept.

    Args:
        engine: Network and images.
        plan: A candidate.

    Returns:
        One for each layer.
    """
    program = engine.program
    sums = [[0.0, 0.0] for _ in engine.target.graph.layers]
    for images in torch.split(engine.holdout_images, engine.chunk):
        exact, actual = ([program.start(images.to(engine.device))] for _ in range(2))
        for index in range(len(program.steps)):
            seen = _Tap(), _Tap()
            program.advance(exact, Plan(), index, index + 1, seen[0])
            program.advance(actual, plan, index, index + 1, seen[1])
            for layer, reference in seen[0].outputs.items():
                sums[layer][0] += float(reference.double().square().sum())
                sums[layer][1] += float((seen[1].outputs[layer].double() - reference.double()).square().sum())
    return [LayerError(signal, noise) for signal, noise in sums]


class _Tap:
    """A layer hook that hands out what a layer returned."""

    def __init__(self) -> None:
        self.outputs: dict[int, torch.Tensor] = {}

    def __call__(self, layer: int, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        (self.outputs[layer],) = outputs
        return outputs


def _layers(
    evaluator: Evaluator, target: Target, config: BitConfig
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The table of layers, and what the guard decided."""
    rows = [
        {"name": row["name"], "kind": row["kind"], "weight_bits": w, "activation_bits": a}
        for row, w, a in zip(describe_graph(target.graph)["layers"], config.weights, config.activations, strict=True)
    ]
    if not isinstance(evaluator, Inspectable):
        return rows, None
    prepared = evaluator.prepare(config)
    weights = weight_errors(evaluator.engine.target, prepared.bare)
    for index, (row, output) in enumerate(zip(rows, output_errors(evaluator.engine, prepared.plan), strict=True)):
        row["weight_sqnr_db"] = weights[index].sqnr_db if index in weights else None
        row["output_sqnr_db"] = output.sqnr_db
        row["output_relative_error"] = output.relative
    guard = {
        "logit_error": prepared.error,
        "uncorrected": prepared.uncorrected,
        "kept": prepared.kept,
        "weights": prepared.weights,
    }
    return rows, guard


def _tensors(target: Target, config: BitConfig) -> list[dict[str, Any]]:
    bits = tensor_bits(target, config)
    return [
        {
            "index": tensor.index,
            "node": tensor.node,
            "unsigned": tensor.unsigned,
            "group": tensor.group,
            "bits": None if bits.get(tensor.index, 32) in FLOAT_BITS else bits[tensor.index],
        }
        for tensor in target.graph.tensors
    ]


def _difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}


def _seconds(outside: Mapping[str, float], inside: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase: those of the evaluator in the place of the whole, with what they leave over as ``other``."""
    rest = {name: seconds for name, seconds in outside.items() if name != "evaluate"}
    if not inside:
        return {"evaluate": outside["evaluate"], **rest}
    return {**inside, "other": max(0.0, outside["evaluate"] - sum(inside.values())), **rest}


def _calibration(target: Target, engine: Engine | None) -> dict[str, Any]:
    split = target.splits["calibration"]
    found: dict[str, Any] = {"digest": split.digest, "images": len(split)}
    if engine is not None:
        held_out = len(engine.holdout_images)
        found["held_out"] = held_out
        found["ids"] = {"fit": [0, len(engine.fit_images)], "held_out": [len(split) - held_out, len(split)]}
    return found


def _digests(
    evaluator: Evaluator, target: Target, config: BitConfig, splits: Sequence[str], seed: int
) -> dict[str, Any]:
    keys = {split: evaluation_key(evaluator, target, config, split, seed) for split in splits}
    return {
        "model": target.graph.digest,
        "data": {name: split.digest for name, split in target.splits.items()},
        "quantizer": next(iter(keys.values())).quantizer,
        "keys": {split: key.digest for split, key in keys.items()},
    }
