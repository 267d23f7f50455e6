"""k-means codebooks: ``2**bits`` free values for all weights of a layer, as in the size mode of HAQ (Wang et al. 2019).

In one dimension k-means has an exact solution by dynamic programming over the sorted values (Wang and Song 2011,
"Ckmeans.1d.dp"). Layers with more distinct values than the table can hold are binned for it, and Lloyd's steps on all
weights finish the job; nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qsearch.errors import EvaluationError
from qsearch.quant.grids import WeightGrid, search_weight_grid
from qsearch.quant.schemes import WeightScheme

_Array = NDArray[np.float64]

#: Distinct values up to which the solution is exact; the table of costs has this number squared entries.
EXACT_VALUES = 512

_LLOYD_STEPS = 200


@dataclass(frozen=True, eq=False)
class CodebookGrid:
    """The values that all weights of a layer may take; codes are positions in the codebook.

    Attributes:
        bits: Width, 1..8.
        centroids: ``[2**bits]``, float32, ascending; the largest is repeated where fewer are of use.
    """

    bits: int
    centroids: torch.Tensor

    def encode(self, weight: torch.Tensor) -> torch.Tensor:
        """Position of the nearest centroid, any shape, float."""
        centroids = self.centroids.to(weight)
        return torch.bucketize(weight.contiguous(), (centroids[1:] + centroids[:-1]) / 2).to(weight.dtype)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Centroids at positions, any shape."""
        return self.centroids.to(codes)[codes.long()]

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Nearest centroids of a weight tensor."""
        return self.decode(self.encode(weight))

    def to(self, device: torch.device | str) -> CodebookGrid:
        """The codebook on another device."""
        return replace(self, centroids=self.centroids.to(device))


def search_grid(
    weight: torch.Tensor,
    bits: int,
    scheme: WeightScheme | None = None,
    importance: torch.Tensor | None = None,
) -> WeightGrid | CodebookGrid:
    """Finds the grid or the codebook of a weight tensor, whichever the scheme asks for.

    Args:
        weight: ``[rows, ...]``, rows are output channels.
        bits: Width, 1..8.
        scheme: How; by default :class:`WeightScheme` with its own defaults.
        importance: Positive weights of the squared error, ``[rows, width]`` or ``[1, width]`` of the flattened rows.
    """
    if scheme is not None and scheme.grid == "codebook":
        return search_codebook(weight, bits, importance)
    return search_weight_grid(weight, bits, scheme, importance)


def search_codebook(weight: torch.Tensor, bits: int, importance: torch.Tensor | None = None) -> CodebookGrid:
    """Finds the centroids with the least (weighted) squared error.

    Args:
        weight: ``[rows, ...]``.
        bits: Width, 1..8.
        importance: Positive weights of the squared error, ``[rows, width]`` or ``[1, width]`` of the flattened rows.

    Raises:
        EvaluationError: There is no codebook of that width.
    """
    if bits not in range(1, 9):
        raise EvaluationError(f"there is no codebook of {bits} bits", "widths from 1 to 8 bits are evaluated")
    rows = weight.detach().flatten(1)
    values = rows.flatten().double().cpu().numpy()
    counts = np.ones_like(values)
    if importance is not None:
        counts = importance.detach().double().expand(rows.shape).flatten().cpu().numpy().clip(0.0)
        if counts.sum() == 0:
            counts = np.ones_like(values)
    order = np.argsort(values, kind="stable")
    values, counts = values[order], counts[order]
    centroids = _lloyd(values, counts, _exact_centroids(*_bins(values, counts), 2**bits))
    padded = np.concatenate([centroids, np.repeat(centroids[-1:], 2**bits - len(centroids))])
    return CodebookGrid(bits, torch.from_numpy(padded).to(weight.device, torch.float32))


def _bins(values: _Array, counts: _Array) -> tuple[_Array, _Array]:
    """Means and weights of at most :data:`EXACT_VALUES` bins of sorted values: one a distinct value where they fit.

    Half of the bin edges lie at equal distances, half at equal numbers of values: the tails need the one kind, the
    bulk the other.
    """
    starts = np.flatnonzero(np.diff(values, prepend=-np.inf))
    if len(starts) > EXACT_VALUES:
        half = EXACT_VALUES // 2
        even = np.searchsorted(values, np.linspace(values[0], values[-1], half, endpoint=False))
        starts = np.unique(np.concatenate([even, np.arange(half) * len(values) // half]))
    weights = np.add.reduceat(counts, starts)
    sums = np.add.reduceat(counts * values, starts)
    # Values without weight still stand somewhere; their bin costs nothing.
    means = np.where(weights > 0, sums / np.maximum(weights, 1e-300), values[starts])
    return means, weights


def _exact_centroids(values: _Array, weights: _Array, count: int) -> _Array:
    """Means of the best partition of sorted weighted points into at most ``count`` runs."""
    n = len(values)
    if n <= count:
        return values
    centred = values - np.average(values, weights=weights)  # or the differences of sums below would cancel
    total, first, second = (np.concatenate([[0.0], np.cumsum(weights * centred**power)]) for power in (0, 1, 2))
    # cost[i, j]: squared error of points i .. j - 1 around their mean.
    mass = total[None, :] - total[:, None]
    moment = first[None, :] - first[:, None]
    cost = second[None, :] - second[:, None] - moment**2 / np.where(mass > 0, mass, 1.0)
    cost = np.where(np.arange(n + 1)[:, None] <= np.arange(n + 1)[None, :], cost.clip(0.0), np.inf)
    error = cost[0]
    cuts = []
    for _ in range(count - 1):
        candidates = error[:, None] + cost
        cut = candidates.argmin(0)
        error = candidates[cut, np.arange(n + 1)]
        cuts.append(cut)
    ends = [n]
    for cut in reversed(cuts):
        ends.append(int(cut[ends[-1]]))
    edges = np.unique([0, *ends])
    masses = np.add.reduceat(weights, edges[:-1])
    sums = np.add.reduceat(weights * values, edges[:-1])
    centroids: _Array = np.where(masses > 0, sums / np.maximum(masses, 1e-300), values[edges[:-1]])
    return centroids


def _lloyd(values: _Array, weights: _Array, centroids: _Array) -> _Array:
    """Alternates assignment and means on sorted values until nothing moves; cumulated sums make a step cheap."""
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * values)])
    for _ in range(_LLOYD_STEPS):
        inner = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2, side="right")
        edges = np.concatenate([[0], inner, [len(values)]])
        masses = np.diff(mass[edges])
        moved = np.where(masses > 0, np.diff(moment[edges]) / np.where(masses > 0, masses, 1.0), centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = np.maximum.accumulate(moved)
    return centroids
