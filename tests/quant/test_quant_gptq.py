"""Laws of closed-form rounding."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsearch.quant.gptq import (
    CodebookRows,
    Rows,
    compensated,
    damped,
    factorize,
    polished,
    quadratic_error,
    refitted,
    solve,
)

QUICK = settings(max_examples=40, deadline=None)


def problem(
    seed: int,
    rows: int = 3,
    columns: int = 6,
    bits: int = 3,
    groups: int = 1,
    rank: int | None = None,
    wide: bool = False,
) -> tuple[Rows, torch.Tensor]:
    """Random rows on symmetric grids, and the Hessian of correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, rows, columns, generator=g, dtype=torch.float64)
    inputs = torch.randn(groups, 4 * columns, rank or columns, generator=g, dtype=torch.float64)
    mix = torch.randn(groups, rank or columns, columns, generator=g, dtype=torch.float64)
    values = inputs @ mix
    hessian = 2 * values.mT @ values / values.shape[1]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = weight.abs().amax(-1, keepdim=True) / max(high, 1)
    if wide:
        scale = scale * (0.5 + torch.rand(groups, rows, columns, generator=g, dtype=torch.float64))
    ends = [torch.full((groups, rows), float(end), dtype=torch.float64) for end in (low, high)]
    return Rows(weight, scale, torch.zeros_like(scale), *ends), hessian


def nearest(rows: Rows) -> torch.Tensor:
    return torch.stack([rows.snap(rows.weight[..., j], j) for j in range(rows.weight.shape[-1])], -1)


def codes(rows: Rows, quantized: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return quantized / scale + rows.zero


@QUICK
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 5), sweeps=st.integers(0, 2), wide=st.booleans())
def test_every_value_lies_on_the_grid_in_force(seed: int, bits: int, sweeps: int, wide: bool) -> None:
    rows, hessian = problem(seed, bits=bits, wide=wide)
    quantized, scale = solve(rows, factorize(hessian), 2, sweeps)
    found = codes(rows, quantized, scale)
    torch.testing.assert_close(found, found.round(), rtol=0, atol=1e-9)
    assert float(found.min()) >= -(2 ** (bits - 1)) - 1e-9
    assert float(found.max()) <= 2 ** (bits - 1) - 1 + 1e-9
    # Refitting moves the scale of a row as a whole.
    torch.testing.assert_close(scale / rows.scale, (scale / rows.scale)[..., :1].expand_as(rows.scale))


@QUICK
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 4), columns=st.integers(2, 12))
def test_refits_and_sweeps_never_raise_the_error(seed: int, bits: int, columns: int) -> None:
    rows, hessian = problem(seed, columns=columns, bits=bits)
    factor = factorize(hessian)
    errors = [quadratic_error(rows, solve(rows, factor, r, 0)[0], factor.hessian) for r in (0, 1, 2)]
    errors.append(quadratic_error(rows, solve(rows, factor, 2, 1)[0], factor.hessian))
    for before, after in itertools.pairwise(errors):
        assert bool((after <= before * (1 + 1e-12)).all())


@QUICK
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 4))
def test_a_sweep_from_nearest_rounding_never_raises_the_error(seed: int, bits: int) -> None:
    """And where it stops, no single code could be changed for the better."""
    rows, hessian = problem(seed, bits=bits)
    hessian = damped(hessian, 0.01)
    start = nearest(rows)
    best = polished(rows, start, hessian, 20)
    error = quadratic_error(rows, best, hessian)
    assert bool((error <= quadratic_error(rows, start, hessian) * (1 + 1e-12)).all())
    for j, way in itertools.product(range(best.shape[-1]), (-1, 1)):
        moved = best.clone()
        moved[..., j] = rows.snap(best[..., j] + way * rows.scale[..., 0], j)
        assert bool((quadratic_error(rows, moved, hessian) >= error * (1 - 1e-9)).all())


def test_the_least_error_of_all_codes_is_nearly_reached() -> None:
    """Two rows of four 2-bit codes on strongly correlated inputs: of all 256 choices a row, solve finds the best or
    one close to it, and nearest rounding does not."""
    ours, plain, least = 0.0, 0.0, 0.0
    for seed in range(20):
        rows, hessian = problem(seed, rows=2, columns=4, bits=2, rank=2)
        factor = factorize(hessian)
        choices = torch.tensor(list(itertools.product((-2.0, -1.0, 0.0, 1.0), repeat=4)), dtype=torch.float64)
        values = choices[None] * rows.scale[0][:, :1, None]  # [rows, 256, 4]
        delta = values - rows.weight[0][:, None]
        everything = torch.einsum("rci,ij,rcj->rc", delta, factor.hessian[0], delta)
        found = quadratic_error(rows, solve(rows, factor, 0, 2)[0], factor.hessian)[0]
        assert bool((found >= everything.amin(1) * (1 - 1e-9)).all())
        ours += float(found.sum())
        plain += float(quadratic_error(rows, nearest(rows), factor.hessian).sum())
        least += float(everything.amin(1).sum())
    assert ours < 1.7 * least
    assert plain > 5 * least


@QUICK
@given(seed=st.integers(0, 10**6), bits=st.integers(1, 6))
def test_uncorrelated_inputs_give_nearest_rounding(seed: int, bits: int) -> None:
    rows, _ = problem(seed, bits=bits)
    for diagonal in (torch.ones(6), torch.arange(1.0, 7.0)):
        factor = factorize(torch.diag(diagonal.double())[None], damping=0.0)
        torch.testing.assert_close(solve(rows, factor, 0, 2)[0], nearest(rows), rtol=1e-12, atol=1e-12)


@QUICK
@given(seed=st.integers(0, 10**6), dead=st.sets(st.integers(0, 5), max_size=6))
def test_inputs_that_never_fire_are_rounded_to_nearest(seed: int, dead: set[int]) -> None:
    rows, hessian = problem(seed)
    for j in dead:
        hessian[:, j], hessian[:, :, j] = 0.0, 0.0
    quantized, _ = solve(rows, factorize(hessian), 0, 2)
    assert bool(torch.isfinite(quantized).all())
    for j in dead:
        torch.testing.assert_close(quantized[..., j], rows.snap(rows.weight[..., j], j))


def test_a_hessian_of_zeros_is_survived() -> None:
    rows, hessian = problem(0)
    quantized, scale = solve(rows, factorize(torch.zeros_like(hessian)), 2, 2)
    assert bool(torch.isfinite(quantized).all())
    assert bool(torch.isfinite(scale).all())


@QUICK
@given(seed=st.integers(0, 10**6), columns=st.sampled_from([3, 64, 65, 150]))
def test_groups_are_problems_of_their_own(seed: int, columns: int) -> None:
    """Also more columns than are updated at a time."""
    rows, hessian = problem(seed, columns=columns, groups=2)
    together, scales = solve(rows, factorize(hessian), 1, 1)
    for group in range(2):
        part = slice(group, group + 1)
        alone = Rows(*(getattr(rows, name)[part] for name in ("weight", "scale", "zero", "low", "high")))
        quantized, scale = solve(alone, factorize(hessian[part]), 1, 1)
        torch.testing.assert_close(together[part], quantized)
        torch.testing.assert_close(scales[part], scale)


@QUICK
@given(seed=st.integers(0, 10**6))
def test_rows_are_independent_of_their_neighbours(seed: int) -> None:
    """So that many widths may share one pass."""
    few, hessian = problem(seed, bits=2)
    many, _ = problem(seed + 1, bits=4)
    factor = factorize(hessian)
    parts = {
        name: torch.cat([getattr(few, name), getattr(many, name)], 1)
        for name in ("weight", "scale", "zero", "low", "high")
    }
    together, _ = solve(Rows(**parts), factor, 2, 2)
    torch.testing.assert_close(together[:, :3], solve(few, factor, 2, 2)[0])
    torch.testing.assert_close(together[:, 3:], solve(many, factor, 2, 2)[0])


@QUICK
@given(seed=st.integers(0, 10**6))
def test_the_order_of_columns_has_no_side_effects(seed: int) -> None:
    """GPTQ orders columns by itself: permuting the problem permutes the solution."""
    rows, hessian = problem(seed, wide=True)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    shuffled = rows.permuted(order[None])
    quantized = compensated(rows, factorize(hessian))
    torch.testing.assert_close(compensated(shuffled, factorize(hessian[:, order][:, :, order])), quantized[..., order])


@QUICK
@given(seed=st.integers(0, 10**6))
def test_mirrored_rows_on_negative_scales_are_the_same_problem(seed: int) -> None:
    rows, hessian = problem(seed, bits=2)
    mirrored = Rows(-rows.weight, -rows.scale, rows.zero, rows.low, rows.high)
    quantized, scale = solve(rows, factorize(hessian), 2, 2)
    turned, turned_scale = solve(mirrored, factorize(hessian), 2, 2)
    torch.testing.assert_close(turned, -quantized)
    torch.testing.assert_close(turned_scale, -scale)


@QUICK
@given(seed=st.integers(0, 10**6))
def test_the_refitted_scale_is_the_best_for_its_codes(seed: int) -> None:
    rows, hessian = problem(seed)
    quantized = nearest(rows)
    factor = (refitted(rows, quantized, hessian).scale / rows.scale)[..., :1]
    error = quadratic_error(rows, quantized * factor, hessian)
    for other in (0.99, 1.01):
        changed = (factor * other).clamp(0.5, 2.0)
        assert bool((quadratic_error(rows, quantized * changed, hessian) >= error * (1 - 1e-9)).all())
    empty = torch.zeros_like(quantized)
    assert torch.equal(refitted(rows, empty, hessian).scale, rows.scale), "rows of zeros keep their scale"


def test_affine_and_mid_rise_grids() -> None:
    for seed in range(10):
        rows, hessian = problem(seed)
        ends = (torch.zeros_like(rows.low), torch.full_like(rows.high, 3.0))
        affine = Rows(rows.weight, rows.scale, torch.full_like(rows.scale, 2.0), *ends)
        quantized, scale = solve(affine, factorize(hessian), 2, 2)
        found = codes(affine, quantized, scale)
        torch.testing.assert_close(found, found.round().clamp(0, 3))
        pair = Rows(rows.weight, rows.scale, torch.full_like(rows.scale, 0.5), ends[0], torch.ones_like(rows.high))
        quantized, scale = solve(pair, factorize(hessian), 2, 2)
        torch.testing.assert_close(quantized.abs(), (scale.abs() / 2).expand_as(quantized))


def test_codebooks() -> None:
    generator = torch.Generator().manual_seed(0)
    centroids = torch.tensor([-1.5, -0.2, 0.1, 2.0], dtype=torch.float64)
    for seed in range(10):
        rows, hessian = problem(seed, columns=8)
        book, factor = CodebookRows(rows.weight, centroids), factorize(hessian)
        values = torch.randn(1, 3, generator=generator, dtype=torch.float64)
        by_hand = centroids[(values[..., None] - centroids).abs().argmin(-1)]
        assert torch.equal(book.snap(values, 0), by_hand)
        once = compensated(book, factor)
        assert set(once.flatten().tolist()) <= set(centroids.tolist())
        again = polished(book, once, factor.hessian, 2)
        assert set(again.flatten().tolist()) <= set(centroids.tolist())

        def error(
            quantized: torch.Tensor, weight: torch.Tensor = rows.weight, h: torch.Tensor = factor.hessian
        ) -> float:
            return float((((quantized - weight) @ h) * (quantized - weight)).sum())

        assert error(again) <= error(once) * (1 + 1e-12)
        assert error(again) < error(torch.stack([book.snap(rows.weight[..., j], j) for j in range(8)], -1))


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.5])
def test_damping_adds_a_share_of_the_mean_diagonal(damping: float) -> None:
    hessian = torch.diag(torch.tensor([1.0, 3.0, 0.0]))[None]
    extra = damping * 4 / 3
    assert damped(hessian, damping).diagonal(dim1=1, dim2=2)[0].tolist() == pytest.approx(
        [1 + extra, 3 + extra, 1 + extra], abs=1e-6
    )


def test_the_factor_is_that_of_the_inverse() -> None:
    _, hessian = problem(3)
    factor = factorize(hessian)
    order = factor.order[0]
    ordered = factor.hessian[0][order][:, order]
    assert bool((ordered.diagonal().diff() <= 0).all())
    torch.testing.assert_close(factor.upper[0].mT @ factor.upper[0] @ ordered, torch.eye(6, dtype=torch.float64))
    assert torch.equal(factor.upper[0], factor.upper[0].triu())
