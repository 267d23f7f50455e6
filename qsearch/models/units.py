"""Reconstruction units: single-entry single-exit regions around residual adds, and single layers for the rest.

A residual unit is the region between the closest common dominator of the two summands and the add, together with the
non-linearity that follows (BRECQ, Li et al. 2021, calls it a block). Where regions overlap, the smaller one wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
from torch import fx

from qsearch.models.ops import Ops


@dataclass(frozen=True, slots=True)
class Unit:
    """One reconstruction unit.

    Attributes:
        name: Common module path of its layers, or the layer's own.
        entry: Name of the node whose value enters the unit.
        exit: Name of the node whose value leaves it.
        nodes: Names of the nodes inside, in graph order, the entry left out.
        layers: Indices of the layers inside.
        entry_tensor: Index of the activation tensor that enters, possibly through operations that keep its grid;
            None when the entry is not quantized.
    """

    name: str
    entry: str
    exit: str
    nodes: tuple[str, ...]
    layers: tuple[int, ...]
    entry_tensor: int | None


def _extend(exit_node: fx.Node, ops: Ops) -> list[fx.Node]:
    """Non-linearities that follow a node and nobody else reads the value before."""
    tail: list[fx.Node] = []
    node = exit_node
    while len(node.users) == 1 and ops.is_activation(user := next(iter(node.users))):
        tail.append(user)
        node = user
    return tail


def _residual_region(add: fx.Node, dag: nx.DiGraph, dominators: dict[fx.Node, fx.Node], ops: Ops) -> list[fx.Node]:
    """Nodes of the region that ends in ``add``; empty when values leak out of it."""
    entry = dominators[add]
    region = (nx.descendants(dag, entry) & nx.ancestors(dag, add)) | {add}
    if any(user not in region for node in region - {add} for user in node.users):
        return []
    return [*sorted(region, key=lambda n: n.meta["order"]), *_extend(add, ops)]


def _common_name(names: list[str]) -> str:
    parts = [name.split(".") for name in names]
    common: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common) or "+".join(names)


def find_units(graph: fx.Graph, layer_index: dict[str, int], tensor_index: dict[str, int], ops: Ops) -> list[Unit]:
    """Splits a graph into reconstruction units that together hold every layer exactly once.

    Args:
        graph: The folded graph, with shapes recorded.
        layer_index: fx node name to layer index, for the quantizable layers.
        tensor_index: fx node name to activation-tensor index.
        ops: The classifier of its nodes.
    """
    dag = nx.DiGraph()
    for order, node in enumerate(graph.nodes):
        node.meta["order"] = order
        dag.add_node(node)
        dag.add_edges_from((source, node) for source in node.all_input_nodes if source.op != "get_attr")
    placeholder = next(n for n in graph.nodes if n.op == "placeholder")
    dominators = dict(nx.immediate_dominators(dag, placeholder))

    def unit(name: str, entry: fx.Node, nodes: list[fx.Node], layers: list[int]) -> Unit:
        names = tuple(n.name for n in nodes)
        return Unit(name, entry.name, names[-1], names, tuple(layers), tensor_index.get(ops.source(entry).name))

    regions = [_residual_region(n, dag, dominators, ops) for n in graph.nodes if n in dominators and ops.is_add(n)]
    taken: set[fx.Node] = set()
    units: list[Unit] = []
    for region in sorted(regions, key=len):
        layers = [layer_index[n.name] for n in region if n.name in layer_index]
        if not layers or taken & set(region):
            continue
        taken |= set(region)
        entry = dominators[next(n for n in region if ops.is_add(n) and dominators[n] not in region)]
        name = _common_name([str(n.target) for n in region if n.name in layer_index])
        units.append(unit(name, entry, region, layers))
    for node in graph.nodes:
        if node.name in layer_index and node not in taken:
            nodes = [node, *_extend(node, ops)]
            units.append(unit(str(node.target), ops.tensor_inputs(node)[0], nodes, [layer_index[node.name]]))
    return sorted(units, key=lambda unit: unit.layers)
