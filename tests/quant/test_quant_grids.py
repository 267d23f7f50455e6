"""Weight and activation grids against values worked out by hand and against laws."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qsearch.quant import ActivationGrid, WeightGrid, search_activation_grid, search_weight_grid
from qsearch.quant.grids import SEARCH_STEPS, SMALLEST_FRACTION

BITS = range(1, 9)

numbers = st.floats(-1e6, 1e6, width=32)
rows = st.lists(numbers, min_size=1, max_size=20)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("bits", "low", "high"),
    [(2, -2, 1), (3, -4, 3), (4, -8, 7), (5, -16, 15), (6, -32, 31), (7, -64, 63), (8, -128, 127)],
)
def test_weight_grid_is_twos_complement(bits: int, low: int, high: int) -> None:
    grid = WeightGrid(bits, torch.tensor([0.5]))
    assert (grid.low, grid.high, grid.zero) == (low, high, 0.0)
    codes = torch.arange(low, high + 1.0)[None]
    assert torch.equal(grid.decode(codes), codes * 0.5)
    assert torch.equal(grid.encode(codes * 0.5), codes)
    assert torch.equal(grid.encode(torch.tensor([[1e9, -1e9]])), torch.tensor([[float(high), float(low)]]))


def test_weight_quantization_by_hand() -> None:
    weight = torch.tensor([[0.6, -0.3, 1.2, -9.0, 0.0], [0.6, -0.3, 1.2, -9.0, 0.0]])
    grid = WeightGrid(3, torch.tensor([0.5, 2.0]))
    assert grid.encode(weight).tolist() == [[1, -1, 2, -4, 0], [0, 0, 1, -4, 0]]
    assert grid.quantize(weight).tolist() == [[0.5, -0.5, 1.0, -2.0, 0.0], [0.0, 0.0, 2.0, -8.0, 0.0]]


def test_scales_belong_to_output_channels() -> None:
    weight = noise(3, 2, 5, 5) * torch.tensor([1.0, 10.0, 100.0])[:, None, None, None]
    grid = search_weight_grid(weight, 4)
    assert grid.scale.shape == (3,)
    for channel in range(3):
        assert search_weight_grid(weight[channel : channel + 1], 4).scale.item() == grid.scale[channel].item()


def test_one_bit_is_mid_rise_on_the_mean_magnitude() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, -6.0], [0.5, 0.5, 0.5, 0.5]])
    grid = search_weight_grid(weight, 1)
    assert (grid.low, grid.high, grid.zero) == (0, 1, 0.5)
    assert grid.quantize(weight).tolist() == [[3.0, -3.0, 3.0, -3.0], [0.5, 0.5, 0.5, 0.5]]
    assert not (grid.quantize(torch.zeros(2, 1)) == 0).any(), "there is no zero level"


@given(rows)
def test_one_bit_scale_is_optimal(row: list[float]) -> None:
    """Of all symmetric pairs +-a, a = mean |w| has the least squared error."""
    weight = torch.tensor([row], dtype=torch.float64)
    best = (search_weight_grid(weight, 1).quantize(weight) - weight).square().sum()
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        pair = torch.where(weight > 0, 1.0, -1.0) * weight.abs().mean() * factor
        assert best <= (pair - weight).square().sum() * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("bits", range(2, 9))
def test_searched_scale_beats_the_largest_magnitude(bits: int) -> None:
    weight = noise(8, 144, seed=bits)
    grid = search_weight_grid(weight, bits)
    high = 2 ** (bits - 1) - 1
    reach = WeightGrid(bits, weight.abs().amax(1) / high)
    found, largest = ((g.quantize(weight) - weight).square().sum(1) for g in (grid, reach))
    assert (found <= largest).all()
    if bits <= 6:
        assert (found < 0.95 * largest).any()


def brute_force(row: NDArray[np.float64], bits: int, fractions: NDArray[np.float64]) -> float:
    """Least squared error of any of the scales, in float64."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scales = np.abs(row).max() / high * fractions
    values = np.clip(np.round(row[:, None] / scales), low, high) * scales
    return float(((values - row[:, None]) ** 2).sum(0).min())


@pytest.mark.parametrize("bits", range(2, 9))
def test_search_equals_brute_force(bits: int) -> None:
    weight = noise(20, 6, seed=bits)
    grid = search_weight_grid(weight, bits)
    error = (grid.quantize(weight) - weight).double().square().sum(1)
    for channel in range(20):
        row = weight[channel].double().numpy()
        same = brute_force(row, bits, np.linspace(1, SMALLEST_FRACTION, SEARCH_STEPS))
        assert error[channel].item() == pytest.approx(same, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_search_is_close_to_the_best_of_all_scales(bits: int) -> None:
    weight = noise(10, 128, seed=bits)
    error = (search_weight_grid(weight, bits).quantize(weight) - weight).double().square().sum(1)
    for channel in range(10):
        best = brute_force(weight[channel].double().numpy(), bits, np.linspace(0.01, 1.2, 5000))
        assert error[channel].item() <= 1.02 * best


@pytest.mark.parametrize("bits", BITS)
def test_zero_and_constant_channels(bits: int) -> None:
    weight = torch.tensor([[0.0] * 4, [0.7] * 4, [-0.7] * 4])
    grid = search_weight_grid(weight, bits)
    assert torch.isfinite(grid.scale).all()
    assert (grid.scale > 0).all()
    torch.testing.assert_close(grid.quantize(weight), weight, rtol=1e-6, atol=1e-7)


@given(st.integers(1, 8), rows)
def test_weight_codes_are_in_range_and_quantizing_twice_changes_nothing(bits: int, row: list[float]) -> None:
    weight = torch.tensor([row])
    grid = search_weight_grid(weight, bits)
    codes = grid.encode(weight)
    assert torch.equal(codes, codes.round())
    assert grid.low <= codes.min() <= codes.max() <= grid.high
    once = grid.quantize(weight)
    assert torch.equal(grid.quantize(once), once)
    assert torch.equal(grid.encode(once), codes)


@given(st.integers(2, 8), rows)
def test_nearest_is_nearest(bits: int, row: list[float]) -> None:
    weight = torch.tensor([row], dtype=torch.float64)
    grid = search_weight_grid(weight, bits)
    values = grid.decode(torch.arange(grid.low, grid.high + 1.0, dtype=torch.float64)[None])
    distance = (weight[0, :, None] - values[0]).abs().amin(1)
    torch.testing.assert_close((grid.quantize(weight) - weight).abs()[0], distance, rtol=1e-9, atol=1e-9)


def test_weight_error_falls_with_bits() -> None:
    weight = noise(16, 64)
    errors = [float((search_weight_grid(weight, b).quantize(weight) - weight).square().mean()) for b in BITS]
    assert all(b < 0.6 * a for a, b in pairwise(errors)), errors


# --- activations


def test_activation_quantization_by_hand() -> None:
    grid = ActivationGrid(2, 0.5, 1)  # codes 0..3: -0.5, 0, 0.5, 1
    values = torch.tensor([-9.0, -0.4, -0.2, 0.0, 0.2, 0.3, 0.8, 1.0, 7.0])
    assert grid.quantize(values).tolist() == [-0.5, -0.5, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]


def test_activation_gradient_is_straight_through_inside_the_range() -> None:
    values = torch.tensor([-9.0, -0.4, 0.3, 7.0], requires_grad=True)
    ActivationGrid(2, 0.5, 1).quantize(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("bits", BITS)
def test_unsigned_spends_no_code_on_negative_values(bits: int) -> None:
    samples = noise(4096).relu()
    unsigned, affine = (search_activation_grid(samples, bits, flag) for flag in (True, False))
    assert unsigned.zero_point == 0
    assert affine == unsigned  # the data show the same
    both = search_activation_grid(noise(4096), bits, unsigned=False)
    assert bits == 1 or both.zero_point > 0
    # The claim of the graph wins over a calibration sample that contradicts it.
    assert search_activation_grid(noise(4096), bits, unsigned=True).zero_point == 0


@pytest.mark.parametrize("unsigned", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_activation_error_falls_with_bits(unsigned: bool, seed: int) -> None:
    """On continuous samples; not a law, since grids of b and b + 1 bits are not nested."""
    samples = noise(5000, seed=seed).relu() if unsigned else noise(5000, seed=seed) - 0.5
    errors = [
        float((search_activation_grid(samples, bits, unsigned).quantize(samples) - samples).square().mean())
        for bits in BITS
    ]
    assert all(b < a for a, b in pairwise(errors)), errors
    assert errors[-1] < 1e-4


@given(st.integers(1, 8), rows, st.booleans())
def test_activation_laws(bits: int, values: list[float], unsigned: bool) -> None:
    samples = torch.tensor(values)
    if unsigned:
        samples = samples.abs()
    grid = search_activation_grid(samples, bits, unsigned)
    levels = 2**bits - 1
    assert grid.scale > 0
    assert math.isfinite(grid.scale)
    assert 0 <= grid.zero_point <= levels
    assert grid.quantize(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0], "zero is exact"
    once = grid.quantize(samples)
    torch.testing.assert_close(grid.quantize(once), once, rtol=1e-6, atol=0)
    assert len(once.unique()) <= levels + 1
    # The full range is one of the candidates: there no value is off by more than half a step.
    step = (max(0.0, float(samples.max())) - min(0.0, float(samples.min()))) / levels
    error = float((once.double() - samples.double()).square().mean())
    assert error <= (step / 2) ** 2 * (1 + 1e-3) + 1e-12


@pytest.mark.parametrize("unsigned", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_all_zero_tensors(bits: int, unsigned: bool) -> None:
    grid = search_activation_grid(torch.zeros(10), bits, unsigned)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert grid.quantize(torch.zeros(4)).tolist() == [0.0] * 4
        assert torch.isfinite(grid.quantize(torch.tensor([-1e3, 1e3]))).all()


def test_one_bit_activations() -> None:
    on_off = search_activation_grid(torch.tensor([0.0, 0.0, 2.0, 2.0]), 1, unsigned=True)
    assert on_off.quantize(torch.tensor([0.0, 0.9, 1.1, 2.0])).tolist() == pytest.approx([0.0, 0.0, 2.0, 2.0])
    negative = search_activation_grid(torch.tensor([0.0, -2.0, -2.0]), 1, unsigned=False)
    assert negative.quantize(torch.tensor([-2.0, 0.0, 3.0])).tolist() == pytest.approx([-2.0, 0.0, 0.0])


def test_outliers_are_clipped_where_that_pays() -> None:
    samples = torch.cat([noise(10_000), torch.tensor([40.0])])
    assert search_activation_grid(samples, 4, unsigned=False).scale * 15 < 20  # the full range is about 44
    assert search_activation_grid(samples, 8, unsigned=False).scale * 255 > 35
