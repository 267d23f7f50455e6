"""Observers against published numbers, distributions and values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsearch.quant.grids import search_activation_grid, search_weight_grid
from qsearch.quant.observers import (
    aciq_threshold,
    gauss_clip,
    kl_threshold,
    laplace_clip,
    moving_extremes,
    percentile_bounds,
)
from qsearch.quant.schemes import ActivationScheme, WeightScheme


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=generator(seed))


def laplace(n: int, seed: int = 0) -> torch.Tensor:
    uniform = torch.rand(n, generator=generator(seed), dtype=torch.float64) - 0.5
    return (-uniform.sign() * torch.log1p(-2 * uniform.abs())).float()


def test_thresholds_are_those_of_the_paper() -> None:
    """Banner et al. 2019: 2.83 b, 3.89 b, 5.03 b for Laplace, 1.71, 2.15, 2.55 standard deviations for normal."""
    assert [laplace_clip(b) for b in (2, 3, 4)] == pytest.approx([2.83, 3.89, 5.03], abs=0.01)
    assert [gauss_clip(b) for b in (2, 3, 4)] == pytest.approx([1.71, 2.15, 2.55], abs=0.01)


@pytest.mark.parametrize("bits", range(1, 9))
def test_thresholds_minimise_the_error_they_model(bits: int) -> None:
    """The modelled error, integrated numerically, is not less at thresholds nearby."""
    x = torch.linspace(0, 60, 600_001, dtype=torch.float64)
    for density, clip in ((torch.exp(-x) / 2, laplace_clip(bits)), (torch.exp(-x * x / 2) / 2.5066, gauss_clip(bits))):

        def error(t: float, density: torch.Tensor = density) -> float:
            clipping = 2 * torch.trapezoid(((x - t).clamp_min(0) ** 2) * density, x)
            return float(clipping) + t * t / (3 * 4**bits)

        assert error(clip) <= min(error(clip * 0.99), error(clip * 1.01))


def test_the_likelier_distribution_decides() -> None:
    for scale in (0.01, 1.0, 100.0):
        gauss = aciq_threshold(normal(50_000)[None] * scale, 4, one_sided=False)
        assert gauss.item() == pytest.approx(2.55 * scale, rel=0.02)
        heavy = aciq_threshold(laplace(50_000)[None] * scale, 4, one_sided=False)
        assert heavy.item() == pytest.approx(5.03 * scale, rel=0.02)
    both = aciq_threshold(torch.stack([normal(50_000), laplace(50_000)]), 4, one_sided=False)
    assert both.tolist() == pytest.approx([2.55, 5.03], rel=0.02)


def test_one_sided_codes_are_twice_as_dense() -> None:
    rectified = normal(50_000).relu()[None]
    assert aciq_threshold(rectified, 4, one_sided=True).item() == pytest.approx(gauss_clip(5), rel=0.02)
    assert aciq_threshold(laplace(50_000).relu()[None], 4, True).item() == pytest.approx(laplace_clip(5), rel=0.02)
    assert aciq_threshold(torch.zeros(1, 5), 4, one_sided=True).item() == 0.0


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_aciq_is_near_the_search_on_its_own_distributions(bits: int) -> None:
    for samples, unsigned in ((normal(20_000), False), (laplace(20_000).relu(), True), (normal(20_000).relu(), True)):
        errors = []
        for how in ("aciq", "mse"):
            grid = search_activation_grid(samples, bits, unsigned, ActivationScheme(range=how))
            errors.append(float((grid.quantize(samples) - samples).square().mean()))
        assert errors[1] <= errors[0] <= 1.2 * errors[1]
    weight = torch.stack([normal(5000), laplace(5000)])
    for name, limit in (
        ("symmetric", 1.3),
        ("affine", 1.25),
    ):  # the code that has no partner costs symmetric grids some
        errors = [
            (search_weight_grid(weight, bits, WeightScheme(grid=name, range=how)).quantize(weight) - weight)
            .square()
            .mean(1)
            for how in ("aciq", "mse")
        ]
        assert (errors[0] <= limit * errors[1]).all(), name


def test_percentiles_by_hand() -> None:
    values = torch.stack([torch.arange(1.0, 101.0), -torch.arange(1.0, 101.0)])
    low, high = percentile_bounds(values, 90.0)
    assert low.tolist() == [11.0, -90.0]
    assert high.tolist() == [90.0, -11.0]
    assert [t.tolist() for t in percentile_bounds(values, 100.0)] == [[1.0, -100.0], [100.0, -1.0]]
    _, high = percentile_bounds(torch.arange(1.0, 10_001.0)[None], 99.99)
    assert high.item() == 9999.0


@given(st.integers(1, 400), st.floats(50.1, 100.0), st.integers(0, 1000))
def test_percentiles_clip_no_more_than_they_say(count: int, percent: float, seed: int) -> None:
    values = normal(count, seed)[None]
    low, high = percentile_bounds(values, percent)
    assert (values > high).sum() <= (100 - percent) / 100 * count + 1e-6
    assert (values < low).sum() <= (100 - percent) / 100 * count + 1e-6


def test_percentile_grids_ignore_the_outlier() -> None:
    samples = torch.cat([torch.linspace(0, 1, 9999), torch.tensor([1000.0])])
    scheme = ActivationScheme(range="percentile", percentile=99.9)
    assert search_activation_grid(samples, 8, True, scheme).scale == pytest.approx(1 / 255, rel=0.01)
    weight = torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([1000.0])])[None]
    grid = search_weight_grid(weight, 8, WeightScheme(range="percentile", percentile=99.9))
    assert abs(grid.scale.item()) == pytest.approx(1 / 127, rel=0.01)


def test_moving_average_by_hand() -> None:
    extremes = [torch.tensor([0.0, 1.0]), torch.tensor([-10.0, 2.0]), torch.tensor([0.0, 4.0])]
    low, high = moving_extremes(extremes, 0.9)
    assert (low, high) == pytest.approx((-0.9, 0.9 * (0.9 + 0.2) + 0.4))
    assert moving_extremes(extremes, 0.0) == (0.0, 4.0)
    assert moving_extremes(extremes[:1], 0.5) == (0.0, 1.0)


def test_kl_keeps_the_bulk_and_gives_up_outliers() -> None:
    bulk = normal(100_000).abs()
    top = float(bulk.max())
    with_outlier = torch.cat([bulk, torch.tensor([20 * top])])
    assert kl_threshold(with_outlier, 128) < 2 * top
    # A flat distribution loses at any threshold.
    flat = torch.linspace(0.001, 1, 100_000)
    assert kl_threshold(flat, 16) > 0.97


def test_kl_by_hand() -> None:
    """Values on as many bins as there are levels: the full range is exact, so nothing is clipped."""
    values = torch.arange(1, 9).repeat_interleave(100).float()
    assert kl_threshold(values, 2048) == 8.0
    assert kl_threshold(torch.zeros(10), 16) == 0.0
    assert kl_threshold(torch.tensor([3.0]), 2) == 3.0


def test_kl_does_not_count_zeros() -> None:
    values = normal(20_000).relu()
    more = torch.cat([values, torch.zeros(200_000)])
    assert kl_threshold(values, 16) == kl_threshold(more, 16)


@given(st.integers(0, 1000), st.sampled_from([2, 8, 64, 256]), st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_kl_threshold_is_in_the_range_and_scales(seed: int, levels: int, factor: float) -> None:
    values = laplace(2000, seed).abs()
    threshold = kl_threshold(values, levels)
    assert 0 < threshold <= float(values.max()) * (1 + 1e-6)
    assert kl_threshold(values * factor, levels) == pytest.approx(threshold * factor, rel=0.05)


@pytest.mark.parametrize("how", ["min_max", "ema", "percentile", "kl", "aciq"])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_observer_gives_a_usable_range(how: str, bits: int) -> None:
    for samples, unsigned in ((normal(20_000) - 0.4, False), (normal(20_000).relu(), True)):
        for name in ("auto", "symmetric"):
            grid = search_activation_grid(samples, bits, unsigned, ActivationScheme(grid=name, range=how))
            signal = float(samples.square().mean())
            error = float((grid.quantize(samples) - samples).square().mean())
            assert 10 * math.log10(signal / error) > (13 if bits == 4 else 28), (how, name)
            reach = float(samples.max() if name == "auto" else samples.abs().max())
            assert (grid.high - grid.zero_point) * grid.scale <= reach * 1.01 + grid.scale
