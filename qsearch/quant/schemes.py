"""How weights and activations are quantized, apart from the bit-width: the choices a study file makes."""

from __future__ import annotations

from dataclasses import dataclass

from qsearch.errors import SpecError, nearest
from qsearch.spec import QuantizerSpec

WEIGHT_GRIDS = ("symmetric", "narrow", "affine", "codebook")
WEIGHT_RANGES = ("mse", "min_max", "percentile", "aciq")
GRANULARITIES = ("tensor", "channel", "group")
ACTIVATION_GRIDS = ("auto", "symmetric")
ACTIVATION_RANGES = ("mse", "min_max", "ema", "percentile", "kl", "aciq")


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SpecError(f"{what} cannot be {value!r}", nearest(value, known))


def _check_number(what: str, value: float, valid: bool, hint: str) -> None:
    if not valid:
        raise SpecError(f"{what} cannot be {value}", hint)


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How a weight tensor is quantized. 1 bit is always the mid-rise pair, except on a codebook.

    Attributes:
        grid: ``symmetric`` (full two's-complement range), ``narrow`` (symmetric without the most negative code, so
            that 2 bits are ternary), ``affine`` (unsigned codes and an integer zero point) or ``codebook`` (k-means
            centroids, one codebook a layer).
        granularity: What shares a scale: the ``tensor``, an output ``channel``, or a ``group`` of inputs of one output
            channel. A codebook always belongs to the whole layer.
        group_size: Inputs a group, along the flattened row ``[out, in * kh * kw]``; the last group may be shorter.
        power_of_two: Scales are powers of two.
        range: ``mse`` (least ``|error| ** norm``, searched), ``min_max``, ``percentile`` or ``aciq``.
        norm: Exponent of the error that ``mse`` minimises.
        percentile: Percent of the values that ``percentile`` does not clip.
        negative_scales: A channel of a ``symmetric`` grid may have a negative scale: its two's-complement codes then
            reach one step further up than down. The requantization multiplier of the channel carries the sign.

    Raises:
        SpecError: A choice does not exist or a number is out of range.
    """

    grid: str = "symmetric"
    granularity: str = "channel"
    group_size: int = 32
    power_of_two: bool = False
    range: str = "mse"
    norm: float = 2.0
    percentile: float = 99.99
    negative_scales: bool = True

    def __post_init__(self) -> None:
        _check_choice("a weight grid", self.grid, WEIGHT_GRIDS)
        _check_choice("the granularity", self.granularity, GRANULARITIES)
        _check_choice("a weight range", self.range, WEIGHT_RANGES)
        _check_number("group_size", self.group_size, self.group_size >= 1, "use at least 1")
        _check_number("norm", self.norm, self.norm > 0, "use a positive exponent, such as 2.0")
        _check_number("percentile", self.percentile, 50 < self.percentile <= 100, "use more than 50, at most 100")
        if self.grid == "codebook" and self.power_of_two:
            raise SpecError("a codebook has no scale that could be a power of two", "set power_of_two: false")


@dataclass(frozen=True, slots=True)
class ActivationScheme:
    """How activation tensors are quantized; always one scale a tensor.

    Attributes:
        grid: For tensors that the graph does not show to be non-negative: ``auto`` takes unsigned codes and a zero
            point, ``symmetric`` signed two's-complement codes. Non-negative tensors have unsigned codes in both.
        power_of_two: The scale is a power of two.
        range: ``mse`` (least ``|error| ** norm``, searched), ``min_max``, ``ema`` (moving average of the extremes of
            batches), ``percentile``, ``kl`` or ``aciq``.
        norm: Exponent of the error that ``mse`` minimises.
        percentile: Percent of the values that ``percentile`` does not clip.
        momentum: Share of the past in the moving average of ``ema``.

    Raises:
        SpecError: A choice does not exist or a number is out of range.
    """

    grid: str = "auto"
    power_of_two: bool = False
    range: str = "mse"
    norm: float = 2.0
    percentile: float = 99.99
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check_choice("an activation grid", self.grid, ACTIVATION_GRIDS)
        _check_choice("an activation range", self.range, ACTIVATION_RANGES)
        _check_number("norm", self.norm, self.norm > 0, "use a positive exponent, such as 2.0")
        _check_number("percentile", self.percentile, 50 < self.percentile <= 100, "use more than 50, at most 100")
        _check_number("momentum", self.momentum, 0 <= self.momentum < 1, "use at least 0 and less than 1")


def weight_scheme(spec: QuantizerSpec) -> WeightScheme:
    """The weight scheme of a study file."""
    return WeightScheme(**spec.weights.model_dump())


def activation_scheme(spec: QuantizerSpec) -> ActivationScheme:
    """The activation scheme of a study file."""
    return ActivationScheme(**spec.activations.model_dump())
