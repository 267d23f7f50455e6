"""Closed-form rounding: the error of one weight is made good by those not rounded yet (GPTQ, Frantar et al. 2022).

All widths of a layer come from one factorization: the rows of every width are stacked, since the Hessian of the
squared output error, ``H = 2 X X^T / n``, is the same for every row (Hassibi and Stork 1993). Scales are refitted in
closed form between passes, and coordinate descent on the codes polishes the last one; both never raise the quadratic
error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Columns whose updates are gathered before they touch the rest.
BLOCK = 64

#: Passes that refit the scales, and sweeps of coordinate descent, for widths where rounding matters.
REFITS = 2
SWEEPS = 2
POLISHED_UP_TO_BITS = 5

_TINY = 1e-12


@dataclass(slots=True)
class Rows:
    """Rows of one problem with their grids: values ``scale * (code - zero)``, codes ``low .. high``.

    Attributes:
        weight: ``[groups, rows, columns]``.
        scale: ``[groups, rows, 1 or columns]``; may be negative.
        zero: Same shape as ``scale``.
        low: ``[groups, rows]``.
        high: ``[groups, rows]``.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def snap(self, values: torch.Tensor, column: int) -> torch.Tensor:
        """Nearest grid values of one column ``[groups, rows]``."""
        at = column if self.scale.shape[-1] > 1 else 0
        scale, zero = self.scale[..., at], self.zero[..., at]
        codes = torch.minimum(torch.maximum((values / scale + zero).round(), self.low), self.high)
        return (codes - zero) * scale

    def permuted(self, order: torch.Tensor) -> Rows:
        """The same rows with columns reordered, ``order`` ``[groups, columns]``."""
        index = order[:, None, :].expand_as(self.weight)
        wide = self.scale.shape[-1] > 1
        scale = self.scale.expand_as(self.weight).gather(2, index) if wide else self.scale
        zero = self.zero.expand_as(self.weight).gather(2, index) if wide else self.zero
        return Rows(self.weight.gather(2, index), scale, zero, self.low, self.high)


@dataclass(slots=True)
class CodebookRows:
    """Rows whose values come from one codebook.

    Attributes:
        weight: ``[groups, rows, columns]``.
        centroids: ``[2 ** bits]``, rising.
    """

    weight: torch.Tensor
    centroids: torch.Tensor

    def snap(self, values: torch.Tensor, column: int) -> torch.Tensor:
        """Nearest centroids of one column ``[groups, rows]``."""
        borders = (self.centroids[1:] + self.centroids[:-1]) / 2
        return self.centroids[torch.bucketize(values.contiguous(), borders)]

    def permuted(self, order: torch.Tensor) -> CodebookRows:
        """The same rows with columns reordered, ``order`` ``[groups, columns]``."""
        return CodebookRows(self.weight.gather(2, order[:, None, :].expand_as(self.weight)), self.centroids)


Problem = Rows | CodebookRows


def damped(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """``H`` with a share of its mean diagonal added; inputs that never fire get a unit diagonal.

    Args:
        hessian: ``[groups, columns, columns]``.
        damping: Share of the mean diagonal.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    dead = diagonal <= 0
    extra = damping * diagonal.mean(-1, keepdim=True).clamp_min(_TINY) + dead.to(hessian.dtype)
    return hessian + torch.diag_embed(extra)


@dataclass(frozen=True, slots=True)
class Factor:
    """What every pass over one Hessian needs.

    Attributes:
        hessian: ``[groups, columns, columns]``, damped.
        order: ``[groups, columns]``, columns by falling curvature.
        upper: Upper Cholesky factor of the inverse of the Hessian in that order.
    """

    hessian: torch.Tensor
    order: torch.Tensor
    upper: torch.Tensor


def factorize(hessian: torch.Tensor, damping: float = 0.01) -> Factor:
    """Factorizes a Hessian ``[groups, columns, columns]`` once for all widths.

    Args:
        hessian: Positive semi-definite.
        damping: Share of the mean diagonal that is added.
    """
    hessian = damped(hessian, damping)
    order = torch.argsort(hessian.diagonal(dim1=-2, dim2=-1), dim=-1, descending=True, stable=True)
    square = hessian.gather(1, order[:, :, None].expand_as(hessian)).gather(2, order[:, None, :].expand_as(hessian))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(square))
    return Factor(hessian, order, torch.linalg.cholesky(inverse).mT.contiguous())


def compensated(rows: Problem, factor: Factor) -> torch.Tensor:
    """One GPTQ pass, columns in order of falling curvature.

    Returns:
        Quantized weights ``[groups, rows, columns]``.
    """
    order, upper = factor.order, factor.upper
    ordered = rows.permuted(order)
    work, quantized = ordered.weight.clone(), torch.empty_like(ordered.weight)
    columns = work.shape[-1]
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.empty_like(work[..., start:stop])
        for j in range(start, stop):
            values = work[..., j]
            quantized[..., j] = ordered.snap(values, j)
            error = (values - quantized[..., j]) / upper[:, j, j, None]
            work[..., j:stop] -= error[..., None] * upper[:, None, j, j:stop]
            errors[..., j - start] = error
        if stop < columns:
            work[..., stop:] -= errors @ upper[:, start:stop, stop:]
    return torch.empty_like(quantized).scatter_(2, order[:, None, :].expand_as(quantized), quantized)


def refitted(rows: Rows, quantized: torch.Tensor, hessian: torch.Tensor) -> Rows:
    """Rows whose scales minimise the quadratic error for the codes at hand: ``s' = s * (w H q) / (q H q)``."""
    curved = quantized @ hessian
    above, below = (rows.weight * curved).sum(-1, keepdim=True), (quantized * curved).sum(-1, keepdim=True)
    factor = torch.where(below > _TINY, above / below.clamp_min(_TINY), torch.ones_like(below)).clamp(0.5, 2.0)
    return Rows(rows.weight, rows.scale * factor, rows.zero, rows.low, rows.high)


def polished(rows: Problem, quantized: torch.Tensor, hessian: torch.Tensor, sweeps: int) -> torch.Tensor:
    """Coordinate descent: every column in turn takes the grid values that are best given all others."""
    quantized = quantized.clone()
    slope = (quantized - rows.weight) @ hessian
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    columns = quantized.shape[-1]
    for _ in range(sweeps):
        for start in range(0, columns, BLOCK):
            stop = min(start + BLOCK, columns)
            before = quantized[..., start:stop].clone()
            local = slope[..., start:stop]
            for j in range(start, stop):
                best = rows.snap(quantized[..., j] - local[..., j - start] / diagonal[:, j, None], j)
                change = best - quantized[..., j]
                local += change[..., None] * hessian[:, None, j, start:stop]
                quantized[..., j] = best
            moved = quantized[..., start:stop] - before
            slope[..., :start] += moved @ hessian[:, start:stop, :start]
            slope[..., stop:] += moved @ hessian[:, start:stop, stop:]
    return quantized


def quadratic_error(rows: Rows, quantized: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """``(q - w) H (q - w)`` of every row, ``[groups, rows]``."""
    delta = quantized - rows.weight
    return ((delta @ hessian) * delta).sum(-1)


def solve(rows: Rows, factor: Factor, refits: int, sweeps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds the rows of one problem.

    Args:
        rows: The problem.
        factor: Of its Hessian.
        refits: Passes after which scales are refitted (not for scales that must stay, such as powers of two).
        sweeps: Sweeps of coordinate descent.

    Returns:
        Quantized weights ``[groups, rows, columns]`` and the scales in force.
    """
    hessian = factor.hessian
    best = compensated(rows, factor)
    best_error, scale = quadratic_error(rows, best, hessian), rows.scale
    for _ in range(refits):
        rows = refitted(rows, best, hessian)
        found = compensated(rows, factor)
        error = quadratic_error(rows, found, hessian)
        better = (error < best_error)[..., None]
        best, best_error = torch.where(better, found, best), torch.minimum(error, best_error)
        scale = torch.where(better, rows.scale, scale)
        rows = Rows(rows.weight, scale, rows.zero, rows.low, rows.high)
    if sweeps:
        best = polished(rows, best, hessian, sweeps)
    return best, scale
