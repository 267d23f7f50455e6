"""Candidates that begin alike share the work: values at a few cuts of the network are kept for the next candidate."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch

from qsearch.quant.program import Plan, Program, Value

#: Cuts whose values are kept: the last ones before these shares of the work.
CUT_SHARES = (0.25, 0.5, 0.75)


def choose_cuts(program: Program) -> list[str]:
    """Nodes, in order, after which nothing else is live; quantized tensors are preferred, as their codes are small."""
    graph = program.graph
    macs = {name: layer.macs for name, layer in zip(graph.layer_nodes, graph.layers, strict=True)}
    total = sum(macs.values())
    tensors = {tensor.node for tensor in graph.tensors}
    done: dict[str, float] = {}
    so_far = 0
    for step in program.steps:
        so_far += macs.get(step.node.name, 0)
        done[step.node.name] = so_far / total
    cuts = program.cuts()
    chosen: list[str] = []
    for share in CUT_SHARES:
        before = [cut for cut in cuts if 0 < done[cut] <= share]
        best = [cut for cut in before if cut in tensors] or before
        if best and best[-1] not in chosen:
            chosen.append(best[-1])
    return chosen


def signature(program: Program, plan: Plan, cut: str) -> Hashable | None:
    """Everything that decides the value at a cut, beside the images; None where a plan does not tell."""
    last = program.position[cut]
    graph = program.graph
    parts: list[Hashable] = [cut]
    for index, name in enumerate(graph.layer_nodes):
        if program.position[name] <= last:
            layer = plan.layers.get(index) or program.float_layer(index)
            if layer.token is None:
                return None
            parts.append((index, layer.token))
    for tensor in graph.tensors:
        if program.position[tensor.node] <= last:
            parts.append((tensor.index, plan.grids.get(tensor.index)))
    return tuple(parts)


class PrefixCache:
    """Values at cuts, by what decides them; the ones not used for longest go first.

    Args:
        max_bytes: Bound of all values together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[Hashable, list[Value]] = OrderedDict()
        self.hits = 0

    def find(self, keys: Sequence[Hashable]) -> int | None:
        """Position of the last key whose values are kept."""
        for position in reversed(range(len(keys))):
            if keys[position] in self._entries:
                self.hits += 1
                return position
        return None

    def get(self, key: Hashable) -> list[Value]:
        """Values of all chunks."""
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: Hashable, values: list[Value]) -> None:
        """Keeps the values of all chunks, in the smallest type that holds them exactly."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return
        size = sum(value.data.nbytes for value in values)
        if size > self.max_bytes:
            return
        while self._entries and self.bytes + size > self.max_bytes:
            _, gone = self._entries.popitem(last=False)
            self.bytes -= sum(value.data.nbytes for value in gone)
        self._entries[key] = values
        self.bytes += size


def code_type(low: int | None, high: int | None) -> torch.dtype:
    """The smallest type that holds whole numbers ``low .. high``; float32 for real numbers (None)."""
    if low is not None and high is not None:
        for kind in (torch.uint8, torch.int8, torch.int16):
            limits = torch.iinfo(kind)
            if limits.min <= low and high <= limits.max:
                return kind
    return torch.float32


def shrink(value: Value, low: int | None, high: int | None) -> Value:
    """Codes in the smallest integer type that holds ``low .. high``; real numbers as they are."""
    return value if value.step is None else Value(value.data.to(code_type(low, high)), value.step)


def expand(value: Value) -> Value:
    """Inverse of :func:`shrink`."""
    return value if value.data.dtype == torch.float32 else Value(value.data.to(torch.float32), value.step)
