"""Scoring one configuration outside a study: an exported one as it was scored then, or any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from qsearch.errors import DataError, EvaluationError, ModelError
from qsearch.evaluate import Evaluator, Target, build_target, evaluation_key, make_evaluator
from qsearch.evaluate.measure import PhaseTimer
from qsearch.evaluate.ptq import FLOAT_BITS
from qsearch.evaluate.report import evaluation_report
from qsearch.models import QuantGraph
from qsearch.spec import DataSpec, ModelSpec, PinSpec, QuantizerSpec
from qsearch.types import BitConfig, LayerShape


class RecordedEvaluation(Protocol):
    """How a configuration was scored."""

    @property
    def fidelity(self) -> str:
        """Registered name of the evaluator."""

    @property
    def version(self) -> int:
        """Version of its numerics."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Its options."""

    @property
    def seed(self) -> int:
        """Seed of the evaluation."""

    @property
    def threads(self) -> int:
        """Threads of torch."""

    @property
    def device(self) -> str:
        """Device of torch."""

    @property
    def keys(self) -> Mapping[str, str]:
        """Evaluation key by split."""


class RecordedDigests(Protocol):
    """What a configuration was found for."""

    @property
    def model(self) -> str:
        """Digest of the folded network."""

    @property
    def data(self) -> Mapping[str, str]:
        """Digest of every split."""

    @property
    def quantizer(self) -> str:
        """Digest of the evaluator's settings."""


class Recorded(Protocol):
    """A configuration with its scores, such as :class:`qsearch.export.Configuration`."""

    @property
    def model(self) -> ModelSpec:
        """The network."""

    @property
    def data(self) -> DataSpec:
        """The images."""

    @property
    def quantizer(self) -> QuantizerSpec:
        """How the network is quantized."""

    @property
    def accuracy(self) -> Mapping[str, float]:
        """Top-1 by split, percent."""

    @property
    def evaluation(self) -> RecordedEvaluation:
        """How it was scored."""

    @property
    def digests(self) -> RecordedDigests:
        """What it was found for."""

    def to_bit_config(self, layers: Sequence[LayerShape]) -> BitConfig:
        """The widths in the layer order of a network."""


def reproduce(configuration: Recorded) -> dict[str, tuple[float, float]]:
    """Scores a configuration again, in the way it was scored then.

    Args:
        configuration: With its recorded accuracies.

    Returns:
        Recorded and measured top-1 accuracy by split, percent. They are equal on the kind of machine, and with the
        version of torch, of then.

    Raises:
        ModelError: The network is another one.
        DataError: The images are other ones.
        EvaluationError: The evaluator or its settings are other ones.
        QSearchError: Network or data cannot be loaded, or the configuration does not fit the network.
    """
    recorded, digests = configuration.evaluation, configuration.digests
    with _threads(recorded.threads):
        target = build_target(configuration.model, configuration.data, configuration.quantizer)
        config = configuration.to_bit_config(target.graph.layers)
        if target.graph.digest != digests.model:
            raise ModelError(
                f"{configuration.model.source}: the network is not the one that the configuration was found for "
                f"(digest {target.graph.digest[:12]}, then {digests.model[:12]})",
                "bring back the weights of then; a network that is trained on the spot differs between machines",
            )
        for name, split in target.splits.items():
            known = digests.data.get(name, "none")
            if split.digest != known:
                raise DataError(
                    f"{configuration.data.source}: the {name} images are not those of then "
                    f"(digest {split.digest[:12]}, then {known[:12]})",
                    "bring back the data and the data factory of then",
                )
        evaluator = make_evaluator(recorded.fidelity, target, recorded.options, recorded.device, recorded.seed)
        _check_evaluator(evaluator, target, config, configuration)
        return {
            split: (accuracy, evaluator.evaluate(config, split).accuracy)
            for split, accuracy in configuration.accuracy.items()
        }


def _check_evaluator(evaluator: Evaluator, target: Target, config: BitConfig, configuration: Recorded) -> None:
    recorded = configuration.evaluation
    if evaluator.version != recorded.version:
        raise EvaluationError(
            f"evaluator {recorded.fidelity!r} has version {evaluator.version}, the accuracies are from version "
            f"{recorded.version}",
            "use the version of qsearch that the configuration names",
        )
    for split, known in recorded.keys.items():
        key = evaluation_key(evaluator, target, config, split, recorded.seed)
        if key.quantizer != configuration.digests.quantizer:
            raise EvaluationError(
                f"the settings of evaluator {recorded.fidelity!r} are not those of then",
                "compare `evaluation.settings` of the file; batch size and options count, too",
            )
        if key.digest != known:
            raise EvaluationError(
                f"the key of the evaluation on {split} is not the recorded one",
                "the file was changed: export the configuration again with `qsearch export`",
            )


def measure(
    model: ModelSpec,
    data: DataSpec,
    choose: Callable[[QuantGraph], BitConfig],
    splits: Sequence[str],
    *,
    quantizer: QuantizerSpec | None = None,
    fidelity: str = "ptq",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    threads: int = 1,
    device: str = "cpu",
) -> dict[str, Any]:
    """Scores any configuration of any network on any data, and reports all that decides the score.

    Args:
        model: The network.
        data: The images.
        choose: Gives the widths, once the network is known.
        splits: Where to score it; at least one.
        quantizer: How the network is quantized; the defaults of a study file when left out.
        fidelity: Registered name of the evaluator.
        options: Its options.
        seed: Seed of the evaluation.
        threads: torch threads.
        device: torch device.

    Returns:
        The report of :func:`qsearch.evaluate.report.evaluation_report`, JSON-ready, with ``model`` and ``data`` as in
        a study file, the name under which the ``fidelity`` was asked for, and ``load`` and ``total`` among the
        ``seconds``.

    Raises:
        QSearchError: Network or data cannot be loaded, an option is wrong, or the configuration does not fit.
    """
    options = options or {}
    timer = PhaseTimer()
    with _threads(threads):
        with timer.phase("load"):
            target = build_target(model, data, quantizer)
            evaluator = make_evaluator(fidelity, target, options, device, seed)
            config = choose(target.graph)
        report = evaluation_report(evaluator, target, config, splits, options=options, seed=seed, device=device)
    seconds = {**timer.seconds, **report["seconds"]}
    return {
        "model": model.model_dump(mode="json"),
        "data": data.model_dump(mode="json"),
        **report,
        "fidelity": fidelity,
        "seconds": {**seconds, "total": sum(seconds.values())},
    }


def uniform_config(graph: QuantGraph, weights: int, activations: int, pin: PinSpec) -> BitConfig:
    """Returns one width for all weights and one for all activations, but for the pinned layers.

    A pin also holds for the layers whose input is tied to that of the pinned one. It does not quantize what is to stay
    float.

    Args:
        graph: The network.
        weights: Width of the weights, bits; 16 or 32 for float.
        activations: Width of the activations, bits; 16 or 32 for float.
        pin: Widths of the first and last layer.
    """
    w, a = [weights] * len(graph.layers), [activations] * len(graph.layers)
    groups = [graph.tensors[layer.tensor].group for layer in graph.layers]
    for index, layer_pin in ((0, pin.first), (len(graph.layers) - 1, pin.last)):
        if layer_pin is None:
            continue
        if weights not in FLOAT_BITS:
            w[index] = layer_pin.weights
        if activations not in FLOAT_BITS:
            a = [layer_pin.activations if group == groups[index] else b for group, b in zip(groups, a, strict=True)]
    return BitConfig(tuple(w), tuple(a))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sets the number of torch threads, which is part of what makes a result repeat exactly."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
