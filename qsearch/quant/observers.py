"""Observers: the range of values that a grid should cover, from statistics instead of an error search.

All but :func:`kl_threshold` and :func:`moving_extremes` work on many rows ``[R, n]`` at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch

#: Bins of the histogram of :func:`kl_threshold`.
KL_BINS = 2048
_KL_THRESHOLDS = 256
_KL_FLOOR = 1e-4

#: A Laplace distribution is likelier than a normal one when E|x - m| is less than this share of the standard
#: deviation (the maximum-likelihood fits compared): sqrt(pi / (2 e)).
_LAPLACE_BELOW = math.sqrt(math.pi / (2 * math.e))


def percentile_bounds(values: torch.Tensor, percent: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Values that ``100 - percent`` and ``percent`` percent of every row do not exceed.

    Args:
        values: ``[R, n]``.
        percent: More than 50, at most 100.

    Returns:
        Lower and upper bound, ``[R]`` each; values of the row, not interpolated.
    """
    count = values.shape[1]
    # Rounded first: 0.9999 * 10,000 is not a whole number in floating point.
    rank = min(count, max(1, math.ceil(round(percent / 100 * count, 6))))
    return values.kthvalue(count - rank + 1, dim=1).values, values.kthvalue(rank, dim=1).values


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that falls from ``low`` to ``high`` crosses zero, by bisection."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


@cache
def laplace_clip(bits: int) -> float:
    """Best threshold of a centred Laplace variable, in units of b = E|x|.

    ACIQ (Banner, Nahshan, Soudry 2019, "Post-training 4-bit quantization of convolutional networks for
    rapid-deployment", eq. 5 to 7): the error ``2 b^2 exp(-t / b) + t^2 / (3 * 4^bits)`` is least at
    ``t / b * exp(t / b) = 3 * 4^bits``: 2.83, 3.89 and 5.03 at 2, 3 and 4 bits.
    """
    return _root(lambda t: 3 * 4.0**bits - t * math.exp(t), 0.0, 20.0)


@cache
def gauss_clip(bits: int) -> float:
    """Best threshold of a centred normal variable, in units of its standard deviation s.

    ACIQ (as :func:`laplace_clip`): derivative of ``(t^2 + s^2) erfc(t / (sqrt(2) s)) + t^2 / (3 * 4^bits)
    - sqrt(2 / pi) t s exp(-t^2 / (2 s^2))`` set to zero: 1.71, 2.15 and 2.55 at 2, 3 and 4 bits.
    """

    def descent(t: float) -> float:
        clipping = 2 * math.sqrt(2 / math.pi) * math.exp(-t * t / 2) - 2 * t * math.erfc(t / math.sqrt(2))
        return clipping - 2 * t / (3 * 4.0**bits)

    return _root(descent, 0.0, 20.0)


def aciq_threshold(deviation: torch.Tensor, bits: int, one_sided: bool) -> torch.Tensor:
    """Clipping threshold for the likelier of a Laplace and a normal distribution.

    Args:
        deviation: ``[R, n]``, distances from the centre, with sign.
        bits: Width, 1..8.
        one_sided: All codes serve one side, as after a ReLU: the values above zero are taken for one half of the
            distribution, and its steps are half as wide, as with one bit more.

    Returns:
        Distance from the centre, ``[R]``.
    """
    weight = (deviation > 0).to(deviation.dtype) if one_sided else torch.ones_like(deviation)
    count = weight.sum(1).clamp_min(1.0)
    mean_magnitude = (deviation.abs() * weight).sum(1) / count
    sigma = ((deviation.square() * weight).sum(1) / count).sqrt()
    bits += one_sided
    is_laplace = mean_magnitude < _LAPLACE_BELOW * sigma
    return torch.where(is_laplace, laplace_clip(bits) * mean_magnitude, gauss_clip(bits) * sigma)


def kl_threshold(magnitudes: torch.Tensor, levels: int) -> float:
    """Threshold that keeps the distribution of magnitudes, in the sense of the Kullback-Leibler divergence.

    The entropy calibration of Migacz ("8-bit inference with TensorRT", 2017): for every threshold the histogram below
    it, with the clipped values in its last bin, is compared with itself at ``levels`` levels. Exact zeros do not count:
    every grid holds them.

    Args:
        magnitudes: Non-negative values, any shape.
        levels: Levels between zero and the threshold.

    Returns:
        The threshold; 0 when all values are zero.
    """
    values = magnitudes[magnitudes > 0].float()
    if values.numel() == 0:
        return 0.0
    top = float(values.max())
    levels = min(max(levels, 2), KL_BINS)
    histogram = torch.histc(values, KL_BINS, 0.0, top).double().cpu().numpy()
    total = histogram.sum()
    best, threshold = math.inf, top
    ends = range(KL_BINS, levels - 1, -max(1, (KL_BINS - levels) // _KL_THRESHOLDS))
    for end in ends:
        kept = histogram[:end]
        reference = kept.copy()
        reference[-1] += total - kept.sum()
        level = np.arange(end) * levels // end
        used = kept > 0
        share = np.bincount(level, kept, levels) / np.maximum(np.bincount(level, used, levels), 1)
        # Smoothed: a bin that only clipped values fill would make the divergence infinite.
        model = np.maximum(np.where(used, share[level], 0.0) / max(kept.sum(), 1.0), _KL_FLOOR / end)
        filled = reference > 0
        probability = reference[filled] / total
        divergence = float((probability * np.log(probability / (model[filled] / model.sum()))).sum())
        if divergence < best:
            best, threshold = divergence, top * end / KL_BINS
    return threshold


def moving_extremes(extremes: Sequence[torch.Tensor], momentum: float) -> tuple[float, float]:
    """Exponential moving average of the extremes of batches (Jacob et al. 2018, section 3.1).

    Args:
        extremes: (min, max) of every batch, in order, at least one.
        momentum: Share of the past.

    Returns:
        Averaged minimum and maximum.
    """
    average = extremes[0].double()
    for pair in extremes[1:]:
        average = momentum * average + (1 - momentum) * pair.double()
    return float(average[0]), float(average[1])
