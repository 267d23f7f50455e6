"""Learned activation steps (LSQ) and dropped quantization (QDrop)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsearch.quant.grids import ActivationGrid
from qsearch.quant.lsq import LearnedStep, gradient_factor
from qsearch.quant.qdrop import ElementDrop, TrainingQuantizer

CPU = torch.device("cpu")


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(1, 8),
    zero=st.integers(0, 255),
    signed=st.booleans(),
    scale=st.floats(0.01, 2.0),
    seed=st.integers(0, 2**31),
)
def test_forward_is_the_grid_and_gradients_are_those_of_the_paper(
    bits: int, zero: int, signed: bool, scale: float, seed: int
) -> None:
    """Against automatic differentiation, with rounding straight through (LSQ, eq. 1 to 5)."""
    high = 2**bits - 1
    grid = (
        ActivationGrid(bits, scale, 0, -(high + 1) // 2, high // 2)
        if signed
        else ActivationGrid(bits, scale, zero % (high + 1))
    )
    x = values(4, 3, 5, seed=seed).requires_grad_(True)
    direction = values(4, 3, 5, seed=seed + 1)
    learned = LearnedStep(grid, CPU)
    out = learned(x)
    assert torch.equal(out, grid.quantize(x))
    (out * direction).sum().backward()

    y, step = x.detach().clone().requires_grad_(True), torch.tensor(scale, requires_grad=True)
    position = y / step
    rounded = position + (torch.round(position) - position).detach()
    expected = step * (torch.clamp(rounded + grid.zero_point, grid.low, grid.high) - grid.zero_point)
    (expected * direction).sum().backward()
    # Where x / s lies within float noise of a half or of an end, either neighbour is right.
    half = ((position.detach() % 1) - 0.5).abs() < 1e-4
    if half.any():
        return
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad, y.grad)
    assert learned.step.grad is not None
    assert step.grad is not None
    torch.testing.assert_close(learned.step.grad / gradient_factor(x, grid), step.grad, rtol=1e-3, atol=1e-3)


def test_trap_15_the_gradient_factor_does_not_count_the_batch() -> None:
    grid = ActivationGrid(4, 0.1, 0)
    assert gradient_factor(torch.zeros(8, 3, 4, 4), grid) == pytest.approx(1 / math.sqrt(48 * 15))
    assert gradient_factor(torch.zeros(1, 3, 4, 4), grid) == gradient_factor(torch.zeros(64, 3, 4, 4), grid)
    # Signed: codes on the larger side of the zero point.
    assert gradient_factor(torch.zeros(2, 10), ActivationGrid(4, 0.1, 5)) == pytest.approx(1 / math.sqrt(10 * 10))
    assert gradient_factor(torch.zeros(2, 10), ActivationGrid(1, 0.1, 0, 0, 0)) > 0


def test_trap_15_the_step_stays_positive() -> None:
    learned = LearnedStep(ActivationGrid(2, 0.5, 0), CPU)
    for bad in (-3.0, 0.0, 1e-9):
        with torch.no_grad():
            learned.step.fill_(bad)
        learned.keep_positive()
        assert learned.grid().scale == pytest.approx(0.005)
        assert torch.isfinite(learned(values(3, 3))).all()
    with torch.no_grad():
        learned.step.fill_(0.7)
    learned.keep_positive()
    grid = learned.grid()
    assert grid.scale == pytest.approx(0.7)
    assert (grid.bits, grid.zero_point, grid.low, grid.high) == (2, 0, 0, 3)


def test_descent_finds_the_best_step() -> None:
    x = values(64, 32).relu()
    grid = ActivationGrid(2, 2.0, 0)

    def error(scale: float) -> float:
        return (ActivationGrid(2, scale, 0).quantize(x) - x).square().mean().item()

    best = min((error(s), s) for s in torch.linspace(0.1, 2.0, 191).tolist())
    learned = LearnedStep(grid, CPU)
    optimizer = torch.optim.SGD(learned.parameters(), lr=2.0)
    for _ in range(200):
        optimizer.zero_grad()
        (learned(x) - x).square().mean().backward()
        optimizer.step()
        learned.keep_positive()
    assert error(2.0) > 3 * best[0]
    assert error(learned.grid().scale) == pytest.approx(best[0], rel=0.02)


def drop(probability: float, seed: int = 0) -> ElementDrop:
    return ElementDrop(probability, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("probability", [0.25, 0.5, 0.9])
def test_share_of_quantized_elements(probability: float) -> None:
    mask = drop(probability).quantized(torch.zeros(50, 7, 9, 11))
    assert mask.dtype == torch.bool
    n = mask.numel()
    assert mask.float().mean().item() == pytest.approx(probability, abs=1 / 512 + 4 * math.sqrt(0.25 / n))
    # No axis has a pattern: neighbours agree as often as chance has it.
    agree = probability**2 + (1 - probability) ** 2
    for axis in range(4):
        same = (mask.narrow(axis, 1, mask.shape[axis] - 1) == mask.narrow(axis, 0, mask.shape[axis] - 1)).float()
        assert same.mean().item() == pytest.approx(agree, abs=0.02)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certain_masks(probability: float) -> None:
    mask = drop(probability).quantized(torch.zeros(1000))
    assert bool((mask == bool(probability)).all())


def test_masks_follow_the_memory_order_and_the_generator() -> None:
    like = torch.zeros(2, 5, 3, 3).contiguous(memory_format=torch.channels_last)
    mask = drop(0.5).quantized(like)
    assert mask.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mask, drop(0.5).quantized(like))
    assert not torch.equal(mask, drop(0.5, seed=1).quantized(like))
    source = drop(0.5)
    assert not torch.equal(source.quantized(like), source.quantized(like))


def test_dropped_elements_stay_float_in_training_only() -> None:
    grid = ActivationGrid(1, 1.0, 0)
    quantizer = TrainingQuantizer(grid.quantize, drop(0.5))
    x = torch.rand(40, 40, generator=torch.Generator().manual_seed(3)) * 0.8 + 0.05
    quantizer.eval()
    assert torch.equal(quantizer(x), grid.quantize(x))
    quantizer.train()
    out = quantizer(x)
    kept = out == x
    assert 0.4 < kept.float().mean() < 0.6
    assert torch.equal(out[~kept], grid.quantize(x)[~kept])
    quantizer.float_values = torch.full_like(x, 7.0)
    out = quantizer(x)
    assert 0.4 < (out == 7.0).float().mean() < 0.6
    assert torch.equal(out[out != 7.0], grid.quantize(x)[out != 7.0])


def test_without_drop_everything_is_quantized() -> None:
    grid = ActivationGrid(3, 0.3, 4)
    quantizer = TrainingQuantizer(grid.quantize, None).train()
    x = values(5, 5)
    assert torch.equal(quantizer(x), grid.quantize(x))


def test_bfloat16_values_are_quantized_in_float32() -> None:
    grid = ActivationGrid(8, 0.013, 0)
    x = values(20, 20).relu().bfloat16()
    out = TrainingQuantizer(grid.quantize, None)(x)
    assert torch.equal(out, grid.quantize(x.float()).bfloat16())
