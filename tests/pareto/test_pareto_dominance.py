from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qsearch.pareto import constrained_dominates, non_dominated_mask, non_dominated_sort

# Few distinct values, so that ties, duplicates and failures are common.
VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 1e-12, math.inf, math.nan])
VIOLATIONS = st.sampled_from([-1.0, 0.0, 0.0, 0.25, 3.0, math.inf, math.nan])


@st.composite
def populations(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, width = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    return (
        draw(hnp.arrays(np.float64, (rows, width), elements=VALUES)),
        draw(hnp.arrays(np.float64, (rows,), elements=VIOLATIONS)),
    )


def brute_force_mask(points: NDArray[np.float64], violations: NDArray[np.float64]) -> list[bool]:
    rows = list(zip(points, violations, strict=True))
    return [
        not (np.isnan(p).any() or np.isnan(v)) and not any(constrained_dominates(q, p, w, v) for q, w in rows)
        for p, v in rows
    ]


@pytest.mark.parametrize(
    ("a", "b", "violation_a", "violation_b", "expected"),
    [
        ([1, 1], [1, 2], 0, 0, True),
        ([1, 1], [1, 1], 0, 0, False),
        ([1, 2], [2, 1], 0, 0, False),
        ([9, 9], [1, 1], 0, 0.1, True),  # feasible beats infeasible
        ([1, 1], [9, 9], 0.1, 0, False),
        ([9, 9], [1, 1], 0.1, 0.2, True),  # the smaller violation wins
        ([1, 1], [9, 9], 0.2, 0.2, False),
        ([1, 1], [1, 2], -5, 0, True),  # below zero is feasible, no bonus for it
        ([9, 9], [1, 1], -5, 0, False),
        ([math.nan, 0], [9, 9], 0, 7, False),
        ([9, 9], [math.nan, 0], 7, 0, True),  # even an infeasible row beats a failed one
        ([math.nan, 0], [math.nan, 1], 0, 0, False),
        ([0, 0], [1, 1], math.nan, 0, False),
        ([1, math.inf], [2, math.inf], 0, 0, True),
    ],
)
def test_hand_cases(a: list[float], b: list[float], violation_a: float, violation_b: float, expected: bool) -> None:
    assert constrained_dominates(a, b, violation_a, violation_b) is expected


def test_mask_in_two_dimensions_keeps_duplicates_of_a_front_point() -> None:
    points = np.array([[1, 4], [2, 2], [2, 2], [4, 1], [3, 3], [2, 4], [math.nan, 0]])
    assert non_dominated_mask(points).tolist() == [True, True, True, True, False, False, False]


def test_sort_in_two_dimensions() -> None:
    points = np.array([[1, 4], [2, 5], [4, 1], [5, 5], [0, 0], [0, 0], [math.nan, 0]])
    violations = [0, 0, 0, 0, 0.5, 0.1, 0]
    assert non_dominated_sort(points, violations).tolist() == [0, 1, 0, 2, 4, 3, 5]


def test_without_a_feasible_row_the_least_violation_is_the_front() -> None:
    assert non_dominated_mask([[5, 5], [0, 0], [9, 9]], [1, 2, 1]).tolist() == [True, False, True]


def test_failed_rows_are_no_front_even_alone() -> None:
    assert not non_dominated_mask([[math.nan, 1]]).any()
    assert non_dominated_sort([[math.nan, 1]]).tolist() == [1]


def test_an_infinity_is_a_value_like_any_other() -> None:
    points = [[0.0, 0.5, 0.0], [math.inf, 0.0, 0.5], [math.inf, 0.0, math.inf]]
    assert non_dominated_mask(points).tolist() == [True, True, False]
    assert non_dominated_sort(points).tolist() == [0, 0, 1]


def test_empty_sets_are_fine() -> None:
    assert non_dominated_mask([]).shape == (0,)
    assert non_dominated_sort(np.empty((0, 3)), []).shape == (0,)


@pytest.mark.parametrize("points", [[1.0, 2.0], np.zeros((2, 0)), np.zeros((1, 1, 1))])
def test_wrong_shapes_are_refused(points: object) -> None:
    with pytest.raises(ValueError, match="points must be"):
        non_dominated_mask(points)  # type: ignore[arg-type]


def test_one_violation_per_row_is_needed() -> None:
    with pytest.raises(ValueError, match="violations must be"):
        non_dominated_mask([[1, 2], [2, 1]], [0.0])
    with pytest.raises(ValueError, match="two points"):
        constrained_dominates([1, 2], [1])


@given(populations())
def test_mask_equals_brute_force(population: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    points, violations = population
    mask = non_dominated_mask(points, violations)
    assert mask.tolist() == brute_force_mask(points, violations)
    members = np.flatnonzero(mask)
    assert not any(
        constrained_dominates(points[i], points[j], violations[i], violations[j]) for i in members for j in members
    )


@given(populations(), st.integers(0, 2**16))
def test_mask_and_sort_follow_a_permutation(
    population: tuple[NDArray[np.float64], NDArray[np.float64]], seed: int
) -> None:
    points, violations = population
    order = np.random.default_rng(seed).permutation(len(points))
    assert (non_dominated_mask(points[order], violations[order]) == non_dominated_mask(points, violations)[order]).all()
    assert (non_dominated_sort(points[order], violations[order]) == non_dominated_sort(points, violations)[order]).all()


@given(populations())
def test_sort_is_the_front_peeled_again_and_again(
    population: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    points, violations = population
    ranks = non_dominated_sort(points, violations)
    assert ((ranks == 0) == non_dominated_mask(points, violations)).all()
    left, rank = np.arange(len(points)), 0
    while len(left):
        front = np.array(brute_force_mask(points[left], violations[left]))
        if not front.any():  # only failed rows are left
            assert set(ranks[left]) == {max(rank, 1)}
            break
        assert set(ranks[left[front]]) == {rank}
        left, rank = left[~front], rank + 1
