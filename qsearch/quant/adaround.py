"""AdaRound variables: a soft choice between rounding down and up for every weight (Nagel et al. 2020).

With scale s and zero z, f = floor(W / s + z) and r = W / s + z - f, the soft weight is
``s * (clip(f + h(V), low, high) - z)`` with ``h(V) = clip(sigmoid(V) * (zeta - gamma) + gamma, 0, 1)``,
zeta = 1.1, gamma = -0.1. V starts where h(V) = r, so the soft weight starts at the float weight.
"""

from __future__ import annotations

import torch

from qsearch.quant.grids import WeightGrid

ZETA = 1.1
GAMMA = -0.1


class SoftRounding:
    """The rounding of one weight tensor.

    Args:
        weight: ``[out_channels, ...]``, float32.
        grid: Its grid; scale and zero stay fixed.
    """

    def __init__(self, weight: torch.Tensor, grid: WeightGrid) -> None:
        self.grid = grid
        scale = grid.scale.to(weight.device).reshape(-1, *([1] * (weight.dim() - 1)))
        position = (weight.detach().double() / scale.double()) + grid.zero
        # Weights that lie on a grid point up to float noise must not flip their floor between machines.
        self.floor = torch.floor(position + 1e-7).to(weight.dtype)
        rest = (position - self.floor.double()).clamp(0.0, 1.0 - 1e-6).to(weight.dtype)
        self.v = (-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)).requires_grad_(True)

    def h(self) -> torch.Tensor:
        """Rectified sigmoid of V, in [0, 1], shape of the weight."""
        return torch.clamp(torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)

    def soft(self) -> torch.Tensor:
        """The weight with soft rounding; differentiable in V."""
        return self.grid.decode(torch.clamp(self.floor + self.h(), self.grid.low, self.grid.high))

    def hard_codes(self) -> torch.Tensor:
        """Integer codes with every choice made: up where V >= 0."""
        return torch.clamp(self.floor + (self.v.detach() >= 0), self.grid.low, self.grid.high)

    def penalty(self, beta: float) -> torch.Tensor:
        """``sum(1 - |2 h - 1| ** beta)``: zero when every choice is made."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()


def beta_at(step: int, steps: int, warm_up: float, start: float = 20.0, end: float = 2.0) -> float | None:
    """Exponent of the penalty at a step: None during the warm-up, then linear from ``start`` to ``end``."""
    first = int(warm_up * steps)
    if step < first:
        return None
    progress = (step - first) / max(1, steps - 1 - first)
    return start + (end - start) * progress
