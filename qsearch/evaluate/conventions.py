"""Every convention in force, in words: choices that change an accuracy as much as the algorithm does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from qsearch.evaluate.base import Evaluator
from qsearch.evaluate.engine import Engine
from qsearch.evaluate.ptq import FLOAT_BITS, tensor_bits
from qsearch.evaluate.target import Target
from qsearch.spec import ActivationQuantizerSpec, QuantizerSpec, WeightQuantizerSpec
from qsearch.types import BitConfig


@dataclass(frozen=True, slots=True)
class Convention:
    """One convention.

    Attributes:
        name: What it is about.
        value: What is done.
        why: The reason, or what it changes.
    """

    name: str
    value: str
    why: str


_ADD: Final[Mapping[str, str]] = {
    "after_relu": "the sum is quantized, once, where a layer reads it; the summands are not",
    "both_inputs": "both summands are quantized to one width before they are added",
}

_WEIGHT_GRIDS: Final[Mapping[str, str]] = {
    "symmetric": "symmetric, full two's-complement range (2 bits: -2 to 1)",
    "narrow": "symmetric without the most negative code (2 bits: -1 to 1)",
    "affine": "unsigned codes and a whole zero point",
    "codebook": "k-means centroids, one codebook a layer",
}

_ACTIVATION_GRIDS: Final[Mapping[str, str]] = {
    "auto": "unsigned codes; with a zero point where a tensor can be negative",
    "symmetric": "unsigned codes; signed ones without a zero point where a tensor can be negative",
}

_RANGES: Final[Mapping[str, str]] = {
    "min_max": "the extremes",
    "ema": "moving average of the extremes of batches, momentum {momentum:g}",
    "percentile": "{percentile:g} % of the values are not clipped",
    "mse": "searched: least |error| ** {norm:g}",
    "kl": "searched: least KL divergence of the histograms",
    "aciq": "closed form for a normal or Laplace distribution (ACIQ)",
}

_ROUNDINGS: Final[Mapping[str, str]] = {
    "gptq": "closed form with Hessians of the calibration images (GPTQ)",
    "nearest": "to the nearest code",
}

#: Settings of the built-in evaluators whose value says enough: name, and why.
_PLAIN: Final[Mapping[str, tuple[str, str]]] = {
    "bias": ("bias", "added to the accumulator after its scale; few numbers"),
    "logits": ("logits", "they are compared, not computed with; clipping them would change the winner"),
    "accumulator": (
        "accumulator",
        "codes are multiplied and summed as integers do, so the order of sums cannot matter",
    ),
    "precision": ("arithmetic", "of what is not done in integers"),
    "preset": ("reconstruction", "sets the hyper-parameters that are not given"),
    "iterations": ("iterations", "steps a unit"),
    "lr": ("learning rate", "of the rounding variables; iterations times this should be 5 or more"),
    "round_weight": ("rounding penalty", "weight of the penalty that makes the rounding hard"),
    "activation_lr": ("activation learning rate", "of activation steps; 0 leaves them as calibrated"),
    "sequential": ("sequential", "true: a unit sees what the quantized units before it hand on; false: float inputs"),
    "warm_start": ("warm start", "true: begins at the closed-form rounding; false: at the float weights"),
    "drop_prob": ("activation dropping", "probability that an element is quantized while learning (QDrop: 0.5)"),
    "fisher": ("loss of a unit", "none: squared error; else weighted by the Fisher diagonal"),
    "warm_up": ("warm-up", "share of the steps without rounding penalty"),
    "batch_size": ("reconstruction batch", "calibration images a step"),
    "check_every": ("early stopping", "steps between checks of the held-out loss; 0 for none before the end"),
    "patience": ("patience", "checks without improvement after which a unit is done; 0: never stops early"),
    "fisher_samples": ("Fisher samples", "labels drawn for each image"),
    "fisher_floor": ("Fisher floor", "least weight of an element"),
}

#: Settings that rows of their own stand for, or that other parts of a report show.
_TOLD: Final = frozenset(
    {
        *("weights", "activations", "rounding", "correction", "correction_images", "batch_norm", "equalized"),
        *("input_image", "16_and_32_bits", "chunk", "tensors", "layers", "units"),
    }
)


def conventions(
    evaluator: Evaluator,
    target: Target,
    config: BitConfig,
    float_split: str,
    seed: int,
    device: str,
    engine: Engine | None,
) -> list[Convention]:
    """Lists every convention in force.

    Args:
        evaluator: Scores the configuration.
        target: Network, data and quantizer.
        config: The widths.
        float_split: Split of the float accuracy.
        seed: Seed of the evaluation.
        device: torch device.
        engine: Of an evaluator of this package; None for others, of which only the settings are known.
    """
    settings = evaluator.settings()
    rows = [*_of_network(target, config)]
    if engine is None:
        told: frozenset[str] = frozenset()
    else:
        told = _TOLD
        rows += _of_quantizer(target, config, settings, engine)
    rows += [_setting(evaluator.name, name, value, engine) for name, value in settings.items() if name not in told]
    rows += _of_measurement(target, float_split, seed, device, engine)
    return rows


def _setting(evaluator: str, name: str, value: Any, engine: Engine | None) -> Convention:
    text = value if isinstance(value, str) else json.dumps(value)
    shown, why = _PLAIN.get(name, (name, "")) if engine is not None else (name, "")
    return Convention(shown, text, why or f"setting of evaluator {evaluator}")


def _of_network(target: Target, config: BitConfig) -> Iterator[Convention]:
    """What holds whatever the evaluator does."""
    graph, quantizer = target.graph, target.quantizer
    for name, index in (("first layer", 0), ("last layer", -1)):
        yield Convention(
            name,
            f"{graph.layers[index].name}: {_width(config.weights[index])} weights, "
            f"{_width(config.activations[index])} inputs",
            "few weights and a large error: usually kept at 8 bits",
        )
    yield Convention(
        "batch norm",
        "folded, with running statistics, into the layer before it; float where there is none",
        "costs nothing when deployed",
    )
    yield Convention(
        "residual additions",
        f"{quantizer.add_policy}: {_ADD[quantizer.add_policy]}",
        "decides points at low widths; some adders need both inputs on a grid",
    )
    tied = len(graph.tensors) - len({tensor.group for tensor in graph.tensors})
    yield Convention(
        "quantizers",
        f"{len(graph.tensors)} activation tensors, one quantizer each"
        + (f"; {tied} take the width of another" if tied else ""),
        "a tensor has one quantizer however many layers read it; pooling, reshaping and ReLU keep its grid; tensors "
        "that are added or concatenated have one width",
    )
    yield Convention(
        "what stays float",
        f"{graph.float_parameters} parameters" if graph.float_parameters else "no parameter",
        f"{len(graph.notes)} notes say why" if graph.notes else "every parameter is of a layer that is quantized",
    )
    yield Convention(
        "equalization",
        "ranges of consecutive layers are equalized" if quantizer.equalize else "none",
        "evens out channels before they are quantized; changes nothing in the float network",
    )
    units = quantizer.units if isinstance(quantizer.units, str) else ", ".join(quantizer.units)
    yield Convention("units", f"{units}: {len(graph.units)} reconstruction units", "what reconstruction treats as one")
    yield Convention("size", _size(quantizer), "weights are packed without gaps inside a layer")


def _of_quantizer(
    target: Target, config: BitConfig, settings: Mapping[str, Any], engine: Engine
) -> Iterator[Convention]:
    """What the evaluators of this package do."""
    quantizer = target.quantizer
    yield Convention(
        "input image", _image(target, config), "pixels have 8 bits anyway; normalised ones can be negative"
    )
    yield from _weight_rows(quantizer.weights, str(settings["rounding"]))
    yield from _activation_rows(quantizer.activations)
    yield Convention("16 and 32 bits", "not quantized", "computed in float32; 16 only halves the size of weights")
    yield Convention(
        "correction",
        _correction(quantizer, settings, engine),
        "quantized weights shift and shrink what a layer returns; integer codes stay",
    )
    yield Convention(
        "guard",
        f"held-out calibration images ({len(engine.holdout_images)}) decide whether the correction is kept, "
        "and what was reconstructed",
        "least error of the logits on held-out calibration images; no labels are used",
    )
    yield Convention("chunk", f"{engine.chunk} images run at a time", "fits the processor's cache")


def _weight_rows(weights: WeightQuantizerSpec, rounding: str) -> Iterator[Convention]:
    yield Convention("weight grid", _WEIGHT_GRIDS[weights.grid], "the values that a width offers")
    if weights.grid == "codebook":
        yield Convention("weight rounding", _ROUNDINGS[rounding], "onto the centroids")
        return
    yield Convention("1-bit weights", "-a and +a, without a zero", "other grids have no useful code at 1 bit")
    per = {"tensor": "one a layer", "channel": "one an output channel", "group": f"one for {weights.group_size} inputs"}
    kinds = ["powers of two"] if weights.power_of_two else []
    if weights.grid == "symmetric":
        kinds.append("some negative" if weights.negative_scales else "all positive")
    yield Convention(
        "weight scales",
        ", ".join([per[weights.granularity], *kinds]),
        "a negative one lets codes reach one step further up than down"
        if "some negative" in kinds
        else "the finer, the smaller the error and the more is stored",
    )
    yield Convention("weight range", _range(weights), "how the scale is found")
    yield Convention("weight rounding", _ROUNDINGS[rounding], "before any reconstruction")


def _activation_rows(activations: ActivationQuantizerSpec) -> Iterator[Convention]:
    yield Convention("activation grid", _ACTIVATION_GRIDS[activations.grid], "the graph, not the data, shows the sign")
    yield Convention(
        "activation scales",
        f"one a tensor{', powers of two' if activations.power_of_two else ''}",
        "static: calibrated",
    )
    yield Convention("activation range", _range(activations), "found anew for every width")


def _of_measurement(
    target: Target, float_split: str, seed: int, device: str, engine: Engine | None
) -> Iterator[Convention]:
    split = target.splits["calibration"]
    halves = ""
    if engine is not None:
        halves = f": {len(engine.fit_images)} to fit on, {len(engine.holdout_images)} held out"
    yield Convention("calibration images", f"{len(split)}{halves}", "labels are not used")
    yield Convention(
        "calibration transform",
        "none: images as the data source gives them",
        "augmented crops are calibrated otherwise",
    )
    yield Convention("float accuracy", f"float32 network on the {float_split} split", "what `accuracy.float` refers to")
    yield Convention("accuracy", "top-1, percent", "every image counts once")
    yield Convention("seed", str(seed), "of everything random in the evaluation")
    yield Convention("batch size", str(target.batch_size), "bounds the images of a forward pass")
    yield Convention("threads", str(torch.get_num_threads()), "sums in another order may flip a rounding")
    yield Convention("device", device, "another one may round otherwise")
    yield Convention("torch", torch.__version__, "another version may round otherwise")


def _width(bits: int) -> str:
    return "float" if bits in FLOAT_BITS else f"{bits}-bit"


def _range(scheme: WeightQuantizerSpec | ActivationQuantizerSpec) -> str:
    return f"{scheme.range}: {_RANGES[scheme.range].format(**scheme.model_dump())}"


def _image(target: Target, config: BitConfig) -> str:
    inputs = {node.name for node in target.graph.module.graph.nodes if node.op == "placeholder"}
    bits = tensor_bits(target, config)
    for tensor in target.graph.tensors:
        if tensor.node in inputs:
            width = bits.get(tensor.index, FLOAT_BITS[0])
            return "not quantized" if width in FLOAT_BITS else f"quantized like any tensor, to {width} bits"
    return "not quantized: no layer reads it directly"


def _correction(quantizer: QuantizerSpec, settings: Mapping[str, Any], engine: Engine) -> str:
    kind, images = settings["correction"], min(int(settings["correction_images"]), len(engine.fit_images))
    if kind == "none":
        return "none"
    deviation = kind == "mean_std" and not quantizer.weights.power_of_two
    what = "mean and deviation" if deviation else "mean"
    return f"{what} of every channel of every layer, back to the float network's on {images} calibration images"


def _size(quantizer: QuantizerSpec) -> str:
    weights = quantizer.weights
    if weights.grid == "codebook":
        beside = "32-bit codebook values"
    else:
        scale = 8 if weights.power_of_two else 32
        beside = f"{scale}-bit scales{', 8-bit zero points' if weights.grid == 'affine' else ''}"
    return f"packed weights, {beside}, 32-bit biases; 32 bits for other parameters"
