"""Quantization grids: which values a tensor may take at b bits.

A grid holds the values ``scale * (code - zero)`` for whole codes from ``low`` to ``high``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from qsearch.errors import EvaluationError
from qsearch.quant.lp_search import affine_grid, nearest_powers_of_two, search_affine, search_scale
from qsearch.quant.observers import aciq_threshold, kl_threshold, moving_extremes, percentile_bounds
from qsearch.quant.schemes import ActivationScheme, WeightScheme

#: Smallest scale of a weight grid; channels without any weight get it.
WEIGHT_EPSILON = 2.0**-40
#: Smallest scale of an activation grid: codes of any sensible activation still fit an integer.
ACTIVATION_EPSILON = 2.0**-26

_WIDTHS = range(1, 9)
_UNSET = -(2**31)


def _check_bits(bits: int) -> None:
    if bits not in _WIDTHS:
        raise EvaluationError(f"there is no grid of {bits} bits", "widths from 1 to 8 bits are evaluated")


@dataclass(frozen=True, eq=False)
class WeightGrid:
    """Grid of a weight tensor ``[rows, ...]``; rows are output channels.

    A 1-bit grid is always mid-rise: codes 0 and 1, zero 0.5, values ``-scale / 2`` and ``scale / 2``. It has no zero.

    Attributes:
        bits: Width, 1..8.
        scale: ``[rows, n_scales]``, float32, not 0: one scale a row, or one a group of inputs. With granularity
            ``tensor`` all rows have the same. A negative one mirrors the codes of its row.
        zero: Code that stands for zero, shape of ``scale``; whole numbers but at 1 bit.
        low: Smallest code.
        high: Largest code.
        group_size: Inputs a scale, along the flattened row; 0 for one scale a row.
        power_of_two: Scales are powers of two.
    """

    bits: int
    scale: torch.Tensor
    zero: torch.Tensor
    low: int
    high: int
    group_size: int = 0
    power_of_two: bool = False

    @classmethod
    def symmetric(cls, bits: int, scale: torch.Tensor, *, narrow: bool = False, group_size: int = 0) -> WeightGrid:
        """The grid without zero point; mid-rise at 1 bit.

        Args:
            bits: Width, 1..8.
            scale: ``[rows]`` or ``[rows, n_scales]``.
            narrow: Leave the most negative code out.
            group_size: Inputs a scale; 0 for one scale a row.
        """
        _check_bits(bits)
        scale = scale[:, None] if scale.dim() == 1 else scale
        low, high = _symmetric_codes(bits, narrow)
        zero = torch.full_like(scale, 0.5 if bits == 1 else 0.0)
        return cls(bits, scale, zero, low, high, group_size)

    def columns(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero of every element of flattened rows.

        Args:
            width: Elements of a row.

        Returns:
            Two tensors ``[rows, 1]``, or ``[rows, width]`` when the grid has groups.
        """
        if self.group_size == 0:
            return self.scale, self.zero
        scale, zero = (t.repeat_interleave(self.group_size, 1)[:, :width] for t in (self.scale, self.zero))
        return scale, zero

    def encode(self, weight: torch.Tensor) -> torch.Tensor:
        """Nearest codes of a weight tensor ``[rows, ...]``, same shape, float."""
        rows = weight.flatten(1)
        scale, zero = (t.to(weight.device) for t in self.columns(rows.shape[1]))
        return torch.clamp(torch.round(rows / scale + zero), self.low, self.high).view_as(weight)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Values of codes ``[rows, ...]``, same shape."""
        rows = codes.flatten(1)
        scale, zero = (t.to(codes.device) for t in self.columns(rows.shape[1]))
        return ((rows - zero) * scale).view_as(codes)

    def quantize(self, weight: torch.Tensor) -> torch.Tensor:
        """Nearest grid values of a weight tensor ``[rows, ...]``."""
        return self.decode(self.encode(weight))

    def rescaled(self, factor: torch.Tensor) -> WeightGrid:
        """The grid with the scales of every row times a factor; equal codes then stand for scaled values.

        Args:
            factor: ``[rows]``, positive.

        Raises:
            ValueError: A factor is not positive, or the scales must stay powers of two.
        """
        if self.power_of_two:
            raise ValueError("power-of-two scales cannot take any factor")
        if not bool((factor > 0).all()):
            raise ValueError("the factors of scales must be positive")
        return replace(self, scale=self.scale * factor.to(self.scale)[:, None])

    def to(self, device: torch.device | str) -> WeightGrid:
        """The grid on another device."""
        return replace(self, scale=self.scale.to(device), zero=self.zero.to(device))


def _symmetric_codes(bits: int, narrow: bool) -> tuple[int, int]:
    if bits == 1:
        return 0, 1
    high = 2 ** (bits - 1) - 1
    return (-high if narrow else -high - 1), high


def search_weight_grid(
    weight: torch.Tensor,
    bits: int,
    scheme: WeightScheme | None = None,
    importance: torch.Tensor | None = None,
) -> WeightGrid:
    """Finds the grid of a weight tensor.

    At 1 bit the scale has a closed form in every scheme: half of it is the mean magnitude, weighted by importance,
    the least-squares optimum (XNOR-Net, Rastegari et al. 2016, eq. 6).

    Args:
        weight: ``[rows, ...]``, rows are output channels.
        bits: Width, 1..8.
        scheme: How; by default :class:`WeightScheme` with its own defaults.
        importance: Positive weights of the error of each element of a flattened row, ``[rows, width]`` or
            ``[1, width]``, such as the diagonal of the layer's Hessian. Only ``mse`` and the choices made by error
            (1 bit, powers of two) use it.

    Raises:
        EvaluationError: There is no grid of that width, or the scheme is ``codebook``
            (:func:`qsearch.quant.codebook.search_codebook` makes those).
    """
    scheme = scheme or WeightScheme()
    _check_bits(bits)
    if scheme.grid == "codebook":
        raise EvaluationError("a codebook has no scales", "search it with search_codebook")
    rows = weight.detach().flatten(1)
    count, width = rows.shape
    if importance is not None:
        importance = importance.detach().to(rows).clamp_min(0.0)
    if may_be_negative(scheme, bits):
        up, down = orientations(rows, bits, scheme, importance)
        errors = [_weighted_error(grid, rows, importance, scheme.norm) for grid in (up, down)]
        return replace(up, scale=torch.where(errors[1] < errors[0], down.scale, up.scale))
    if scheme.granularity == "tensor":
        flat = None if importance is None else importance.expand(count, width).reshape(1, -1)
        scale, zero = (t.expand(count, 1) for t in _row_grids(rows.reshape(1, -1), flat, bits, scheme))
    elif scheme.granularity == "channel" or width <= scheme.group_size:
        scale, zero = _row_grids(rows, importance, bits, scheme)
    else:
        scale, zero = _group_grids(rows, importance, bits, scheme)
    low, high = (0, 2**bits - 1) if scheme.grid == "affine" else _symmetric_codes(bits, scheme.grid == "narrow")
    group_size = scheme.group_size if scale.shape[1] > 1 else 0
    return WeightGrid(bits, scale.contiguous(), zero.contiguous(), low, high, group_size, scheme.power_of_two)


def may_be_negative(scheme: WeightScheme, bits: int) -> bool:
    """Whether every row may choose the sign of its scale."""
    free = not scheme.power_of_two and scheme.granularity != "tensor"  # a shift has no sign, a tensor has one for all
    return scheme.negative_scales and scheme.grid == "symmetric" and free and bits > 1


def orientations(
    weight: torch.Tensor, bits: int, scheme: WeightScheme, importance: torch.Tensor | None
) -> tuple[WeightGrid, WeightGrid]:
    """The best grid with positive and the best with negative scales; see :func:`search_weight_grid`."""
    one_way = replace(scheme, negative_scales=False)
    up = search_weight_grid(weight, bits, one_way, importance)
    down = search_weight_grid(-weight, bits, one_way, importance)
    return up, replace(down, scale=-down.scale)


def _weighted_error(grid: WeightGrid, rows: torch.Tensor, importance: torch.Tensor | None, norm: float) -> torch.Tensor:
    """Error of every row, ``[rows, 1]``."""
    error = (grid.quantize(rows) - rows).abs().pow(norm)
    return (error if importance is None else error * importance).sum(1, keepdim=True)


def _group_grids(
    rows: torch.Tensor, importance: torch.Tensor | None, bits: int, scheme: WeightScheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of every group, ``[rows, groups]`` each; the last group may be shorter."""
    count, width = rows.shape
    size = scheme.group_size
    scales, zeros = [], []
    whole = width // size * size
    for start, stop, length in ((0, whole, size), (whole, width, width - whole)):
        if length == 0:
            continue
        part = None
        if importance is not None:
            part = importance[:, start:stop].expand(count, stop - start).reshape(-1, length)
        scale, zero = _row_grids(rows[:, start:stop].reshape(-1, length), part, bits, scheme)
        scales.append(scale.reshape(count, -1))
        zeros.append(zero.reshape(count, -1))
    return torch.cat(scales, 1), torch.cat(zeros, 1)


def _row_grids(
    rows: torch.Tensor, importance: torch.Tensor | None, bits: int, scheme: WeightScheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of every row of ``[R, n]``, ``[R, 1]`` each."""
    if importance is not None:
        # A row whose elements all count nothing would accept any scale.
        importance = torch.where(importance.sum(1, keepdim=True) > 0, importance, 1.0)
    affine = scheme.grid == "affine" and bits > 1
    low, high = (0, 2**bits - 1) if affine else _symmetric_codes(bits, scheme.grid == "narrow")
    if bits == 1:
        scale, zero = _mid_rise(rows, importance, scheme.power_of_two)
    elif scheme.range == "mse":
        if affine:
            scale, zero = search_affine(rows, importance, bits, scheme.norm)
        else:
            scale = search_scale(rows, importance, low, high, scheme.norm)
            zero = torch.zeros_like(scale)
    else:
        scale, zero = _observed(rows, bits, low, high, affine, scheme)
    scale = scale.clamp_min(WEIGHT_EPSILON)
    if scheme.power_of_two and bits > 1:
        scale, zero = nearest_powers_of_two(rows, importance, scale, zero, low, high, scheme.norm, movable=affine)
        scale = scale.clamp_min(WEIGHT_EPSILON)
    return scale[:, None], zero[:, None]


def _mid_rise(
    rows: torch.Tensor, importance: torch.Tensor | None, power_of_two: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = torch.ones_like(rows) if importance is None else importance.expand_as(rows)
    scale = (2 * (rows.abs() * weights).sum(1) / weights.sum(1)).clamp_min(WEIGHT_EPSILON)
    if power_of_two:
        below = torch.exp2(torch.floor(torch.log2(scale.double()))).to(scale.dtype)
        # The error is a parabola in the scale, so the nearer power has the smaller one.
        scale = torch.where(scale - below <= 2 * below - scale, below, 2 * below)
    return scale, torch.full_like(scale, 0.5)


def _observed(
    rows: torch.Tensor, bits: int, low: int, high: int, affine: bool, scheme: WeightScheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of every row from an observer, ``[R]`` each."""
    if scheme.range == "aciq":
        centre = rows.mean(1) if affine else torch.zeros_like(rows[:, 0])
        reach = aciq_threshold(rows - centre[:, None], bits, one_sided=False)
        bottom, top = centre - reach, centre + reach
        if not affine:
            # ACIQ spreads the codes evenly over the range; a full-range grid has one more below zero than above.
            scale = 2 * reach / (high - low)
            return scale, torch.zeros_like(scale)
        bottom, top = bottom.maximum(rows.amin(1)), top.minimum(rows.amax(1))
    elif scheme.range == "percentile" and not affine:
        _, top = percentile_bounds(rows.abs(), scheme.percentile)
        bottom = -top
    elif scheme.range == "percentile":
        bottom, top = percentile_bounds(rows, scheme.percentile)
    else:
        bottom, top = rows.amin(1), rows.amax(1)
    bottom, top = bottom.clamp_max(0.0), top.clamp_min(0.0)
    if affine:
        return affine_grid(bottom, top, high - low)
    scale = (top / high).maximum(bottom / low)
    return scale, torch.zeros_like(scale)


@dataclass(frozen=True, slots=True)
class ActivationGrid:
    """Per-tensor grid of an activation: values ``scale * (code - zero_point)``. Zero is always one of them.

    Attributes:
        bits: Width, 1..8.
        scale: Step, positive.
        zero_point: Code that stands for zero; 0 for unsigned and for symmetric grids.
        low: Smallest code.
        high: Largest code; by default ``2**bits - 1``.
    """

    bits: int
    scale: float
    zero_point: int
    low: int = 0
    high: int = _UNSET

    def __post_init__(self) -> None:
        if self.high == _UNSET:
            object.__setattr__(self, "high", 2**self.bits - 1)

    def quantize(self, values: torch.Tensor) -> torch.Tensor:
        """Nearest grid values (halves to even), with a straight-through gradient inside the range."""
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, self.low, self.high)


def search_activation_grid(
    samples: torch.Tensor | Sequence[torch.Tensor],
    bits: int,
    unsigned: bool,
    scheme: ActivationScheme | None = None,
    batches: Sequence[torch.Tensor] | None = None,
) -> ActivationGrid:
    """Finds the grid of an activation tensor.

    The range always holds zero, so that padding and ReLU stay exact. At 1 bit a tensor that can be negative has the
    values 0 and ``scale``, or ``-scale`` and 0, in every scheme: two's complement would have no positive one.

    Args:
        samples: Values seen in calibration, any shape; or one tensor a batch.
        bits: Width, 1..8.
        unsigned: True when the tensor cannot be negative.
        scheme: How; by default :class:`ActivationScheme` with its own defaults.
        batches: (min, max) of every calibration batch, for ``ema``; by default those of ``samples``.

    Raises:
        EvaluationError: There is no grid of that width.
    """
    scheme = scheme or ActivationScheme()
    _check_bits(bits)
    parts = [samples] if isinstance(samples, torch.Tensor) else list(samples)
    values = torch.cat([part.detach().flatten().float() for part in parts])[None]
    if batches is None:
        batches = [torch.stack(torch.aminmax(part.detach())) for part in parts]
    # What never was negative needs no codes there; whether codes have a sign is decided by the graph alone.
    unsigned = unsigned or (scheme.grid == "auto" and float(values.min()) >= 0.0)
    signed_codes = not unsigned and scheme.grid == "symmetric" and bits > 1
    low, high = _symmetric_codes(bits, narrow=False) if signed_codes else (0, 2**bits - 1)
    movable = not unsigned and not signed_codes
    if scheme.range == "mse":
        if movable:
            scale, zero = search_affine(values, None, bits, scheme.norm)
        else:
            scale = search_scale(values, None, low, high, scheme.norm)
            zero = torch.zeros_like(scale)
    else:
        bottom, top = _activation_range(values, bits, unsigned, scheme, batches)
        if movable:
            scale, zero = affine_grid(torch.tensor([bottom]), torch.tensor([top]), high)
        else:
            scale = torch.tensor([max(top / high, bottom / low if low < 0 else 0.0)])
            zero = torch.zeros_like(scale)
        scale, zero = scale.to(values), zero.to(values)
    scale = scale.clamp_min(ACTIVATION_EPSILON)
    if scheme.power_of_two:
        scale, zero = nearest_powers_of_two(values, None, scale, zero, low, high, scheme.norm, movable=movable)
        scale = scale.clamp_min(ACTIVATION_EPSILON)
    return ActivationGrid(bits, float(scale), int(zero), low, high)


def _activation_range(
    values: torch.Tensor, bits: int, unsigned: bool, scheme: ActivationScheme, batches: Sequence[torch.Tensor]
) -> tuple[float, float]:
    """Range of an observer; holds zero, and does not exceed what was seen."""
    bottom, top = float(values.min()), float(values.max())
    if scheme.range == "ema":
        bottom, top = moving_extremes(batches, scheme.momentum)
    elif scheme.range == "percentile":
        bottom, top = (float(bound) for bound in percentile_bounds(values, scheme.percentile))
    elif scheme.range == "kl":
        # A signed tensor has half of the codes on each side.
        threshold = kl_threshold(
            values.clamp_min(0.0) if unsigned else values.abs(), 2**bits if unsigned else 2 ** (bits - 1)
        )
        bottom, top = max(bottom, -threshold), min(top, threshold)
    elif scheme.range == "aciq":
        centre = 0.0 if unsigned or scheme.grid == "symmetric" else float(values.mean())
        reach = float(aciq_threshold(values - centre, bits, one_sided=unsigned))
        bottom, top = max(bottom, centre - reach), min(top, centre + reach)
    return (0.0 if unsigned else min(bottom, 0.0)), max(top, 0.0)
