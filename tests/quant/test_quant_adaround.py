"""AdaRound variables (Nagel et al. 2020): where they start, what they become, what moves them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsearch.errors import EvaluationError
from qsearch.quant.adaround import RoundingVariables, beta_at
from qsearch.quant.codebook import search_codebook
from qsearch.quant.grids import WeightGrid, search_weight_grid
from qsearch.quant.schemes import WeightScheme

LN11 = math.log(11)


def weights(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))


def symmetric(bits: int, *scales: float) -> WeightGrid:
    return WeightGrid.symmetric(bits, torch.tensor(scales))


def one(weight: torch.Tensor, grid: WeightGrid, start: torch.Tensor | None = None) -> RoundingVariables:
    return RoundingVariables({0: weight}, {0: grid}, None if start is None else {0: start})


def set_v(variables: RoundingVariables, values: torch.Tensor) -> None:
    """``values`` in the order of ``v``, which for 2-D weights is the weight's own."""
    with torch.no_grad():
        variables.v.copy_(values.flatten())
    variables.refresh()


SCHEMES = {
    "symmetric": WeightScheme(),
    "affine": WeightScheme(grid="affine"),
    "narrow": WeightScheme(grid="narrow"),
    "group": WeightScheme(grid="affine", granularity="group", group_size=8),
    "tensor": WeightScheme(granularity="tensor"),
}


def test_start_by_hand() -> None:
    variables = one(torch.tensor([[0.25, -0.4, 1.0]]), symmetric(4, 1.0))
    # r is 0.25, 0.6 and 0; V = -ln(1.2 / (r + 0.1) - 1), at r = 0 that is -ln 11.
    expected = torch.tensor([-math.log(1.2 / 0.35 - 1), -math.log(1.2 / 0.7 - 1), -LN11])
    torch.testing.assert_close(variables.v.detach(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variables.h(), torch.tensor([0.25, 0.6, 0.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_soft_weight_starts_at_the_float_weight(scheme: str, bits: int) -> None:
    weight = weights(bits)
    grid = search_weight_grid(weight, bits, SCHEMES[scheme])
    soft = one(weight, grid).weights[0].detach()
    scale, zero = grid.columns(27)
    ends = torch.stack([(scale * (end - zero)).expand(4, 27).reshape(4, 3, 3, 3) for end in (grid.low, grid.high)])
    least, most = ends.amin(0), ends.amax(0)  # scales may be negative
    inside = (weight >= least) & (weight <= most)
    assert inside.float().mean() > 0.4
    step = scale.abs().expand(4, 27).reshape(4, 3, 3, 3)
    assert ((soft - weight).abs() / step)[inside].max() < 2e-5
    # Outside, the soft weight stands at the end of the grid.
    torch.testing.assert_close(soft[~inside], weight.clamp(least, most)[~inside], rtol=1e-6, atol=1e-7)


def test_weights_share_one_memory_with_channels_last() -> None:
    layers = {3: weights(1), 7: torch.randn(5, 4, generator=torch.Generator().manual_seed(2))}
    variables = RoundingVariables(layers, {i: search_weight_grid(w, 8) for i, w in layers.items()})
    assert list(variables.weights) == [3, 7]
    assert variables.v.shape == (4 * 27 + 20,)
    for index, weight in layers.items():
        soft = variables.weights[index]
        assert soft.shape == weight.shape
        assert soft.is_leaf
        # 8 bits are fine enough to tell any two weights in the wrong place.
        torch.testing.assert_close(soft.detach(), weight, rtol=0, atol=0.05)
        hard = variables.hard_codes()[index]
        assert hard.is_contiguous()
        assert (search_weight_grid(weight, 8).decode(hard) - weight).abs().max() < 0.05
    assert variables.weights[3].is_contiguous(memory_format=torch.channels_last)
    first = variables.weights[7].clone()
    with torch.no_grad():
        variables.v[:108] += 1.0
    variables.refresh()
    assert torch.equal(variables.weights[7], first)


def test_trap_11_hard_rounding_follows_the_sign_of_v() -> None:
    variables = one(torch.tensor([[0.25, 0.75, -0.4, -2.0, 1.9]]), symmetric(2, 1.0))  # codes -2..1
    set_v(variables, torch.tensor([1.0, -1.0, 0.0, 3.0, 5.0]))
    assert variables.hard_codes()[0].tolist() == [[1.0, 0.0, 0.0, -1.0, 1.0]]
    set_v(variables, torch.tensor([-1e-6, 1e-6, -3.0, -3.0, -5.0]))
    assert variables.hard_codes()[0].tolist() == [[0.0, 1.0, -1.0, -2.0, 1.0]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_trap_11_decided_variables_give_hard_weights_and_no_penalty(scheme: str) -> None:
    weight = weights().flatten(1)
    grid = search_weight_grid(weight, 3, SCHEMES[scheme])
    variables = one(weight, grid)
    assert variables.open_share() > 0.5
    up = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    set_v(variables, torch.where(up, 4.0, -4.0))
    hard = grid.decode(variables.hard_codes()[0])
    torch.testing.assert_close(variables.weights[0].detach(), hard, rtol=1e-6, atol=1e-7)
    assert variables.open_share() == 0.0
    for beta in (20.0, 7.0, 2.0):
        assert variables.penalty(beta) == 0.0


def test_trap_12_beyond_the_grid_there_is_no_choice() -> None:
    variables = one(torch.tensor([[9.3, -9.3, 0.3]]), symmetric(2, 1.0))
    assert variables.weights[0][0].tolist() == pytest.approx([1.0, -2.0, 0.3])
    assert variables.weights[0].grad is not None
    variables.weights[0].grad.fill_(1.0)
    variables.backward(1.0, 2.0)
    assert variables.v.grad is not None
    assert variables.v.grad[:2].tolist() == [0.0, 0.0]
    assert variables.v.grad[2] != 0
    for sign in (1.0, -1.0):
        set_v(variables, torch.full((3,), sign))
        assert variables.hard_codes()[0][0, :2].tolist() == [1.0, -2.0]
    assert variables.open_share() == 1.0  # of the one weight that has a choice


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.floats(1e-6, 1e3), st.integers(0, 2**31))
def test_trap_12_weights_on_the_grid_do_not_flip(bits: int, scale: float, seed: int) -> None:
    """Dividing code * scale by scale is not always exact; the floor must not fall by one because of it."""
    grid = symmetric(bits, scale)
    codes = torch.randint(grid.low, grid.high + 1, (1, 50), generator=torch.Generator().manual_seed(seed)).float()
    variables = one(grid.decode(codes), grid)
    assert torch.equal(variables.hard_codes()[0], codes)
    torch.testing.assert_close(variables.weights[0].detach(), grid.decode(codes), rtol=1e-5, atol=1e-6 * scale)


def test_trap_12_a_weight_on_the_grid_can_still_move() -> None:
    """h = 0 lies on the border of where its slope is zero."""
    variables = one(torch.tensor([[0.0, 1.0, -1.0]]), symmetric(4, 1.0))
    assert variables.weights[0].grad is not None
    variables.weights[0].grad.fill_(-1.0)
    variables.backward()
    assert variables.v.grad is not None
    assert (variables.v.grad < -0.05).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.sampled_from(sorted(SCHEMES)), st.integers(0, 2**31))
def test_hard_codes_are_neighbours_of_the_weight(bits: int, scheme: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 30, generator=generator)
    grid = search_weight_grid(weight, bits, SCHEMES[scheme])
    variables = one(weight, grid)
    set_v(variables, torch.randn(weight.shape, generator=generator))
    codes = variables.hard_codes()[0]
    assert grid.low <= codes.min() <= codes.max() <= grid.high
    scale, zero = grid.columns(30)
    position = (weight / scale + zero).clamp(grid.low, grid.high)
    assert (codes - position).abs().max() <= 1 + 1e-5


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.sampled_from(sorted(SCHEMES)), st.integers(0, 2**31))
def test_a_warm_start_is_kept_and_may_move_towards_the_float_weight(bits: int, scheme: str, seed: int) -> None:
    """Codes from elsewhere, as far from the float weight as the grid allows."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 20, generator=generator)
    grid = search_weight_grid(weight, bits, SCHEMES[scheme])
    start = torch.randint(grid.low, grid.high + 1, weight.shape, generator=generator).float()
    variables = one(weight, grid, start)
    assert torch.equal(variables.hard_codes()[0], start)
    assert torch.isfinite(variables.v).all()
    scale, zero = grid.columns(20)
    distance = (weight / scale + zero).double() - start.double()
    clear = distance.abs() > 1e-4  # on the grid, either direction is right
    reachable = []
    for sign in (1.0, -1.0):
        set_v(variables, torch.full(weight.shape, sign))
        reachable.append(variables.hard_codes()[0])
    upper, lower = reachable
    expected = (start + torch.sign(distance)).clamp(grid.low, grid.high).float()
    other = torch.where(distance > 0, upper, lower)
    assert torch.equal(other[clear], expected[clear])
    assert torch.equal(torch.where(distance > 0, lower, upper)[clear], start[clear])


def test_layers_without_a_start_begin_at_their_float_weights() -> None:
    layers = {0: torch.tensor([[0.4, 0.6]]), 1: torch.tensor([[0.4, 0.6]])}
    grids = {i: symmetric(4, 1.0) for i in layers}
    variables = RoundingVariables(layers, grids, {1: torch.tensor([[1.0, 0.0]])})
    codes = variables.hard_codes()
    assert codes[0].tolist() == [[0.0, 1.0]]
    assert codes[1].tolist() == [[1.0, 0.0]]
    torch.testing.assert_close(variables.weights[0].detach(), layers[0], rtol=0, atol=1e-5)


def test_penalty_by_hand() -> None:
    variables = one(torch.tensor([[0.5, 0.25, 99.0]]), symmetric(4, 1.0))
    # |2h - 1| is 0 and 0.5: 1 - 0 + 1 - 0.5^beta; the third weight has no choice.
    assert variables.penalty(2.0) == pytest.approx(1.75, abs=1e-5)
    assert variables.penalty(20.0) == pytest.approx(2 - 0.5**20, abs=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.sampled_from(sorted(SCHEMES)), st.floats(2.0, 20.0), st.integers(0, 2**31))
def test_the_closed_form_is_the_derivative(bits: int, scheme: str, beta: float, seed: int) -> None:
    """Against automatic differentiation of the formulas of the paper."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 20, generator=generator)
    grid = search_weight_grid(weight, bits, SCHEMES[scheme])
    variables = one(weight, grid)
    set_v(variables, 2 * torch.randn(weight.shape, generator=generator))
    direction = torch.randn(weight.shape, generator=generator)

    v = variables.v.detach().reshape(weight.shape).requires_grad_(True)
    scale, zero = grid.columns(20)
    floor = torch.floor((weight.double() / scale.double() + zero.double()) + 1e-7).float()
    h = torch.clamp(torch.sigmoid(v) * 1.2 - 0.1, 0, 1)
    soft = scale * (torch.clamp(floor + h, grid.low, grid.high) - zero)
    choice = (floor >= grid.low) & (floor < grid.high)
    penalty = ((1 - (2 * h - 1).abs().pow(beta)) * choice).sum()
    ((soft * direction).sum() + 0.3 * penalty).backward()

    torch.testing.assert_close(variables.weights[0].detach(), soft.detach(), rtol=1e-5, atol=1e-6)
    assert variables.penalty(beta) == pytest.approx(penalty.item(), rel=1e-4, abs=1e-4)
    assert variables.weights[0].grad is not None
    variables.weights[0].grad.copy_(direction)
    variables.backward(0.3, beta)
    assert variables.v.grad is not None
    assert v.grad is not None
    torch.testing.assert_close(variables.v.grad, v.grad.flatten(), rtol=1e-3, atol=1e-5)


def test_gradients_are_forgotten_by_refresh() -> None:
    variables = one(torch.tensor([[0.3, 0.6]]), symmetric(4, 1.0))
    (variables.weights[0] * 2).sum().backward()
    variables.refresh()
    (variables.weights[0] * 3).sum().backward()
    assert variables.weights[0].grad is not None
    assert variables.weights[0].grad.tolist() == [[3.0, 3.0]]


def test_variables_stay_float32_under_bfloat16_weights() -> None:
    weight = weights()
    grid = search_weight_grid(weight, 2)
    exact = RoundingVariables({0: weight}, {0: grid})
    short = RoundingVariables({0: weight}, {0: grid}, dtype=torch.bfloat16)
    assert short.weights[0].dtype == torch.bfloat16
    assert short.v.dtype == torch.float32
    assert torch.equal(short.v, exact.v)
    assert torch.equal(short.weights[0], exact.weights[0].bfloat16())
    for variables in (exact, short):
        assert variables.weights[0].grad is not None
        variables.weights[0].grad.fill_(0.5)
        variables.backward(0.1, 3.0)
    assert exact.v.grad is not None
    assert short.v.grad is not None
    torch.testing.assert_close(short.v.grad, exact.v.grad)


def test_a_codebook_has_no_rounding_to_learn() -> None:
    weight = weights()
    with pytest.raises(EvaluationError, match="CodebookGrid") as caught:
        one(weight, search_codebook(weight, 2))  # type: ignore[arg-type]
    assert "affine" in caught.value.hint


def test_beta_schedule() -> None:
    values = [beta_at(step, steps=10, warm_up=0.2) for step in range(10)]
    assert values[:3] == [None, None, 20.0]
    assert values[9] == 2.0
    steps = [a - b for a, b in pairwise(values[2:])]  # type: ignore[operator]
    assert steps == pytest.approx([18 / 7] * 7)
    assert beta_at(0, 10, 0.0) == 20.0
    assert beta_at(0, 1, 0.0) == 20.0
    assert beta_at(5, 11, 0.0, start=8.0, end=4.0) == 6.0
