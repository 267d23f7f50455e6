"""The bank: every layer's weights at every width, quantized once; candidates are stitched from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from qsearch.quant.codebook import CodebookGrid, search_codebook, search_grid
from qsearch.quant.gptq import (
    POLISHED_UP_TO_BITS,
    REFITS,
    SWEEPS,
    CodebookRows,
    Factor,
    Rows,
    compensated,
    factorize,
    polished,
    solve,
)
from qsearch.quant.grids import WeightGrid, may_be_negative, orientations, search_weight_grid
from qsearch.quant.hessian import as_problem, from_problem
from qsearch.quant.program import LayerPlan, layout
from qsearch.quant.schemes import WeightScheme

#: Widths of a bank.
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight tensor on its grid.

    Attributes:
        codes: ``[out_channels, ...]``, whole numbers as float32.
        grid: What they mean.
    """

    codes: torch.Tensor
    grid: WeightGrid | CodebookGrid

    @property
    def values(self) -> torch.Tensor:
        """Real weights ``[out_channels, ...]``."""
        return self.grid.decode(self.codes)

    def plan(self, bias: torch.Tensor | None) -> LayerPlan:
        """How a layer with this weight computes: on codes wherever an output channel has one scale.

        Args:
            bias: ``[out_channels]``, or None.
        """
        grid = self.grid
        if isinstance(grid, CodebookGrid) or grid.group_size:
            return LayerPlan(layout(self.values), None, bias)
        zero = grid.zero.reshape(-1, *([1] * (self.codes.dim() - 1)))
        return LayerPlan(layout(self.codes - zero), grid.scale[:, 0].contiguous(), bias)

    def pack(self, prefix: str) -> dict[str, torch.Tensor]:
        """Small tensors that :func:`unpack` reads."""
        grid = self.grid
        if isinstance(grid, CodebookGrid):
            return {f"{prefix}.codes": self.codes.to(torch.uint8).cpu(), f"{prefix}.centroids": grid.centroids.cpu()}
        return {
            f"{prefix}.codes": (self.codes - grid.low).to(torch.uint8).cpu(),
            f"{prefix}.scale": grid.scale.cpu(),
            f"{prefix}.zero": grid.zero.cpu(),
            f"{prefix}.format": torch.tensor([grid.bits, grid.low, grid.high, grid.group_size, grid.power_of_two]),
        }


def unpack(tensors: Mapping[str, torch.Tensor], prefix: str, device: torch.device) -> QuantizedWeight:
    """Inverse of :meth:`QuantizedWeight.pack`."""
    codes = tensors[f"{prefix}.codes"].to(device, torch.float32)
    if f"{prefix}.centroids" in tensors:
        centroids = tensors[f"{prefix}.centroids"].to(device)
        return QuantizedWeight(codes, CodebookGrid(centroids.numel().bit_length() - 1, centroids))
    bits, low, high, group_size, power_of_two = tensors[f"{prefix}.format"].tolist()
    scale, zero = tensors[f"{prefix}.scale"].to(device), tensors[f"{prefix}.zero"].to(device)
    return QuantizedWeight(codes + low, WeightGrid(bits, scale, zero, low, high, group_size, bool(power_of_two)))


def nearest(weight: torch.Tensor, bits: int, scheme: WeightScheme) -> QuantizedWeight:
    """Nearest rounding, without looking at the inputs of the layer.

    Args:
        weight: ``[out_channels, ...]``.
        bits: Width, 1..8.
        scheme: How.
    """
    grid = search_grid(weight, bits, scheme)
    return QuantizedWeight(grid.encode(weight), grid)


def closed_form(
    weight: torch.Tensor, hessian: torch.Tensor, groups: int, scheme: WeightScheme, widths: Sequence[int] = WIDTHS
) -> dict[int, QuantizedWeight]:
    """Rounds a layer at many widths with one factorization of its Hessian.

    Args:
        weight: ``[out_channels, ...]``.
        hessian: ``[groups * blocks, columns, columns]`` (:class:`qsearch.quant.hessian.Hessians`).
        groups: Convolution groups.
        scheme: How the grids are found.
        widths: Which widths.

    Returns:
        The quantized weight by width.
    """
    factor = factorize(hessian)
    problem = as_problem(weight, groups)
    importance = _importance(factor, weight, groups)
    if scheme.grid == "codebook":
        return {bits: _codebook(weight, problem, factor, groups, bits) for bits in widths}
    if any(may_be_negative(scheme, bits) for bits in widths):
        return _best_orientation(weight, groups, scheme, widths, importance, factor)
    grids = {bits: search_weight_grid(weight, bits, scheme, importance) for bits in widths}
    return _solved(weight, groups, scheme, grids, factor)


def _best_orientation(
    weight: torch.Tensor,
    groups: int,
    scheme: WeightScheme,
    widths: Sequence[int],
    importance: torch.Tensor,
    factor: Factor,
) -> dict[int, QuantizedWeight]:
    """Solves with positive and with negative scales; every row keeps the sign with the smaller output error."""
    both = {bits: orientations(weight, bits, scheme, importance) for bits in widths}
    solved = [_solved(weight, groups, scheme, {b: grids[i] for b, grids in both.items()}, factor) for i in (0, 1)]
    found = {}
    for bits in widths:
        up, down = (which[bits] for which in solved)
        errors = [_output_error(each.values - weight, groups, factor) for each in (up, down)]
        turn = errors[1] < errors[0] if bits > 1 else torch.zeros_like(errors[0], dtype=torch.bool)
        codes = torch.where(turn.reshape(-1, *([1] * (weight.dim() - 1))), down.codes, up.codes)
        if isinstance(up.grid, WeightGrid) and isinstance(down.grid, WeightGrid):
            scale = torch.where(turn[:, None], down.grid.scale, up.grid.scale)
            found[bits] = QuantizedWeight(codes, replace(up.grid, scale=scale))
    return found


def _output_error(delta: torch.Tensor, groups: int, factor: Factor) -> torch.Tensor:
    """``d H d`` of every output channel, ``[out_channels]``."""
    rows = as_problem(delta, groups)
    blockwise = ((rows @ factor.hessian) * rows).sum(-1)
    return blockwise.reshape(groups, -1, rows.shape[1]).sum(1).reshape(-1)


def _solved(
    weight: torch.Tensor, groups: int, scheme: WeightScheme, grids: Mapping[int, WeightGrid], factor: Factor
) -> dict[int, QuantizedWeight]:
    """Rounds a layer on its grids, one for each width."""
    problem = as_problem(weight, groups)
    widths = sorted(grids)
    found: dict[int, QuantizedWeight] = {}
    # Refitting a scale for each block of columns would tear the scale of a row apart.
    free = not scheme.power_of_two and scheme.granularity != "tensor" and problem.shape[0] == groups
    polishing = [b for b in widths if b <= POLISHED_UP_TO_BITS]
    plain = [b for b in widths if b > POLISHED_UP_TO_BITS]
    for chosen, refits, sweeps in ((polishing, REFITS if free else 0, SWEEPS), (plain, 0, 0)):
        if not chosen:
            continue
        rows = _stacked(weight, problem, [grids[b] for b in chosen], groups)
        quantized, scales = solve(rows, factor, refits, sweeps)
        for bits, values, scale in zip(
            chosen, quantized.chunk(len(chosen), 1), scales.chunk(len(chosen), 1), strict=True
        ):
            grid = grids[bits]
            if refits:
                new = scale[..., 0].reshape(-1, 1)
                ratio = new / grid.columns(weight[0].numel())[0][:, :1]
                grid = replace(grid, scale=grid.scale * ratio)
            found[bits] = QuantizedWeight(grid.encode(from_problem(values, weight.shape, groups)), grid)
    return found


def _importance(factor: Factor, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Diagonal of the Hessian for every element of a row, ``[rows, width]``."""
    diagonal = factor.hessian.diagonal(dim1=-2, dim2=-1).reshape(groups, 1, -1)
    return diagonal.expand(groups, weight.shape[0] // groups, -1).reshape(weight.shape[0], -1)


def _stacked(weight: torch.Tensor, problem: torch.Tensor, grids: Sequence[WeightGrid], groups: int) -> Rows:
    """The rows of a layer once for each grid."""
    cut = problem.shape[0] // groups
    width = weight[0].numel()
    scales, zeros = [], []
    wide = any(grid.group_size for grid in grids)
    for grid in grids:
        scale, zero = grid.columns(width)
        if wide:
            shape = weight.shape[0], width
            scales.append(as_problem(scale.expand(shape), groups))
            zeros.append(as_problem(zero.expand(shape), groups))
        else:
            for parts, value in ((scales, scale), (zeros, zero)):
                grouped = value.reshape(groups, -1, 1)
                parts.append(grouped.repeat_interleave(cut, 0))
    rows = problem.shape[1]

    def bound(which: str) -> torch.Tensor:
        values = [float(getattr(grid, which)) for grid in grids]
        return torch.tensor(values, device=weight.device).repeat_interleave(rows).expand(problem.shape[0], -1)

    return Rows(
        problem.repeat(1, len(grids), 1), torch.cat(scales, 1), torch.cat(zeros, 1), bound("low"), bound("high")
    )


def _codebook(weight: torch.Tensor, problem: torch.Tensor, factor: Factor, groups: int, bits: int) -> QuantizedWeight:
    grid = search_codebook(weight, bits)
    rows = CodebookRows(problem, grid.centroids)
    values = compensated(rows, factor)
    if bits <= POLISHED_UP_TO_BITS:
        values = polished(rows, values, factor.hessian, SWEEPS)
    return QuantizedWeight(grid.encode(from_problem(values, weight.shape, groups)), grid)
