from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qsearch.pareto import knee, non_dominated_mask

POINTS = st.tuples(st.integers(1, 12), st.integers(1, 4)).flatmap(
    lambda shape: hnp.arrays(np.float64, shape, elements=st.integers(-4, 4).map(float))
)


def test_the_corner_of_an_l_shaped_front() -> None:
    assert knee([[0.0, 10.0], [1.0, 2.0], [2.0, 1.5], [10.0, 0.0]]) == 1


def test_the_scale_of_an_objective_does_not_matter() -> None:
    points = np.array([[0, 10], [1, 2], [2, 1.5], [10, 0]])
    assert knee(points * [1e6, 1e-6] + [5, -3]) == 1


def test_dominated_and_failed_rows_are_never_the_knee() -> None:
    # (0.9, 2.1) would be close to the corner but (0.8, 2) dominates it.
    points = np.array([[0.9, 2.1], [math.nan, 0], [-math.inf, 5], [0, 10], [0.8, 2.0], [10, 0]])
    assert knee(points) == 4


def test_a_bulge_away_from_the_ideal_leaves_an_extreme() -> None:
    # All inner members lie above the line: the extremes (distance 0) win, ties go to the smaller first value.
    assert knee([[9, 6], [10, 0], [0, 10], [6, 9]]) == 2


def test_in_three_dimensions_the_plane_goes_through_the_extremes() -> None:
    # Extremes (0, .5, 1), (1, 0, .5), (.5, 1, 0): normal (2/3, 2/3, 2/3); the middle one is below that plane.
    assert knee([[0, 0.5, 1], [1, 0, 0.5], [0.5, 1, 0], [0.3, 0.3, 0.3], [0.6, 0.6, 0.2]]) == 3


def test_one_member_that_is_best_in_two_objectives() -> None:
    # The extremes coincide, so the member closest to the ideal point is taken.
    assert knee([[0, 0, 10], [10, 10, 0], [1, 1, 1]]) == 2


def test_costs_that_go_together_do_not_outvote_the_accuracy() -> None:
    # Three costs in step against one error: the cheapest member has the smallest sum, but it is no compromise.
    cost = np.array([0.0, 0.3, 0.7, 1.0])
    points = np.column_stack([[1.0, 0.3, 0.1, 0.0], cost, cost, cost])
    assert knee(points) == 1


def test_a_plane_that_does_not_face_the_ideal_is_not_used() -> None:
    # The plane through the extremes (rows 0 to 2) has the normal (-4, 5, 5): it would reward a bad first objective.
    points = np.array([[0, 0.1, 0.1], [1, 0, 1], [1, 1, 0], [0.9, 0.05, 0.05]])
    assert knee(points) == 0


def test_objectives_that_do_not_vary_are_left_out() -> None:
    assert knee([[0, 7, 10], [1, 7, 2], [10, 7, 0]]) == 1
    assert knee([[3, 3], [3, 3]]) == 0
    assert knee([[5, 5]]) == 0


@pytest.mark.parametrize("points", [[], [[math.nan, 1]]])
def test_without_a_finite_point_there_is_no_knee(points: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="no knee"):
        knee(points)


@given(POINTS, st.integers(0, 2**16))
def test_the_knee_is_on_the_front_and_independent_of_order(points: NDArray[np.float64], seed: int) -> None:
    index = knee(points)
    assert non_dominated_mask(points)[index]
    order = np.random.default_rng(seed).permutation(len(points))
    assert points[order][knee(points[order])].tolist() == points[index].tolist()
