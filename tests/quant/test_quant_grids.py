"""Weight and activation grids against values worked out by hand, against brute force, and against laws."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qsearch.errors import EvaluationError
from qsearch.quant.grids import ActivationGrid, WeightGrid, search_activation_grid, search_weight_grid
from qsearch.quant.schemes import ActivationScheme, WeightScheme

BITS = range(1, 9)
GRIDS = ("symmetric", "narrow", "affine")
RANGES = ("mse", "min_max", "percentile", "aciq")

numbers = st.floats(-1e6, 1e6, width=32)
rows = st.lists(numbers, min_size=1, max_size=20)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def row_errors(grid: WeightGrid, weight: torch.Tensor, norm: float = 2.0) -> torch.Tensor:
    return (grid.quantize(weight) - weight).flatten(1).double().abs().pow(norm).sum(1)


# --- weight grids by hand


@pytest.mark.parametrize(
    ("bits", "low", "high"),
    [(2, -2, 1), (3, -4, 3), (4, -8, 7), (5, -16, 15), (6, -32, 31), (7, -64, 63), (8, -128, 127)],
)
def test_symmetric_is_twos_complement_and_narrow_leaves_one_code_out(bits: int, low: int, high: int) -> None:
    grid = search_weight_grid(noise(2, 9), bits)
    assert (grid.low, grid.high) == (low, high)
    assert not grid.zero.any()
    narrow = search_weight_grid(noise(2, 9), bits, WeightScheme(grid="narrow"))
    assert (narrow.low, narrow.high) == (low + 1, high)
    affine = search_weight_grid(noise(2, 9), bits, WeightScheme(grid="affine"))
    assert (affine.low, affine.high) == (0, 2**bits - 1)
    grid = WeightGrid.symmetric(bits, torch.tensor([0.5]))
    codes = torch.arange(low, high + 1.0)[None]
    assert torch.equal(grid.decode(codes), codes * 0.5)
    assert torch.equal(grid.encode(codes * 0.5), codes)
    assert torch.equal(grid.encode(torch.tensor([[1e9, -1e9]])), torch.tensor([[float(high), float(low)]]))


def test_narrow_two_bits_are_ternary() -> None:
    grid = search_weight_grid(noise(3, 50), 2, WeightScheme(grid="narrow"))
    for channel, values in enumerate(grid.quantize(noise(3, 50))):
        step = grid.scale[channel].item()
        assert values.unique().tolist() == pytest.approx([-step, 0.0, step])


def test_weight_quantization_by_hand() -> None:
    weight = torch.tensor([[0.6, -0.3, 1.2, -9.0, 0.0], [0.6, -0.3, 1.2, -9.0, 0.0]])
    grid = WeightGrid.symmetric(3, torch.tensor([0.5, 2.0]))
    assert grid.encode(weight).tolist() == [[1, -1, 2, -4, 0], [0, 0, 1, -4, 0]]
    assert grid.quantize(weight).tolist() == [[0.5, -0.5, 1.0, -2.0, 0.0], [0.0, 0.0, 2.0, -8.0, 0.0]]
    affine = WeightGrid(2, torch.tensor([[0.5], [2.0]]), torch.tensor([[1.0], [3.0]]), 0, 3)
    assert affine.encode(weight).tolist() == [[2, 0, 3, 0, 1], [3, 3, 3, 0, 3]]
    assert affine.quantize(weight).tolist() == [[0.5, -0.5, 1.0, -0.5, 0.0], [0.0, 0.0, 0.0, -6.0, 0.0]]


def test_groups_by_hand() -> None:
    scale = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    grid = WeightGrid(4, scale, torch.zeros_like(scale), -8, 7, group_size=2)
    assert grid.columns(5)[0].tolist() == [[1, 1, 10, 10, 100], [2, 2, 20, 20, 200]]
    assert grid.quantize(torch.full((2, 5), 12.0)).tolist() == [[7, 7, 10, 10, 0], [12, 12, 20, 20, 0]]
    weight = torch.full((2, 5, 1, 1), 12.0)
    assert grid.quantize(weight).shape == weight.shape


def test_scales_belong_to_what_shares_them() -> None:
    weight = noise(3, 2, 5, 5) * torch.tensor([1.0, 10.0, 100.0])[:, None, None, None]
    channel = search_weight_grid(weight, 4)
    assert channel.scale.shape == channel.zero.shape == (3, 1)
    for index in range(3):
        assert search_weight_grid(weight[index : index + 1], 4).scale.item() == channel.scale[index].item()
    tensor = search_weight_grid(weight, 4, WeightScheme(granularity="tensor"))
    assert tensor.scale.shape == (3, 1)
    assert len(tensor.scale.unique()) == 1
    one_way = WeightScheme(negative_scales=False)
    group = search_weight_grid(weight, 4, replace(one_way, granularity="group", group_size=16))
    assert group.scale.shape == (3, 4)  # 50 inputs: 16, 16, 16 and 2
    assert group.group_size == 16
    alone = search_weight_grid(weight.flatten(1)[:, 48:], 4, one_way)
    assert torch.equal(group.scale[:, 3], alone.scale[:, 0])
    assert group.columns(50)[0].shape == (3, 50)
    errors = [row_errors(g, weight).sum() for g in (group, channel, tensor)]
    assert errors[0] < errors[1] < errors[2]
    # Rows that fit one group have one scale a row.
    assert search_weight_grid(weight, 4, WeightScheme(granularity="group", group_size=64)).group_size == 0


def test_trap_06_a_depthwise_layer_needs_scales_per_channel() -> None:
    """Channels of a depthwise layer differ by orders of magnitude; one scale for all erases the weak ones."""
    weight = noise(32, 1, 3, 3) * torch.logspace(-3, 0, 32)[:, None, None, None]
    relative = {}
    for granularity in ("tensor", "channel"):
        grid = search_weight_grid(weight, 4, WeightScheme(granularity=granularity))
        relative[granularity] = row_errors(grid, weight) / weight.flatten(1).double().square().sum(1)
    assert (relative["channel"] < 0.05).all()
    assert (relative["tensor"] > 0.99).sum() >= 8


# --- one bit


def test_one_bit_is_mid_rise_on_the_mean_magnitude() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, -6.0], [0.5, 0.5, 0.5, 0.5]])
    for name in GRIDS:
        for how in RANGES:
            grid = search_weight_grid(weight, 1, WeightScheme(grid=name, range=how))
            assert (grid.low, grid.high) == (0, 1)
            assert (grid.zero == 0.5).all()
            assert grid.quantize(weight).tolist() == [[3.0, -3.0, 3.0, -3.0], [0.5, 0.5, 0.5, 0.5]]


def test_trap_07_one_bit_has_no_zero_and_no_empty_side() -> None:
    """Formulas of symmetric grids divide by a largest code of 0 at 1 bit; mid-rise does not."""
    weight = noise(6, 3, 3, 3) * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])[:, None, None, None]
    for scheme in (WeightScheme(), WeightScheme(granularity="group", group_size=9), WeightScheme(granularity="tensor")):
        values = search_weight_grid(weight, 1, scheme).quantize(weight)
        assert torch.isfinite(values).all()
        assert torch.equal(values.sign(), weight.sign())
    per_channel = search_weight_grid(weight, 1)
    torch.testing.assert_close(per_channel.scale[:, 0] / 2, weight.abs().mean((1, 2, 3)))
    assert not (per_channel.quantize(torch.zeros_like(weight)) == 0).any(), "there is no zero level"
    # Activations are padded with zeros, so their 1-bit grid must hold zero: {0, s} or {-s, 0}, never {-s, s}.
    for samples in (noise(500).relu(), noise(500), -noise(500).relu()):
        for name in ("auto", "symmetric"):
            grid = search_activation_grid(samples, 1, unsigned=False, scheme=ActivationScheme(grid=name))
            assert grid.quantize(torch.zeros(1)).item() == 0.0
            assert (grid.low, grid.high) == (0, 1)


@given(rows)
def test_one_bit_scale_is_optimal(row: list[float]) -> None:
    """Of all symmetric pairs +-a, a = mean |w| has the least squared error."""
    weight = torch.tensor([row], dtype=torch.float64)
    best = (search_weight_grid(weight, 1).quantize(weight) - weight).square().sum()
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        pair = torch.where(weight > 0, 1.0, -1.0) * weight.abs().mean() * factor
        assert best <= (pair - weight).square().sum() * (1 + 1e-9) + 1e-9


# --- the search


def brute_force(row: NDArray[np.float64], low: int, high: int, scales: NDArray[np.float64], zeros: range) -> float:
    """Least squared error over scales and zero points, in float64."""
    best = math.inf
    for zero in zeros:
        codes = np.clip(np.round(row[:, None] / scales), low - zero, high - zero)
        best = min(best, float(((codes * scales - row[:, None]) ** 2).sum(0).min()))
    return best


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width", [9, 144, 1500])
def test_search_is_close_to_the_best_of_all_scales(bits: int, width: int) -> None:
    weight = noise(4, width, seed=bits)
    for name in ("symmetric", "narrow"):
        grid = search_weight_grid(weight, bits, WeightScheme(grid=name))
        errors = row_errors(grid, weight)
        for channel in range(4):
            row = weight[channel].double().numpy()
            scales = np.abs(row).max() / grid.high * np.linspace(0.05, 1.2, 4000)
            best = brute_force(row, grid.low, grid.high, scales, range(1))
            assert errors[channel].item() <= (1.05 if bits <= 5 else 1.2) * best


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_affine_search_tries_every_zero_point(bits: int) -> None:
    weight = noise(6, 100, seed=bits) + torch.linspace(-2, 2, 6)[:, None]
    grid = search_weight_grid(weight, bits, WeightScheme(grid="affine"))
    assert torch.equal(grid.zero, grid.zero.round())
    assert len(grid.zero.unique()) > 2
    errors = row_errors(grid, weight)
    for channel in range(6):
        row = weight[channel].double().numpy()
        scales = np.ptp(np.append(row, 0.0)) / (2**bits - 1) * np.linspace(0.1, 1.5, 1500)
        best = brute_force(row, 0, 2**bits - 1, scales, range(2**bits))
        assert errors[channel].item() <= 1.02 * best


@pytest.mark.parametrize("bits", [5, 6, 8])
def test_affine_search_shrinks_both_ends(bits: int) -> None:
    weight = noise(4, 600, seed=bits).exp() - 1.2  # skewed: a long tail above
    weight[:, :3] = torch.tensor([-20.0, 2.0, 0.0])
    grid = search_weight_grid(weight, bits, WeightScheme(grid="affine"))
    errors = row_errors(grid, weight)
    assert (errors < row_errors(search_weight_grid(weight, bits), weight)).all()
    for channel in range(4):
        row = weight[channel].double().numpy()
        scales = np.ptp(row) / (2**bits - 1) * np.linspace(0.02, 1.1, 300)
        best = brute_force(row, 0, 2**bits - 1, scales, range(2**bits))
        assert errors[channel].item() <= 1.1 * best


@pytest.mark.parametrize("norm", [1.0, 2.4, 4.0])
def test_the_norm_decides_what_is_least(norm: float) -> None:
    weight = noise(5, 400)
    weight[:, 0] = 12.0
    own, squared = (search_weight_grid(weight, 3, WeightScheme(norm=p)) for p in (norm, 2.0))
    assert (row_errors(own, weight, norm) < row_errors(squared, weight, norm)).all()
    assert (row_errors(own, weight, 2.0) > row_errors(squared, weight, 2.0)).all()


@pytest.mark.parametrize("grid_name", GRIDS)
@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_importance_weights_the_error(grid_name: str, bits: int) -> None:
    """Columns that matter count: their weighted error falls, as if each stood there several times."""
    weight = noise(4, 60, seed=3)
    importance = torch.ones(1, 60)
    importance[:, :20] = 8.0
    scheme = WeightScheme(grid=grid_name)

    def weighted(grid: WeightGrid) -> torch.Tensor:
        return ((grid.quantize(weight) - weight).square() * importance).sum(1)

    heeded = search_weight_grid(weight, bits, scheme, importance)
    ignored = search_weight_grid(weight, bits, scheme)
    assert (weighted(heeded) <= weighted(ignored) * 1.05).all()
    assert (weighted(heeded) < weighted(ignored) * 0.999).any()
    repeated = torch.cat([weight, weight[:, :20].repeat(1, 7)], 1)
    same = search_weight_grid(repeated, bits, scheme)
    assert weighted(heeded).sum().item() == pytest.approx(weighted(same).sum().item(), rel=0.02)


def test_importance_may_differ_between_rows_and_be_zero() -> None:
    weight = torch.tensor([[1.0, 8.0, 1.0, 8.0]]).repeat(3, 1)
    importance = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
    grid = search_weight_grid(weight, 2, WeightScheme(), importance)
    torch.testing.assert_close(grid.quantize(weight)[0, ::2], torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(grid.quantize(weight)[1, 1::2], torch.tensor([8.0, 8.0]))
    assert torch.isfinite(grid.scale).all()
    groups = WeightScheme(granularity="group", group_size=3)
    assert torch.isfinite(search_weight_grid(weight, 2, groups, importance).scale).all()


def test_rows_do_not_depend_on_each_other_and_repeat() -> None:
    weight = noise(40, 5000)  # more than one tile of the search
    weight[7] *= 0.0
    for name in GRIDS:
        for power in (False, True):
            scheme = WeightScheme(grid=name, power_of_two=power)
            together = search_weight_grid(weight, 3, scheme)
            again = search_weight_grid(weight, 3, scheme)
            assert torch.equal(together.scale, again.scale)
            assert torch.equal(together.zero, again.zero)
            part = search_weight_grid(weight[5:9], 3, scheme)
            torch.testing.assert_close(together.scale[5:9], part.scale, rtol=1e-4, atol=0)
            assert torch.equal(together.zero[5:9], part.zero)


@pytest.mark.parametrize("bits", range(2, 9))
def test_searched_scale_beats_the_observers(bits: int) -> None:
    weight = noise(8, 144, seed=bits)
    weight[:, 0] = 6.0
    for name in GRIDS:
        found = row_errors(search_weight_grid(weight, bits, WeightScheme(grid=name)), weight)
        for how in RANGES[1:]:
            other = row_errors(
                search_weight_grid(weight, bits, WeightScheme(grid=name, range=how, percentile=99)), weight
            )
            assert (found <= other * 1.01).all(), how
            assert not torch.equal(found, other)


def test_min_max_clips_nothing() -> None:
    weight = noise(8, 100)
    for bits in range(2, 9):
        for name in GRIDS:
            grid = search_weight_grid(weight, bits, WeightScheme(grid=name, range="min_max"))
            # An affine zero point is rounded, which moves both ends by at most half a step.
            limit = 1.0 if name == "affine" else 0.5
            assert ((grid.quantize(weight) - weight).abs() <= limit * grid.scale.abs() * (1 + 1e-5)).all()
    assert search_weight_grid(torch.tensor([[-1.0, 0.2]]), 2, WeightScheme(range="min_max")).scale.item() == 0.5


def test_trap_13_zero_and_constant_channels_have_a_scale() -> None:
    weight = torch.tensor([[0.0] * 4, [0.7] * 4, [-0.7] * 4, [0.0, 0.0, 0.0, 1e-30]])
    for bits in BITS:
        for name in GRIDS:
            for how in RANGES:
                for power in (False, True):
                    scheme = WeightScheme(grid=name, range=how, power_of_two=power)
                    grid = search_weight_grid(weight, bits, scheme)
                    assert torch.isfinite(grid.scale).all()
                    assert (grid.scale > 0).all()
                    values = grid.quantize(weight)
                    torch.testing.assert_close(values[[0, 3]], torch.zeros(2, 4), rtol=0, atol=1e-7)
                    if not power and how in ("mse", "min_max"):
                        torch.testing.assert_close(values, weight, rtol=1e-6, atol=1e-7)


def test_trap_14_scales_are_found_anew_for_every_width() -> None:
    """The best step falls by less than half for a bit more; a step carried over from another width is worse."""
    weight = noise(16, 200)
    grids = {bits: search_weight_grid(weight, bits, WeightScheme(negative_scales=False)) for bits in range(2, 9)}
    for few, many in pairwise(range(2, 9)):
        ratio = grids[few].scale / grids[many].scale
        # Half would keep the clipping threshold where it is; at many bits nothing is clipped any more.
        assert 1.2 < ratio.mean() < (1.95 if few <= 4 else 2.02)
        carried = WeightGrid.symmetric(many, grids[few].scale / 2)
        assert (row_errors(grids[many], weight) <= row_errors(carried, weight)).all()


@pytest.mark.parametrize("grid_name", GRIDS)
@pytest.mark.parametrize("bits", BITS)
def test_trap_14_power_of_two_scales_are_part_of_the_grid(grid_name: str, bits: int) -> None:
    """What is reconstructed on the grid must already see the rounded scale, and its factors cannot be arbitrary."""
    weight = noise(12, 50, seed=bits) * torch.logspace(-4, 2, 12)[:, None] + 0.01
    scheme = WeightScheme(grid=grid_name, power_of_two=True)
    grid = search_weight_grid(weight, bits, scheme)
    mantissa, _ = torch.frexp(grid.scale)
    assert (mantissa == 0.5).all()
    for factor in (0.5, 2.0):  # no neighbour is better
        neighbour = WeightGrid(bits, grid.scale * factor, grid.zero, grid.low, grid.high)
        assert (row_errors(grid, weight) <= row_errors(neighbour, weight) * (1 + 1e-6)).all()
    free = search_weight_grid(weight, bits, WeightScheme(grid=grid_name))
    assert (row_errors(free, weight) <= row_errors(grid, weight) * 1.01).all()
    with pytest.raises(ValueError, match="power-of-two"):
        grid.rescaled(torch.ones(12))


def test_trap_12_weights_beyond_the_grid_are_clamped_with_the_zero_point() -> None:
    weight = torch.cat([noise(4, 200), torch.tensor([[30.0, -30.0]]).repeat(4, 1)], 1)
    for name in GRIDS:
        grid = search_weight_grid(weight, 3, WeightScheme(grid=name, norm=1.0))
        codes = grid.encode(weight)
        mirrored = grid.scale[:, 0] < 0
        assert torch.equal(codes[:, -2], torch.where(mirrored, grid.low, grid.high).float())
        assert torch.equal(codes[:, -1], torch.where(mirrored, grid.high, grid.low).float())
        assert grid.quantize(weight).abs().max() < 25
        # Every code of the grid is a fixed point, at its ends too, so a floor never falls off it.
        every = torch.arange(grid.low, grid.high + 1.0).repeat(4, 1)
        assert torch.equal(grid.encode(grid.decode(every)), every)


# --- laws of weight grids


@given(st.sampled_from(GRIDS), st.integers(1, 8), rows, st.sampled_from(["tensor", "channel", "group"]))
def test_weight_codes_are_in_range_and_quantizing_twice_changes_nothing(
    name: str, bits: int, row: list[float], granularity: str
) -> None:
    weight = torch.tensor([row])
    grid = search_weight_grid(weight, bits, WeightScheme(grid=name, granularity=granularity, group_size=7))
    codes = grid.encode(weight)
    assert torch.equal(codes, codes.round())
    assert grid.low <= codes.min() <= codes.max() <= grid.high
    once = grid.quantize(weight)
    assert torch.equal(grid.quantize(once), once)
    assert torch.equal(grid.encode(once), codes)


@given(st.sampled_from(GRIDS), st.integers(2, 8), rows)
def test_nearest_is_nearest_and_zero_is_exact(name: str, bits: int, row: list[float]) -> None:
    weight = torch.tensor([row], dtype=torch.float64)
    grid = search_weight_grid(weight, bits, WeightScheme(grid=name))
    values = grid.decode(torch.arange(grid.low, grid.high + 1.0, dtype=torch.float64)[None])
    distance = (weight[0, :, None] - values[0]).abs().amin(1)
    torch.testing.assert_close((grid.quantize(weight) - weight).abs()[0], distance, rtol=1e-9, atol=1e-9)
    assert not grid.quantize(torch.zeros(1, 3)).any()


@given(st.sampled_from(GRIDS), st.integers(1, 8), st.integers(0, 2**20))
def test_scaling_the_weights_scales_the_grid(name: str, bits: int, seed: int) -> None:
    weight = noise(3, 30, seed=seed)
    scheme = WeightScheme(grid=name)
    one, eight = (search_weight_grid(w, bits, scheme) for w in (weight, weight * 8))
    error, scaled = row_errors(one, weight), row_errors(eight, weight * 8) / 64
    torch.testing.assert_close(error, scaled, rtol=1e-3, atol=1e-12)


def test_weight_error_falls_with_bits() -> None:
    weight = noise(16, 64)
    for name in GRIDS:
        errors = [row_errors(search_weight_grid(weight, b, WeightScheme(grid=name)), weight).mean() for b in BITS]
        factor = 0.9 if name == "narrow" else 0.6  # narrow has three levels at 2 bits
        assert all(b < factor * a for a, b in pairwise(errors)), (name, errors)


def test_rescaled_keeps_codes() -> None:
    weight = noise(4, 40)
    factor = torch.tensor([0.5, 1.0, 1.5, 3.0])
    for scheme in (
        WeightScheme(),
        WeightScheme(granularity="tensor"),
        WeightScheme(granularity="group", group_size=16),
        WeightScheme(grid="affine"),
    ):
        for bits in (1, 3):
            grid = search_weight_grid(weight, bits, scheme)
            other = grid.rescaled(factor)
            torch.testing.assert_close(other.decode(grid.encode(weight)), grid.quantize(weight) * factor[:, None])
            assert other.scale.shape == grid.scale.shape
    with pytest.raises(ValueError, match="positive"):
        search_weight_grid(weight, 3).rescaled(torch.tensor([1.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize("bits", [-1, 0, 9, 16])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(EvaluationError, match=f"{bits} bits"):
        search_weight_grid(noise(1, 4), bits)
    with pytest.raises(EvaluationError, match=f"{bits} bits"):
        search_activation_grid(noise(4), bits, unsigned=False)


def test_a_codebook_is_not_a_grid_with_scales() -> None:
    with pytest.raises(EvaluationError, match="search_codebook"):
        search_weight_grid(noise(1, 4), 3, WeightScheme(grid="codebook"))


# --- activations


def test_activation_quantization_by_hand() -> None:
    grid = ActivationGrid(2, 0.5, 1)  # codes 0..3: -0.5, 0, 0.5, 1
    assert grid.high == 3
    values = torch.tensor([-9.0, -0.4, -0.2, 0.0, 0.2, 0.3, 0.8, 1.0, 7.0])
    assert grid.quantize(values).tolist() == [-0.5, -0.5, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    signed = ActivationGrid(2, 0.5, 0, -2, 1)
    assert signed.quantize(values).tolist() == [-1.0, -0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5]


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


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_activations_are_signed_unless_the_graph_says_otherwise(bits: int) -> None:
    scheme = ActivationScheme(grid="symmetric")
    grid = search_activation_grid(noise(4096), bits, False, scheme)
    assert (grid.low, grid.high, grid.zero_point) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0)
    unsigned = search_activation_grid(noise(4096).relu(), bits, True, scheme)
    assert (unsigned.low, unsigned.high, unsigned.zero_point) == (0, 2**bits - 1, 0)
    # Whether codes have a sign is hardware: data that happen to be non-negative do not change it.
    assert search_activation_grid(noise(4096).relu(), bits, False, scheme).low < 0


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


@given(st.integers(1, 8), rows, st.booleans(), st.sampled_from(["mse", "min_max", "ema", "percentile", "kl", "aciq"]))
def test_activation_laws(bits: int, values: list[float], unsigned: bool, how: str) -> None:
    samples = torch.tensor(values)
    if unsigned:
        samples = samples.abs()
    for name in ("auto", "symmetric"):
        grid = search_activation_grid(samples, bits, unsigned, ActivationScheme(grid=name, range=how))
        assert grid.scale > 0
        assert math.isfinite(grid.scale)
        assert grid.low <= grid.zero_point <= grid.high
        assert grid.high - grid.low == 2**bits - 1
        assert grid.quantize(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0], "zero is exact"
        once = grid.quantize(samples)
        torch.testing.assert_close(grid.quantize(once), once, rtol=1e-6, atol=0)
        if how == "mse" and name == "auto":
            # The full range is not worse than half a step anywhere, and the search is not worse than it.
            step = (max(0.0, float(samples.max())) - min(0.0, float(samples.min()))) / (2**bits - 1)
            error = float((once.double() - samples.double()).square().mean())
            assert error <= (step / 2) ** 2 * (1 + 1e-3) + 1e-12


@pytest.mark.parametrize("unsigned", [True, False])
@pytest.mark.parametrize("how", ["mse", "min_max", "ema", "percentile", "kl", "aciq"])
def test_all_zero_tensors(how: str, unsigned: bool) -> None:
    for bits in BITS:
        for power in (False, True):
            scheme = ActivationScheme(range=how, power_of_two=power)
            grid = search_activation_grid(torch.zeros(10), bits, unsigned, scheme)
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


@pytest.mark.parametrize("bits", range(2, 9))
def test_power_of_two_activations(bits: int) -> None:
    samples = noise(3000, seed=bits) * 3 - 1
    for unsigned in (False, True):
        values = samples.relu() if unsigned else samples
        grid = search_activation_grid(values, bits, unsigned, ActivationScheme(power_of_two=True))
        assert math.frexp(grid.scale)[0] == 0.5
        error = float((grid.quantize(values) - values).square().mean())
        for factor in (0.5, 2.0):
            other = ActivationGrid(bits, grid.scale * factor, grid.zero_point)
            assert error <= float((other.quantize(values) - values).square().mean()) * (1 + 1e-6)


def test_batches_are_what_the_moving_average_moves_over() -> None:
    first, second = torch.tensor([-1.0, 3.0]), torch.tensor([-2.0, 7.0])
    scheme = ActivationScheme(range="ema", momentum=0.75)
    grid = search_activation_grid([first, second], 8, False, scheme)
    # min: 0.75 * -1 + 0.25 * -2 = -1.25; max: 0.75 * 3 + 0.25 * 7 = 4
    assert grid.scale == pytest.approx(5.25 / 255)
    assert grid.zero_point == round(1.25 / (5.25 / 255))
    assert search_activation_grid(torch.cat([first, second]), 8, False, scheme, batches=[first, second]) == grid
    whole = search_activation_grid(torch.cat([first, second]), 8, False, scheme)
    assert whole == search_activation_grid(torch.cat([first, second]), 8, False, ActivationScheme(range="min_max"))
    assert whole.scale == pytest.approx(9 / 255)


def test_rows_choose_the_sign_of_their_scale() -> None:
    """At few bits the one code that two's complement has more below zero matters; every row puts it where it helps."""
    weight = noise(64, 30)
    either, positive = (search_weight_grid(weight, 2, WeightScheme(negative_scales=free)) for free in (True, False))
    assert (positive.scale > 0).all()
    assert 10 < int((either.scale < 0).sum()) < 54
    same = either.scale == positive.scale
    assert (row_errors(either, weight) < row_errors(positive, weight))[~same[:, 0]].all()
    mirrored = search_weight_grid(-weight, 2)
    torch.testing.assert_close(mirrored.quantize(-weight), -either.quantize(weight))
    for scheme in (WeightScheme(granularity="tensor"), WeightScheme(power_of_two=True), WeightScheme(grid="narrow")):
        assert (search_weight_grid(weight, 2, scheme).scale > 0).all()
    assert (search_weight_grid(weight, 1).scale > 0).all()
