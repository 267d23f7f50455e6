"""Targets with random networks and noise for images, for the tests of this room."""

from __future__ import annotations

import nets
import torch
from quantized import make

from qsearch.data import Split
from qsearch.evaluate import Target
from qsearch.models import QuantGraph
from qsearch.spec import QuantizerSpec
from qsearch.types import BitConfig


def noise_target(
    name: str,
    policy: str = "after_relu",
    calibration: int = 32,
    scored: int = 20,
    quantizer: QuantizerSpec | None = None,
) -> Target:
    """A network of :mod:`quantized` with noise as data; labels are its own predictions."""
    graph, x = make(name, policy)
    size = x.shape[-1]
    splits = {}
    with torch.no_grad():
        for seed, (split, count) in enumerate((("calibration", calibration), ("validation", scored), ("test", scored))):
            images = nets.images(count, size=size, seed=seed + 10)
            splits[split] = Split(split, images, graph.module(images).argmax(1))
    return Target(graph, splits, 8, quantizer or QuantizerSpec(add_policy=policy))


def config_of(graph: QuantGraph, weights: list[int], activations: list[int]) -> BitConfig:
    """Cycles through widths of layers, and of tie groups."""
    groups = [graph.tensors[layer.tensor].group for layer in graph.layers]
    return BitConfig(
        tuple(weights[i % len(weights)] for i in range(len(graph.layers))),
        tuple(activations[group % len(activations)] for group in groups),
    )
