"""Reconstruction units cut out of a network, with a quantizer at every activation tensor."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from qsearch.models import QuantGraph, Unit
from qsearch.models.portable import make_parent
from qsearch.quant.grids import ActivationGrid


class ActivationQuantizer(nn.Module):
    """Quantizes what passes through it, or passes it on while no grid is set.

    Attributes:
        grid: Set from outside.
    """

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
            if node.op == "call_method" and node.target == "view" and "shape" in node.meta:
                mapping[node].target = "reshape"  # maps may have their channels last, which `view` cannot flatten
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
