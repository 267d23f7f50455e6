"""Cross-layer equalization: the channel ranges of consecutive layers are made equal, the function stays.

DFQ (Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.1): for a
positive-homogeneous function f, ``W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1)``, and the precision of both layers
is best at ``s_i = sqrt(r1_i r2_i) / r2_i`` (eq. 11), with r the largest magnitudes of output channel i of the first and
input channel i of the second layer.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum

import torch
import torch.nn.functional as F
from torch import fx, nn

from qsearch.models import QuantGraph
from qsearch.models.graph import graph_digest
from qsearch.models.portable import pack, unpack

#: Channels weaker than this share of the layer's strongest are dead; to equalize them would blow up their bias.
_DEAD = 1e-6
_CONVERGED = 1e-4

#: Element by element, f(s x) = s f(x) for positive s.
_ELEMENTWISE_MODULES = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout2d)
_ELEMENTWISE = {F.relu, torch.relu, F.leaky_relu, F.dropout, F.dropout2d, "relu"}
#: The same, channel by channel, for maps ``[n, channels, height, width]``.
_POOLING_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d)
_POOLING = {
    F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
}  # fmt: skip
_SPATIAL_AXES = ((2, 3), (3, 2), (-2, -1), (-1, -2))

Layer = nn.Conv2d | nn.Linear


class _Layout(Enum):
    """Where the channels of a value are."""

    MAP = "axis 1 of [n, channels, height, width]"
    FLAT = "runs of features of [n, channels * positions]"
    LAST = "the last axis"


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two layers with nothing but positive-homogeneous functions between them, and no other reader."""

    first: Layer
    second: Layer


def equalize(graph: QuantGraph, iterations: int = 20) -> QuantGraph:
    """Equalizes every pair of layers that only positive-homogeneous functions separate.

    Depthwise layers may stand in the middle: pairs overlap, and are equalized in turn until nothing moves. What ReLU6
    or another function with a fixed threshold separates is left as it is, and named in the notes.

    Args:
        graph: The network; it is not changed.
        iterations: Rounds over all pairs, at most.

    Returns:
        The same function with other weights and another digest.
    """
    module = unpack(copy.deepcopy(pack(graph.module)))
    for old, new in zip(graph.module.graph.nodes, module.graph.nodes, strict=True):
        new.meta = dict(old.meta)
    pairs, blocked = _find_pairs(graph, module)
    with torch.no_grad():
        for _ in range(iterations):
            largest = max((_equalize_pair(pair) for pair in pairs), default=0.0)
            if largest < _CONVERGED:
                break
    notes = [f"cross-layer equalization: {len(pairs)} pairs of layers"]
    notes += [f"{name!r} ({kind}) is not positive-homogeneous: no equalization across it" for name, kind in blocked]
    return replace(graph, module=module, notes=(*graph.notes, *notes), digest=graph_digest(module))


def _find_pairs(graph: QuantGraph, module: fx.GraphModule) -> tuple[list[_Pair], list[tuple[str, str]]]:
    """Pairs in execution order, and (module path, kind) of the thresholds in the way of others."""
    names = set(graph.layer_nodes)
    holders = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    pairs: list[_Pair] = []
    blocked: list[tuple[str, str]] = []
    for node in module.graph.nodes:
        if node.name not in names:
            continue
        first, tail = _layer(module, node), node
        layout: _Layout | None = _Layout.MAP if isinstance(first, nn.Conv2d) else _Layout.LAST
        while layout is not None and len(tail.users) == 1:
            tail = next(iter(tail.users))
            if tail.name in names:
                second = _layer(module, tail)
                shared = any(holders[id(p)] > 1 for layer in (first, second) for p in layer.parameters())
                if not shared and _fit(first, second, layout):
                    pairs.append(_Pair(first, second))
                break
            if kind := _threshold(module, tail):
                blocked.append((str(tail.target) if tail.op == "call_module" else tail.name, kind))
            layout = _after(module, tail, layout)
    return pairs, list(dict.fromkeys(blocked))


def _fit(first: Layer, second: Layer, layout: _Layout) -> bool:
    """True when the input channels of the second layer are the output channels of the first."""
    if isinstance(second, nn.Conv2d):
        return layout is _Layout.MAP
    return layout is not _Layout.MAP and _input_count(second) % first.weight.shape[0] == 0


def _layer(module: fx.GraphModule, node: fx.Node) -> Layer:
    layer = module.get_submodule(str(node.target))
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise TypeError(f"{node.target} is a {type(layer).__name__}")
    return layer


def _threshold(module: fx.GraphModule, node: fx.Node) -> str | None:
    """What a clipped ReLU is called; None for anything else."""
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        return type(child).__name__ if isinstance(child, nn.Hardtanh) else None  # of which ReLU6 is one
    return "relu6" if node.target in (F.relu6, F.hardtanh) else None


def _after(module: fx.GraphModule, node: fx.Node, layout: _Layout) -> _Layout | None:
    """Where the channels are after a node; None when it is not positive-homogeneous channel by channel."""
    child = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(child, _ELEMENTWISE_MODULES) or node.target in _ELEMENTWISE:
        return layout
    if layout is not _Layout.MAP:
        return None
    if isinstance(child, _POOLING_MODULES) or node.target in _POOLING:
        return layout
    if isinstance(child, nn.Flatten):
        return _Layout.FLAT if (child.start_dim, child.end_dim) == (1, -1) else None
    arguments = (*node.args[1:], *node.kwargs.values())
    if node.target in ("flatten", torch.flatten):
        return _Layout.FLAT if arguments in ((1,), (1, -1)) else None
    if node.target in ("mean", torch.mean) and arguments and isinstance(arguments[0], list | tuple):
        keeps = arguments[1:] == (True,)
        if tuple(arguments[0]) in _SPATIAL_AXES and (keeps or arguments[1:] in ((), (False,))):
            return layout if keeps else _Layout.FLAT
    return None


def _equalize_pair(pair: _Pair) -> float:
    """Equalizes one pair in place; returns the largest ``|log s|``."""
    first, second = pair.first, pair.second
    out = first.weight.shape[0]
    one = first.weight.flatten(1).abs().amax(1)
    two = _input_ranges(second).view(out, -1).amax(1)
    alive = (one > _DEAD * one.max()) & (two > _DEAD * two.max())
    scale = torch.where(alive, (one / two.clamp_min(1e-30)).sqrt(), 1.0)
    first.weight.div_(scale.view(-1, *([1] * (first.weight.dim() - 1))))
    if first.bias is not None:
        first.bias.div_(scale)
    # A flattened map has as many features a channel as it has positions.
    inputs = scale.repeat_interleave(_input_count(second) // out)
    if isinstance(second, nn.Linear):
        second.weight.mul_(inputs)
    else:
        shape = second.weight.shape
        grouped = second.weight.view(second.groups, -1, *shape[1:])
        grouped.mul_(inputs.view(second.groups, 1, shape[1], 1, 1))
    return float(scale.log().abs().max())


def _input_count(layer: Layer) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _input_ranges(layer: Layer) -> torch.Tensor:
    """Largest magnitude of the weights of every input channel, ``[in]``."""
    if isinstance(layer, nn.Linear):
        return layer.weight.abs().amax(0)
    shape = layer.weight.shape
    return layer.weight.abs().view(layer.groups, -1, *shape[1:]).amax((1, 3, 4)).flatten()
