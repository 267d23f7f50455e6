"""Fidelity ``ptq``: nearest rounding on scales with the least squared error; milliseconds a candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qsearch.data import Split
from qsearch.errors import EvaluationError, nearest
from qsearch.evaluate.base import make_exact, read_options
from qsearch.evaluate.scoring import score
from qsearch.evaluate.target import Target
from qsearch.quant import (
    ActivationGrid,
    QuantizedNetwork,
    WeightGrid,
    sample_activations,
    search_activation_grid,
    search_weight_grid,
)
from qsearch.types import BitConfig, Score


@dataclass(frozen=True, slots=True)
class PTQOptions:
    """Options of ``fidelities.ptq``: none yet; the conventions are those of :meth:`PTQEvaluator.settings`."""


class PTQEvaluator:
    """Post-training quantization by nearest rounding.

    Weights: per output channel, symmetric, scale by squared-error search. Activations: per tensor, unsigned where the
    graph shows that they cannot be negative, else affine, range by squared-error search on the calibration images.
    Batch norms are folded before. Every (layer, bits) is quantized once and kept.

    Args:
        target: Network and data.
        options: ``fidelities.ptq`` of the study file.
        device: Where to compute.
        seed: Not used: nothing is random.
    """

    name = "ptq"
    version = 1

    def __init__(self, target: Target, options: Mapping[str, Any], device: torch.device, seed: int) -> None:
        self.options = read_options(self.options_type(), options, f"fidelities.{self.name}")
        make_exact(device)
        self.target = target.to(device)
        self.device = device
        self.seed = seed
        self._network: QuantizedNetwork | None = None
        self._samples: list[torch.Tensor] | None = None
        self._weights: dict[tuple[int, int], torch.Tensor] = {}
        self._weight_grids: dict[tuple[int, int], WeightGrid] = {}
        self._grids: dict[tuple[int, int], ActivationGrid] = {}

    @classmethod
    def options_type(cls) -> type[Any]:
        """Dataclass of the options."""
        return PTQOptions

    def settings(self) -> dict[str, Any]:
        """Conventions in force."""
        graph = self.target.graph
        return {
            "weights": "per-channel symmetric full range, MSE scale; 1 bit: mid-rise, mean magnitude",
            "activations": "per-tensor, unsigned from the graph or affine, MSE range",
            "rounding": "nearest",
            "bias": "float32",
            "batch_norm": "folded",
            "input_image": "quantized like any tensor",
            "logits": "not quantized",
            # The digest of the network does not know where quantizers stand.
            "tensors": [[t.node, "unsigned" if t.unsigned else "affine", t.group] for t in graph.tensors],
            "layers": [[layer.name, layer.tensor] for layer in graph.layers],
        }

    def evaluate(self, config: BitConfig, split: str) -> Score:
        """Scores one configuration; see :class:`qsearch.evaluate.base.Evaluator`."""
        self.split(split)  # before anything is quantized for nothing
        return self._score(self.weights(config), self.activation_grids(config), split)

    def evaluate_float(self, split: str) -> Score:
        """Scores the float network on a split.

        Raises:
            EvaluationError: There is no such split, or the logits are not finite.
        """
        return self._score({}, {}, split)

    def _score(self, weights: Mapping[int, torch.Tensor], grids: Mapping[int, ActivationGrid], split: str) -> Score:
        network = self.network()
        network.configure(weights, grids)
        return score(network, self.split(split), self.target.batch_size, self.device)

    def split(self, name: str) -> Split:
        """A split by name.

        Raises:
            EvaluationError: There is none of that name.
        """
        if name not in self.target.splits:
            raise EvaluationError(f"there is no split {name!r}", nearest(name, self.target.splits))
        return self.target.splits[name]

    def network(self) -> QuantizedNetwork:
        """The network with its quantizers, built once."""
        if self._network is None:
            self._network = QuantizedNetwork(self.target.graph, self.device)
        return self._network

    def float_weight(self, layer: int) -> torch.Tensor:
        """Folded float weight of a layer, on the device."""
        return self.target.graph.layer_module(layer).weight.detach().to(self.device)

    def weight_grid(self, layer: int, bits: int) -> WeightGrid:
        """Grid of a layer's weights at a width, searched once."""
        if (layer, bits) not in self._weight_grids:
            if not 1 <= bits <= 8:
                raise EvaluationError(
                    f"layer {self.target.graph.layers[layer].name!r}: {bits}-bit weights are not evaluated",
                    "widths from 1 to 8 bits are",
                )
            self._weight_grids[layer, bits] = search_weight_grid(self.float_weight(layer), bits)
        return self._weight_grids[layer, bits]

    def weights(self, config: BitConfig) -> dict[int, torch.Tensor]:
        """Quantized weights of every layer of a configuration, by layer index."""
        if len(config.weights) != len(self.target.graph.layers):
            raise EvaluationError(
                f"the configuration has {len(config.weights)} layers, the network {len(self.target.graph.layers)}",
                "was it made for this network?",
            )
        for layer, bits in enumerate(config.weights):
            if (layer, bits) not in self._weights:
                self._weights[layer, bits] = self.weight_grid(layer, bits).quantize(self.float_weight(layer))
        return {layer: self._weights[layer, bits] for layer, bits in enumerate(config.weights)}

    def activation_grid(self, tensor: int, bits: int) -> ActivationGrid:
        """Grid of an activation tensor at a width, searched once."""
        if (tensor, bits) not in self._grids:
            if not 1 <= bits <= 8:
                raise EvaluationError(f"{bits}-bit activations are not evaluated", "widths from 1 to 8 bits are")
            if self._samples is None:
                images = self.target.splits["calibration"].images.to(self.device)
                self._samples = sample_activations(self.target.graph, images, self.target.batch_size)
            unsigned = self.target.graph.tensors[tensor].unsigned
            self._grids[tensor, bits] = search_activation_grid(self._samples[tensor], bits, unsigned)
        return self._grids[tensor, bits]

    def activation_grids(self, config: BitConfig) -> dict[int, ActivationGrid]:
        """Grid of every activation tensor of a configuration, by tensor index."""
        return {t: self.activation_grid(t, bits) for t, bits in tensor_bits(self.target, config).items()}


def tensor_bits(target: Target, config: BitConfig) -> dict[int, int]:
    """Width of every activation tensor: tensors that no layer reads take the width of their tie group.

    Raises:
        EvaluationError: Layers of one tie group disagree.
    """
    graph = target.graph
    of_group: dict[int, tuple[int, str]] = {}
    for layer, bits in zip(graph.layers, config.activations, strict=True):
        group = graph.tensors[layer.tensor].group
        first_bits, first_name = of_group.setdefault(group, (bits, layer.name))
        if first_bits != bits:
            raise EvaluationError(
                f"layers {first_name!r} and {layer.name!r} share an activation width, but have {first_bits} and {bits}",
                "they read one tensor, or tensors tied through a residual add",
            )
    return {t.index: of_group[t.group][0] for t in graph.tensors if t.group in of_group}
