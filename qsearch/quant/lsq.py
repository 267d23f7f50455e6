"""Learned step size quantization (LSQ, Esser et al. 2020) of an activation tensor whose zero point stays."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from qsearch.quant.grids import ActivationGrid

#: The step never falls below this share of where it began: a step of zero, or below, quantizes nothing.
SMALLEST_SHARE = 0.01


class _FakeQuantize(torch.autograd.Function):
    """Values on the grid of a step; straight-through to the values, eq. 3 of LSQ to the step."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, step: torch.Tensor, grid: ActivationGrid) -> torch.Tensor:
        scale = float(step)
        quantize = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask
        result: torch.Tensor
        result, inside = quantize(values, scale, grid.zero_point, grid.low, grid.high)
        ctx.save_for_backward(values, result, inside)
        ctx.scale = scale
        ctx.factor = gradient_factor(values, grid)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        values, result, inside = ctx.saved_tensors
        # Inside the range d/ds = round(x/s) - x/s = (y - x) / s, outside it is the end of the range = y / s.
        slope = torch.where(inside, result - values, result)
        return gradient * inside, (gradient * slope).sum() * (ctx.factor / ctx.scale), None


def gradient_factor(values: torch.Tensor, grid: ActivationGrid) -> float:
    """``1 / sqrt(N * Q)``, which balances the step's updates with those of weights (LSQ, section 2.2).

    N is the number of elements of one image, as in the paper (the batch is not counted); Q the codes on the larger
    side of the zero point.

    Args:
        values: ``[n, ...]``.
        grid: Its grid.
    """
    reach = max(grid.high - grid.zero_point, grid.zero_point - grid.low, 1)
    return 1.0 / math.sqrt(values.numel() / values.shape[0] * reach)


class LearnedStep(nn.Module):
    """The step of one activation grid as a parameter.

    Attributes:
        step: Scalar parameter, positive.

    Args:
        grid: Where it starts.
        device: Where the values are.
    """

    def __init__(self, grid: ActivationGrid, device: torch.device) -> None:
        super().__init__()
        self.initial = grid
        self.step = nn.Parameter(torch.tensor(grid.scale, dtype=torch.float32, device=device))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Nearest grid values of a tensor ``[n, ...]``."""
        result: torch.Tensor = _FakeQuantize.apply(values, self.step, self.initial)  # type: ignore[no-untyped-call]
        return result

    @torch.no_grad()
    def keep_positive(self) -> None:
        """To be called after each update: an optimizer knows no bounds."""
        self.step.clamp_(min=SMALLEST_SHARE * self.initial.scale)

    def grid(self) -> ActivationGrid:
        """The grid with the step as it is now."""
        return dataclasses.replace(self.initial, scale=float(self.step.detach()))
