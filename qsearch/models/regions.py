"""Regions of a graph with one tensor coming in and one going out, found through dominators."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce

import networkx as nx
from torch import fx


@dataclass(frozen=True, slots=True)
class Region:
    """Part of a graph that reads one outside value and whose last value alone is read outside.

    Attributes:
        entry: The node whose value enters; not a part of the region.
        nodes: The nodes inside, in graph order; the last one is the exit.
    """

    entry: fx.Node
    nodes: tuple[fx.Node, ...]


class Regions:
    """Dominators and post-dominators of the nodes between image and logits.

    Nodes that lead to no logit, such as assertions on shapes, are left out.

    Args:
        graph: A graph with shapes recorded and ``meta["order"]`` set.
    """

    def __init__(self, graph: fx.Graph) -> None:
        start = next(node for node in graph.nodes if node.op == "placeholder")
        self._end = next(node for node in graph.nodes if node.op == "output")
        flow = nx.DiGraph()
        flow.add_nodes_from(graph.nodes)
        flow.add_edges_from((source, node) for node in graph.nodes for source in node.all_input_nodes)
        live = ({start} | nx.descendants(flow, start)) & ({self._end} | nx.ancestors(flow, self._end))
        self._flow = flow.subgraph(live).copy()
        self._before = _tree(self._flow, start)
        self._after = _tree(self._flow.reverse(copy=False), self._end)

    def __contains__(self, node: fx.Node) -> bool:
        return node in self._flow

    def between(self, node: fx.Node) -> Region | None:
        """The region that ends in ``node`` and begins where its inputs last were one value.

        None if a value leaks out of it.
        """
        entry = self._entry([node])
        if entry is None:
            return None
        inside = self._inside(entry, node)
        if any(user in self._flow and user not in inside for one in inside - {node} for user in one.users):
            return None
        return Region(entry, _in_order(inside))

    def smallest(self, nodes: Collection[fx.Node]) -> Region | None:
        """The smallest region that holds some nodes; None if it would reach up to image or logits.

        The exit of any region post-dominates all of it, and the entry dominates all of it; every step below is hence
        forced, and the first region that satisfies both is the smallest.
        """
        exit_node = self._exit(nodes)
        while exit_node is not None:
            entry = self._entry([*nodes, exit_node])
            if entry is None:
                return None
            inside = self._inside(entry, exit_node)
            if (further := self._exit(inside)) is exit_node:
                return Region(entry, _in_order(inside))
            exit_node = further
        return None

    def _inside(self, entry: fx.Node, exit_node: fx.Node) -> set[fx.Node]:
        inside: set[fx.Node] = nx.descendants(self._flow, entry) & nx.ancestors(self._flow, exit_node)
        return inside | {exit_node}

    def _entry(self, nodes: Collection[fx.Node]) -> fx.Node | None:
        """The nearest tensor-valued node that every path to ``nodes`` passes, itself none of them."""
        node: fx.Node | None = reduce(lambda a, b: _common(a, b, self._before), nodes)
        while node is not None and (node in nodes or "shape" not in node.meta):
            node = self._before[node][0]
        return node

    def _exit(self, nodes: Collection[fx.Node]) -> fx.Node | None:
        """The nearest tensor-valued node that every path from ``nodes`` passes, possibly one of them."""
        node: fx.Node | None = reduce(lambda a, b: _common(a, b, self._after), nodes)
        while node is not None and node is not self._end and "shape" not in node.meta:
            node = self._after[node][0]
        return None if node is self._end else node


_Tree = dict[fx.Node, tuple[fx.Node | None, int]]


def _tree(flow: nx.DiGraph, root: fx.Node) -> _Tree:
    """Immediate dominator and depth of every node."""
    parents = dict(nx.immediate_dominators(flow, root))
    tree: _Tree = {root: (None, 0)}
    for node in nx.topological_sort(flow):
        if node is not root:
            parent = parents[node]
            tree[node] = (parent, tree[parent][1] + 1)
    return tree


def _common(a: fx.Node, b: fx.Node, tree: _Tree) -> fx.Node:
    """The nearest common ancestor of two nodes, each counted as an ancestor of its own."""
    first, second = a, b
    while first is not second:
        deeper, other = (first, second) if tree[first][1] >= tree[second][1] else (second, first)
        parent = tree[deeper][0]
        if parent is None:
            return deeper
        first, second = parent, other
    return first


def _in_order(nodes: set[fx.Node]) -> tuple[fx.Node, ...]:
    return tuple(sorted(nodes, key=lambda node: node.meta["order"]))
