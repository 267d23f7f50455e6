"""Hessians of the squared output error of every layer, from its inputs in the float network.

For the rows of a weight matrix that meets columns ``x``, ``H = 2 E[x x^T]``: the same for every row (Hassibi and
Stork 1993). Grouped convolutions have one Hessian a group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from qsearch.models import QuantGraph
from qsearch.quant.program import Observer

#: Positions of a layer over all images that enter its Hessian; more positions of one map say little that is new.
POSITIONS = 1 << 17

#: Columns of one Hessian; wider layers get a block-diagonal one.
MAX_COLUMNS = 4608


def blocks(columns: int) -> int:
    """Blocks of equal width, at most :data:`MAX_COLUMNS`, into which the columns of a layer are cut."""
    count = 1
    while columns % count or columns // count > MAX_COLUMNS:
        count += 1
    return count


def as_problem(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """A weight ``[out_channels, ...]`` as ``[groups * blocks, rows, columns]``, to match its Hessians."""
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    cut = blocks(rows.shape[-1])
    return rows.reshape(groups, rows.shape[1], cut, -1).transpose(1, 2).reshape(groups * cut, rows.shape[1], -1)


def from_problem(rows: torch.Tensor, shape: torch.Size, groups: int) -> torch.Tensor:
    """Inverse of :func:`as_problem`."""
    cut = rows.shape[0] // groups
    whole = rows.reshape(groups, cut, rows.shape[1], -1).transpose(1, 2)
    return whole.reshape(shape)


class Hessians(Observer):
    """Adds up Hessians while the float network runs.

    Args:
        graph: The network.
        images: Number of images that will be run.
    """

    def __init__(self, graph: QuantGraph, images: int) -> None:
        self._graph = graph
        self._images = images
        self._sums: dict[int, torch.Tensor] = {}
        self._columns: dict[int, int] = {}

    def on_input(self, layer: int, values: torch.Tensor) -> None:
        """Adds what a chunk of images says about a layer."""
        module = self._graph.layer_module(layer)
        columns = self._unfolded(module, values, self._graph.layers[layer].positions)
        groups, width, count = columns.shape
        cut = blocks(width)
        columns = columns.reshape(groups * cut, width // cut, count)
        product = columns @ columns.mT
        self._sums[layer] = self._sums[layer] + product if layer in self._sums else product
        self._columns[layer] = self._columns.get(layer, 0) + count

    def _unfolded(self, module: nn.Module, values: torch.Tensor, positions: int) -> torch.Tensor:
        """Columns ``[groups, width, positions]`` that meet the rows of the layer's weight."""
        if not isinstance(module, nn.Conv2d):
            return values.reshape(1, -1, values.shape[-1]).mT
        thinning = 1
        while self._images * positions > POSITIONS * thinning**2:
            thinning += 1
        stride = (module.stride[0] * thinning, module.stride[1] * thinning)
        padding = module.padding
        if isinstance(padding, str):
            values, padding = _padded(module, values), (0, 0)
        patches = F.unfold(values, module.kernel_size, module.dilation, padding, stride)  # [n, in * kh * kw, positions]
        split = patches.reshape(len(patches), module.groups, -1, patches.shape[-1])
        return split.permute(1, 2, 0, 3).reshape(module.groups, split.shape[2], -1)

    def take(self, layer: int) -> torch.Tensor:
        """Removes and returns the Hessian ``[groups * blocks, columns, columns]`` of a layer."""
        return self._sums.pop(layer) * (2.0 / self._columns[layer])


def _padded(module: nn.Conv2d, values: torch.Tensor) -> torch.Tensor:
    """Input with the zeros that ``padding="same"`` adds."""
    if module.padding == "valid":
        return values
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return F.pad(values, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
