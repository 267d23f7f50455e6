"""AdaRound variables (Nagel et al. 2020): where they start, what they become, what they cost."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qsearch.quant import WeightGrid, search_weight_grid
from qsearch.quant.adaround import SoftRounding, beta_at


def weights(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_start_by_hand() -> None:
    weight = torch.tensor([[0.25, -0.4, 1.0]])
    rounding = SoftRounding(weight, WeightGrid(4, torch.tensor([1.0])))
    assert rounding.floor.tolist() == [[0.0, -1.0, 1.0]]
    torch.testing.assert_close(rounding.h(), torch.tensor([[0.25, 0.6, 0.0]]), rtol=0, atol=1e-6)
    # V = -ln(1.2 / (r + 0.1) - 1); at r = 0 that is -ln 11.
    expected = [-math.log(1.2 / 0.35 - 1), -math.log(1.2 / 0.7 - 1), -math.log(11)]
    torch.testing.assert_close(rounding.v.detach(), torch.tensor([expected]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_soft_weight_starts_at_the_float_weight(bits: int) -> None:
    weight = weights(bits)
    grid = search_weight_grid(weight, bits)
    rounding = SoftRounding(weight, grid)
    scale = grid.scale[:, None, None, None]
    position = weight.double() / scale.double() + grid.zero
    torch.testing.assert_close((rounding.floor + rounding.h()).double(), position, rtol=0, atol=2e-5)
    inside = (position >= grid.low) & (position <= grid.high)
    assert inside.float().mean() > 0.5
    difference = (rounding.soft() - weight).abs() / scale
    assert difference[inside].max() < 2e-5
    # Outside, the soft weight stands at the end of the grid.
    ends = torch.where(position > grid.high, float(grid.high), float(grid.low))
    assert torch.equal(rounding.soft()[~inside], grid.decode(ends.expand_as(weight))[~inside])


def test_hard_rounding_follows_the_sign_of_v() -> None:
    weight = torch.tensor([[0.25, 0.75, -0.4, -2.0, 1.9]])
    rounding = SoftRounding(weight, WeightGrid(2, torch.tensor([1.0])))  # codes -2..1
    with torch.no_grad():
        rounding.v.copy_(torch.tensor([[1.0, -1.0, 0.0, 3.0, 5.0]]))
    assert rounding.hard_codes().tolist() == [[1.0, 0.0, 0.0, -1.0, 1.0]]
    with torch.no_grad():
        rounding.v.copy_(torch.tensor([[-1e-6, 1e-6, -3.0, -3.0, -5.0]]))
    assert rounding.hard_codes().tolist() == [[0.0, 1.0, -1.0, -2.0, 1.0]]


def test_decided_variables_give_hard_weights_and_no_penalty() -> None:
    weight = weights()
    grid = search_weight_grid(weight, 3)
    rounding = SoftRounding(weight, grid)
    up = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.no_grad():
        rounding.v.copy_(torch.where(up, 4.0, -4.0))
    assert torch.equal(rounding.h(), up.float())
    assert torch.equal(rounding.soft(), grid.decode(rounding.hard_codes()))
    for beta in (20.0, 7.0, 2.0):
        assert rounding.penalty(beta).item() == 0.0


def test_penalty_by_hand() -> None:
    rounding = SoftRounding(torch.tensor([[0.5, 0.25]]), WeightGrid(4, torch.tensor([1.0])))
    # |2h - 1| is 0 and 0.5: 1 - 0 + 1 - 0.5^beta.
    assert rounding.penalty(2.0).item() == pytest.approx(1.75, abs=1e-5)
    assert rounding.penalty(20.0).item() == pytest.approx(2 - 0.5**20, abs=1e-5)


def test_gradients_reach_open_choices_only() -> None:
    rounding = SoftRounding(torch.tensor([[0.3, 0.3, 0.3]]), WeightGrid(4, torch.tensor([2.0])))
    with torch.no_grad():
        rounding.v.copy_(torch.tensor([[0.5, 3.0, -3.0]]))
    rounding.soft().sum().backward()
    assert rounding.v.grad is not None
    sigmoid = 1 / (1 + math.exp(-0.5))
    assert rounding.v.grad[0].tolist() == pytest.approx([2.0 * 1.2 * sigmoid * (1 - sigmoid), 0.0, 0.0])


@given(st.integers(1, 8), st.floats(1e-6, 1e3), st.integers(0, 2**31))
def test_weights_on_the_grid_do_not_flip(bits: int, scale: float, seed: int) -> None:
    """Dividing code * scale by scale is not always exact; the floor must not fall by one because of it."""
    grid = WeightGrid(bits, torch.tensor([scale]))
    codes = torch.randint(grid.low, grid.high + 1, (1, 50), generator=torch.Generator().manual_seed(seed)).float()
    rounding = SoftRounding(grid.decode(codes), grid)
    assert torch.equal(rounding.hard_codes(), codes)
    torch.testing.assert_close(rounding.soft(), grid.decode(codes), rtol=1e-5, atol=1e-6 * scale)


@given(st.integers(1, 8), st.integers(0, 2**31))
def test_hard_codes_are_neighbours_of_the_weight(bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 30, generator=generator)
    grid = search_weight_grid(weight, bits)
    rounding = SoftRounding(weight, grid)
    with torch.no_grad():
        rounding.v.copy_(torch.randn(weight.shape, generator=generator))
    codes = rounding.hard_codes()
    assert grid.low <= codes.min() <= codes.max() <= grid.high
    position = (weight / grid.scale[:, None] + grid.zero).clamp(grid.low, grid.high)
    assert (codes - position).abs().max() <= 1 + 1e-5


def test_beta_schedule() -> None:
    values = [beta_at(step, steps=10, warm_up=0.2) for step in range(10)]
    assert values[:3] == [None, None, 20.0]
    assert values[9] == 2.0
    steps = [a - b for a, b in pairwise(values[2:])]  # type: ignore[operator]
    assert steps == pytest.approx([18 / 7] * 7)
    assert beta_at(0, 10, 0.0) == 20.0
    assert beta_at(0, 1, 0.0) == 20.0
    assert beta_at(5, 11, 0.0, start=8.0, end=4.0) == 6.0
