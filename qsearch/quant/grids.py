"""Quantization grids: which values a tensor may take at b bits, and the scale that loses least.

A grid holds the values ``scale * (code - zero)`` for integer codes in ``[low, high]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_EPSILON = 1e-8

#: Candidate scales of the mean-squared-error search: fractions of the scale that reaches the largest magnitude.
SEARCH_STEPS = 100
SMALLEST_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class WeightGrid:
    """Per-output-channel grid of a weight tensor.

    Symmetric with the full two's-complement range for 2 bits and more (``zero = 0``); at 1 bit the two values
    ``-scale / 2`` and ``scale / 2`` (mid-rise, ``zero = 0.5``, codes 0 and 1), because a symmetric integer grid has
    no positive code there.

    Attributes:
        bits: Width, 1..8.
        scale: ``[out_channels]``, float32, positive.
    """

    bits: int
    scale: torch.Tensor

    @property
    def low(self) -> int:
        """Smallest code."""
        return 0 if self.bits == 1 else -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest code."""
        return 1 if self.bits == 1 else 2 ** (self.bits - 1) - 1

    @property
    def zero(self) -> float:
        """Code that stands for the value zero."""
        return 0.5 if self.bits == 1 else 0.0

    def _broadcast(self, weight: torch.Tensor) -> torch.Tensor:
        return self.scale.to(weight.device).reshape(-1, *([1] * (weight.dim() - 1)))

    def encode(self, weight: torch.Tensor) -> torch.Tensor:
        """Nearest codes of a weight tensor ``[out_channels, ...]``, same shape, float."""
        return torch.clamp(torch.round(weight / self._broadcast(weight) + self.zero), self.low, self.high)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Values of codes ``[out_channels, ...]``."""
        return (codes - self.zero) * self._broadcast(codes)

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Nearest grid values of a weight tensor ``[out_channels, ...]``."""
        return self.decode(self.encode(weight))


def search_weight_grid(weight: torch.Tensor, bits: int) -> WeightGrid:
    """Finds for each output channel the scale with the least squared error.

    At 1 bit the optimum has a closed form: half the scale is the mean magnitude (XNOR-Net, Rastegari et al. 2016).

    Args:
        weight: ``[out_channels, ...]``, float32.
        bits: Width, 1..8.
    """
    rows = weight.detach().reshape(weight.shape[0], -1)
    if bits == 1:
        return WeightGrid(1, (2 * rows.abs().mean(1)).clamp_min(_EPSILON))
    largest = rows.abs().amax(1)
    best = WeightGrid(bits, torch.ones_like(largest))
    reach = (largest / best.high).clamp_min(_EPSILON)
    best_scale = reach.clone()
    best_error = torch.full_like(reach, torch.inf)
    for fraction in torch.linspace(1.0, SMALLEST_FRACTION, SEARCH_STEPS).tolist():
        scale = reach * fraction
        error = (WeightGrid(bits, scale).quantize(rows) - rows).square().sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    return WeightGrid(bits, best_scale)


@dataclass(frozen=True, slots=True)
class ActivationGrid:
    """Per-tensor affine grid of an activation: codes ``0 .. 2**bits - 1``, values ``scale * (code - zero_point)``.

    Attributes:
        bits: Width, 1..8.
        scale: Step, positive.
        zero_point: Code that stands for exactly zero; 0 for unsigned tensors.
    """

    bits: int
    scale: float
    zero_point: int

    def quantize(self, values: torch.Tensor) -> torch.Tensor:
        """Nearest grid values (halves to even), with a straight-through gradient inside the range."""
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, 0, 2**self.bits - 1)


def search_activation_grid(samples: torch.Tensor, bits: int, unsigned: bool) -> ActivationGrid:
    """Finds the clipping range with the least squared error on samples of the tensor.

    Both ends are shrunk by one factor; the range always holds zero, so that padding and ReLU stay exact.

    Args:
        samples: Values seen in calibration, any shape.
        bits: Width, 1..8.
        unsigned: True when the tensor cannot be negative.
    """
    values = samples.detach().flatten().to(torch.float32)
    low = 0.0 if unsigned else min(0.0, float(values.min()))
    high = max(0.0, float(values.max()))
    levels = 2**bits - 1
    best = ActivationGrid(bits, max((high - low) / levels, _EPSILON), 0)
    if high - low < _EPSILON:
        return best
    best_error = float("inf")
    for fraction in torch.linspace(1.0, 1.0 / SEARCH_STEPS, SEARCH_STEPS).tolist():
        scale = max((high - low) * fraction / levels, _EPSILON)
        grid = ActivationGrid(bits, scale, min(levels, max(0, round(-low * fraction / scale))))
        error = float((grid.quantize(values) - values).square().mean())
        if error < best_error:
            best, best_error = grid, error
    return best
