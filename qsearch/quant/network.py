"""A network whose bits can be switched: a quantizer stands at every activation tensor, weights are swapped in."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import fx, nn

from qsearch.models import QuantGraph, Unit
from qsearch.models.portable import make_parent
from qsearch.quant.grids import ActivationGrid


class ActivationQuantizer(nn.Module):
    """Quantizes what passes through it, or passes it on while no grid is set."""

    grid: ActivationGrid | None = None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Maps a tensor of any shape to the same shape."""
        return values if self.grid is None else self.grid.quantize(values)

    def extra_repr(self) -> str:
        """The grid, for printing."""
        return str(self.grid)


def quantizer_name(tensor: int) -> str:
    """Module name of the quantizer of activation tensor ``tensor``."""
    return f"activation_quantizer_{tensor}"


def _insert(module: fx.GraphModule, node: fx.Node, tensor: int) -> None:
    """Makes every reader of ``node`` read its quantized value instead."""
    name = quantizer_name(tensor)
    module.add_submodule(name, ActivationQuantizer())
    with module.graph.inserting_after(node):
        quantized = module.graph.call_module(name, (node,))
    node.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)


class QuantizedNetwork:
    """The folded network with a quantizer at every activation tensor.

    Args:
        graph: The network; it is copied.
        device: Where to compute.
    """

    def __init__(self, graph: QuantGraph, device: torch.device) -> None:
        self.graph = graph
        self.module = copy.deepcopy(graph.module)
        nodes = {node.name: node for node in self.module.graph.nodes}
        for tensor in graph.tensors:
            _insert(self.module, nodes[tensor.node], tensor.index)
        self.module.graph.lint()
        self.module.recompile()
        self.module.to(device).eval().requires_grad_(False)
        self._float = {layer.name: self._layer(layer.name).weight for layer in graph.layers}

    def _layer(self, name: str) -> nn.Conv2d | nn.Linear:
        module = self.module.get_submodule(name)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise TypeError(f"{name} is a {type(module).__name__}")
        return module

    def configure(self, weights: Mapping[int, torch.Tensor], grids: Mapping[int, ActivationGrid]) -> None:
        """Installs weights and activation grids; what is not named goes back to float.

        Args:
            weights: Weight tensor by layer index; swapped in by reference, not copied.
            grids: Grid by activation-tensor index.
        """
        for index, layer in enumerate(self.graph.layers):
            weight = weights.get(index)
            self._layer(layer.name).weight = (
                self._float[layer.name] if weight is None else nn.Parameter(weight, requires_grad=False)
            )
        for tensor in self.graph.tensors:
            quantizer = self.module.get_submodule(quantizer_name(tensor.index))
            quantizer.grid = grids.get(tensor.index)  # type: ignore[assignment]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, classes]`` of images ``[n, channels, height, width]``."""
        logits: torch.Tensor = self.module(images)
        return logits


def extract_unit(graph: QuantGraph, unit: Unit) -> tuple[fx.GraphModule, tuple[int, ...]]:
    """Cuts one reconstruction unit out of the network, with activation quantizers at its entry and inside.

    The quantizer of the exit belongs to whoever reads it.

    Returns:
        A module from entry value to exit value (its layers are copies), and the indices of the activation tensors
        it quantizes.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes}
    tensor_of = {tensor.node: tensor.index for tensor in graph.tensors}
    new = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    inside: list[int] = []

    def quantize(node: fx.Node, tensor: int) -> fx.Node:
        inside.append(tensor)
        return new.call_module(quantizer_name(tensor), (node,))

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in mapping:  # also a parameter, or what is computed from parameters alone, wherever it stands
            mapping[node] = new.node_copy(node, copy_of)
        return mapping[node]

    value = new.placeholder("entry")
    # Between the tensor and the entry lie only grid-preserving operations, so quantizing after them is the same.
    mapping[nodes[unit.entry]] = value if unit.entry_tensor is None else quantize(value, unit.entry_tensor)
    for name in unit.nodes:
        result = copy_of(nodes[name])
        if name in tensor_of and name != unit.exit:
            mapping[nodes[name]] = quantize(result, tensor_of[name])
    new.output(mapping[nodes[unit.exit]])

    root = nn.Module()
    for name in {str(node.target) for node in new.nodes if node.op == "call_module"}:
        is_quantizer = name.startswith("activation_quantizer_")
        child = ActivationQuantizer() if is_quantizer else copy.deepcopy(graph.module.get_submodule(name))
        _add_submodule(root, name, child)
    for name in {str(node.target) for node in new.nodes if node.op == "get_attr"}:
        _add_parameter(root, name, graph.module)
    return fx.GraphModule(root, new).eval().requires_grad_(False), tuple(inside)


def _add_submodule(root: nn.Module, name: str, child: nn.Module) -> None:
    parent, leaf = make_parent(root, name)
    parent.add_module(leaf, child)


def _add_parameter(root: nn.Module, name: str, source: nn.Module) -> None:
    parent, leaf = make_parent(root, name)
    owner, attribute = make_parent(source, name)
    setattr(parent, leaf, copy.deepcopy(getattr(owner, attribute)))


class Recorder(fx.Interpreter):
    """Runs the float network and keeps the values of some nodes."""

    def __init__(self, graph: QuantGraph, names: Iterable[str]) -> None:
        super().__init__(graph.module)
        self._names = frozenset(names)
        self.values: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        """Runs one node; keeps its value when asked to."""
        result = super().run_node(n)
        if n.name in self._names and isinstance(result, torch.Tensor):
            if result.requires_grad:
                result.retain_grad()
            self.values[n.name] = result
        return result
