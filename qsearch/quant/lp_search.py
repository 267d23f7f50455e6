"""Scales and zero points with the least weighted Lp error, searched for many rows at once.

The error of a row at a scale has many local minima (every value crosses rounding thresholds), so candidates on a
geometric scale are compared first, then finer ones around the best. For p = 2 the scale is at last the least-squares
fit to its own codes, alternating with rounding: every such step can only lower the error (Lloyd's argument).

All functions take rows ``values [R, n]`` and ``importance``: positive weights of the error ``[R, n]`` or ``[1, n]``, or
None for equal ones. A row's result does not depend on the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

#: Values a tile of the CPU: the passes over a tile stay in the cache.
_TILE = 1 << 17
_GPU_TILE = 1 << 26

#: Rows of at most this many values are searched more densely: their error is more jagged, and it is cheap.
_SHORT = 256

#: A depthwise kernel or so: denser still.
_KERNEL = 16

_TINY = 2.0**-100


def _tiles(values: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    count, width = values.shape
    tile = _TILE if values.device.type == "cpu" else _GPU_TILE
    columns = min(width, tile)
    rows = max(1, tile // columns)
    for top in range(0, count, rows):
        for left in range(0, width, columns):
            yield slice(top, top + rows), slice(left, left + columns)


def _part(importance: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    return importance[rows if len(importance) > 1 else slice(None), columns]


def lp_errors(
    values: torch.Tensor,
    importance: torch.Tensor | None,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    low: int,
    high: int,
    norm: float,
) -> torch.Tensor:
    """Errors ``sum(importance * |quantized - value| ** norm)`` of many grids of every row.

    Args:
        values: ``[R, n]``.
        importance: ``[R, n]``, ``[1, n]`` or None.
        scales: Steps of the candidates, positive, ``[K, R]``.
        zeros: Their zero points, ``[K, R]``; any whole numbers.
        low: Smallest code.
        high: Largest code.
        norm: p.

    Returns:
        ``[K, R]``.
    """
    result = torch.zeros_like(scales)
    inverses, lows, highs = 1.0 / scales, low - zeros, high - zeros
    # Most candidates have one zero point for all rows; bounds that are plain numbers clamp three times as fast.
    common = [float(z[0]) if same else None for z, same in zip(zeros, (zeros == zeros[:, :1]).all(1), strict=True)]
    for rows, columns in _tiles(values):
        tile = values[rows, columns]
        for k in range(len(scales)):
            error = torch.mul(tile, inverses[k, rows, None]).round_()
            zero = common[k]
            if zero is None:
                error.clamp_(lows[k, rows, None], highs[k, rows, None])
            else:
                error.clamp_(low - zero, high - zero)
            error.mul_(scales[k, rows, None]).sub_(tile)
            error = error.mul_(error) if norm == 2.0 else error.abs_().pow_(norm)
            if importance is not None:
                error.mul_(_part(importance, rows, columns))
            result[k, rows] += error.sum(1)
    return result


def _fitted(
    values: torch.Tensor,
    importance: torch.Tensor | None,
    scale: torch.Tensor,
    zero: torch.Tensor,
    low: int,
    high: int,
) -> torch.Tensor:
    """Least-squares scale of the codes that ``scale`` gives: ``sum(i v d) / sum(i d^2)``, d = code - zero."""
    products, squares = torch.zeros_like(scale), torch.zeros_like(scale)
    for rows, columns in _tiles(values):
        tile = values[rows, columns]
        codes = torch.div(tile, scale[rows, None]).round_()
        codes.clamp_((low - zero)[rows, None], (high - zero)[rows, None])
        weighted = codes if importance is None else codes * _part(importance, rows, columns)
        products[rows] += (weighted * tile).sum(1)
        squares[rows] += (weighted * codes).sum(1)
    fitted = products / squares.clamp_min(_TINY)
    return torch.where(fitted > _TINY, fitted, scale)


class _Best:
    """The best grid of every row so far."""

    def __init__(self, values: torch.Tensor, importance: torch.Tensor | None, low: int, high: int, norm: float) -> None:
        self.values, self.importance = values, importance
        self.low, self.high, self.norm = low, high, norm
        self.scale = torch.ones_like(values[:, 0])
        self.zero = torch.zeros_like(self.scale)
        self.error = torch.full_like(self.scale, math.inf)

    def offer(self, scales: torch.Tensor, zeros: torch.Tensor) -> None:
        """Compares candidates ``[K, R]`` with the best; the first of equals stays."""
        self.take(lp_errors(self.values, self.importance, scales, zeros, self.low, self.high, self.norm), scales, zeros)

    def take(self, errors: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> None:
        """Keeps what is better among candidates whose errors ``[K, R]`` are known."""
        error, index = errors.min(0)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.scale = torch.where(better, scales.gather(0, index[None])[0], self.scale)
        self.zero = torch.where(better, zeros.gather(0, index[None])[0], self.zero)

    def polish(self, steps: int) -> None:
        """Least-squares steps; only squared errors have them."""
        for _ in range(steps if self.norm == 2.0 else 0):
            before = self.scale
            fitted = _fitted(self.values, self.importance, self.scale, self.zero, self.low, self.high)
            self.offer(fitted[None], self.zero[None])
            if torch.equal(before, self.scale):
                break


def _mean_magnitude(values: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    if importance is None:
        return values.abs().mean(1)
    return (values.abs() * importance).sum(1) / importance.expand_as(values).sum(1).clamp_min(_TINY)


def _geometric(start: torch.Tensor, end: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` scales from ``start`` to ``end`` with equal ratios, ``[count, R]``."""
    share = torch.linspace(0.0, 1.0, count, device=start.device, dtype=start.dtype)[:, None]
    return torch.exp(torch.log(start) * (1 - share) + torch.log(end) * share)


def _scale_count(width: int, high: int) -> int:
    """Scales to compare for rows of ``width`` values: codes change whenever the scale does by one part in ``high``."""
    if width > _SHORT:
        return 28  # the wells average out
    return min(max(48, 6 * high), 600) if width <= _KERNEL else min(max(48, 4 * high), 160)


def search_scale(
    values: torch.Tensor, importance: torch.Tensor | None, low: int, high: int, norm: float
) -> torch.Tensor:
    """Scale of every row with the least error, for codes ``low .. high`` and zero point 0.

    Args:
        values: ``[R, n]``.
        importance: ``[R, n]``, ``[1, n]`` or None.
        low: Smallest code, 0 or less.
        high: Largest code, 1 or more.
        norm: p of the error.

    Returns:
        ``[R]``, positive.
    """
    best = _Best(values, importance, low, high, norm)
    magnitude = values.abs() if low < 0 else values.clamp_min(0.0)
    reach = (magnitude.amax(1) / high).clamp_min(_TINY)
    # The best threshold is never far below the mean magnitude, which is where two levels would stand.
    least = (0.5 * _mean_magnitude(magnitude, importance) / max(-low, high)).clamp_min(_TINY).minimum(reach)
    start = 1.25 * reach  # beyond what is needed, where the values of a short row may happen to fit better
    count = _scale_count(values.shape[1], high)
    zeros = torch.zeros_like(reach)
    best.offer(torch.cat([reach[None], _geometric(start, least, count)]), zeros.expand(count + 1, -1))
    step = torch.log(start / least) / (count - 1)
    for points in (8, 6):  # between the neighbours of the best, then between the neighbours among those
        offsets = torch.linspace(-1.0, 1.0, points + 2, device=values.device, dtype=values.dtype)[1:-1, None]
        best.offer(best.scale * torch.exp(offsets * step), zeros.expand(points, -1))
        step = step * 2 / (points + 1)
    best.polish(4)
    return best.scale


def search_affine(
    values: torch.Tensor, importance: torch.Tensor | None, bits: int, norm: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and integer zero point of every row with the least error, for codes ``0 .. 2**bits - 1``.

    Zero is always one of the grid's values. Up to 4 bits every zero point is tried with every scale; above, both ends
    of the range are shrunk independently, and the zero point follows.

    Args:
        values: ``[R, n]``.
        importance: ``[R, n]``, ``[1, n]`` or None.
        bits: Width, 1..8.
        norm: p of the error.

    Returns:
        Scale and zero point, ``[R]`` each.
    """
    levels = 2**bits - 1
    top, bottom = values.amax(1).clamp_min(0.0), values.amin(1).clamp_max(0.0)
    best = _Best(values, importance, 0, levels, norm)
    if bits <= 4:
        widest = ((top - bottom) / max(levels - 1, 1)).clamp_min(_TINY)
        least = (_mean_magnitude(values, importance) / levels).clamp_min(_TINY).minimum(widest)
        count = 12 if values.shape[1] > _SHORT else 32
        # The scales that just cover one side are where a zero point at an end of the codes is best.
        covering = torch.stack([top / levels, -bottom / levels, (top - bottom) / levels]).clamp_min(_TINY)
        scales = torch.cat([covering, _geometric(widest, least, count)])
        for zero in range(levels + 1):
            best.offer(scales, torch.full_like(scales, zero))
        step = torch.log(widest / least) / (count - 1)
        offsets = torch.linspace(-1.0, 1.0, 8, device=values.device, dtype=values.dtype)[1:-1, None]
        fine, centre = best.scale * torch.exp(offsets * step), best.zero
        for shift in (0, -1, 1):
            best.offer(fine, (centre + shift).clamp(0, levels).expand_as(fine))
    else:
        _shrink_ends(best, bottom, top, levels)
    best.polish(4)
    return best.scale, best.zero


def _shrink_ends(best: _Best, bottom: torch.Tensor, top: torch.Tensor, levels: int) -> None:
    """Offers ranges ``[x * bottom, y * top]``: a lattice of (x, y), then twice a finer one around the best pair."""
    x, y = torch.ones_like(bottom), torch.ones_like(top)
    ratio = 0.7
    factors = [(ratio**i, ratio**j) for i in range(8) for j in range(8)]
    for _ in range(3):
        xs = torch.stack([(x * by).clamp_max(1.0) for by, _ in factors])
        ys = torch.stack([(y * by).clamp_max(1.0) for _, by in factors])
        scales, zeros = affine_grid(xs * bottom, ys * top, levels)
        errors = lp_errors(best.values, best.importance, scales, zeros, 0, levels, best.norm)
        index = errors.argmin(0)[None]
        x, y = xs.gather(0, index)[0], ys.gather(0, index)[0]
        best.take(errors, scales, zeros)
        ratio **= 0.4
        factors = [(ratio**i, ratio**j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def affine_grid(bottom: torch.Tensor, top: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and integer zero point of a range ``bottom <= 0 <= top``, for codes ``0 .. levels``; any equal shapes."""
    scale = ((top - bottom) / levels).clamp_min(_TINY)
    return scale, torch.round(-bottom / scale).clamp(0, levels)


def nearest_powers_of_two(
    values: torch.Tensor,
    importance: torch.Tensor | None,
    scale: torch.Tensor,
    zero: torch.Tensor,
    low: int,
    high: int,
    norm: float,
    *,
    movable: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces scales by powers of two: of those around each, the one with the least error.

    Args:
        values: ``[R, n]``.
        importance: ``[R, n]``, ``[1, n]`` or None.
        scale: ``[R]``, positive.
        zero: Integer zero points, ``[R]``.
        low: Smallest code.
        high: Largest code.
        norm: p of the error.
        movable: The zero point may change with the scale: to what keeps the lower end, the upper end or the middle of
            the range, and up to 4 bits to any code.

    Returns:
        Scale and zero point, ``[R]`` each.
    """
    exponent = torch.floor(torch.log2(scale.double()))
    best = _Best(values, importance, low, high, norm)
    for shift in (-1, 0, 1, 2):
        # In float64 the power is exact after rounding to float32.
        power = torch.exp2(exponent + shift).to(scale.dtype)
        zeros = zero[None]
        if movable:
            ratio = scale / power
            kept = [zero * ratio, high - (high - zero) * ratio, (high - (high - 2 * zero) * ratio) / 2]
            every = [torch.full_like(zero, code) for code in range(low, high + 1)] if high <= 15 else []
            zeros = torch.stack([*(torch.round(z).clamp(low, high) for z in kept), *every])
        best.offer(power.expand_as(zeros), zeros)
    return best.scale, best.zero
