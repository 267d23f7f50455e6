from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qsearch.pareto import additive_epsilon, attainment, hypervolume, igd_plus, non_dominated_mask, normalise

#: A 4 x 4 x ... grid on [0, 4], so that a dominated box volume can be counted cell by cell.
GRID = st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, -1.0])


@st.composite
def grid_points(draw: st.DrawFn, width: int | None = None) -> NDArray[np.float64]:
    m = width or draw(st.integers(1, 4))
    return draw(hnp.arrays(np.float64, (draw(st.integers(0, 8)), m), elements=GRID))


def counted_volume(points: NDArray[np.float64]) -> float:
    """Share of the cells of the 4^m grid whose lower corner is weakly dominated."""
    corners = np.stack(np.meshgrid(*[np.arange(4.0)] * points.shape[1], indexing="ij"), -1).reshape(-1, points.shape[1])
    return float(np.mean([(points <= corner).all(axis=1).any() for corner in corners]))


def box(m: int, value: float) -> NDArray[np.float64]:
    return np.full(m, value)


def test_hypervolume_by_hand() -> None:
    # Reference (10, 100), ideal (0, 0): points (0.2, 0.6) and (0.6, 0.2) dominate 0.8*0.4 + 0.4*0.8 - 0.4*0.4.
    points = [[2, 60], [6, 20], [7, 70]]
    assert hypervolume(points, reference=[10, 100], ideal=[0, 0]) == pytest.approx(0.48)


def test_points_beyond_the_reference_contribute_nothing() -> None:
    points = np.array([[0, 11], [10, 0], [math.nan, 0], [math.inf, 0]])
    assert hypervolume(points, [10, 10], [0, 0]) == 0.0
    assert hypervolume([[5, 5], [0, 11]], [10, 10], [0, 0]) == pytest.approx(0.25)
    assert hypervolume([], [10, 10], [0, 0]) == 0.0


def test_points_below_the_ideal_do_not_exceed_one() -> None:
    assert hypervolume([[-5, -7]], [1, 1], [0, 0]) == 1.0


@given(grid_points())
def test_hypervolume_equals_counted_cells(points: NDArray[np.float64]) -> None:
    m = points.shape[1]
    assert hypervolume(points, box(m, 4), box(m, 0)) == pytest.approx(counted_volume(points), abs=1e-12)


@given(grid_points(3), grid_points(3), st.integers(0, 2**16))
def test_hypervolume_grows_with_points_and_ignores_their_order(
    points: NDArray[np.float64], more: NDArray[np.float64], seed: int
) -> None:
    together = np.vstack([points, more])
    value = hypervolume(together, box(3, 4), box(3, 0))
    assert 0.0 <= hypervolume(points, box(3, 4), box(3, 0)) <= value + 1e-12 <= 1.0 + 1e-12
    shuffled = np.random.default_rng(seed).permutation(together)
    assert hypervolume(shuffled, box(3, 4), box(3, 0)) == pytest.approx(value, abs=1e-12)
    front = together[non_dominated_mask(together)]
    assert hypervolume(front, box(3, 4), box(3, 0)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("reference", "ideal"),
    [([1, 1], [0, 1]), ([1, 1], [0, 2]), ([1], [0]), ([1, math.inf], [0, 0]), ([1, math.nan], [0, 0])],
)
def test_impossible_corners_are_refused(reference: list[float], ideal: list[float]) -> None:
    with pytest.raises(ValueError, match=r"must be below|fit together"):
        hypervolume([[0.5, 0.5]], reference, ideal)


def test_normalise_maps_the_corners() -> None:
    assert normalise([[10, 3], [20, 5], [30, 7]], reference=[20, 5], ideal=[10, 3]).tolist() == [[0, 0], [1, 1], [2, 2]]


def test_igd_plus_counts_only_what_is_worse() -> None:
    # To (0, 2) the nearer is (1, 1): (1, 0) worse -> 1. To (2, 0): (0, 1) worse -> 1. Mean 1.
    assert igd_plus([[1, 1]], [[0, 2], [2, 0]]) == pytest.approx(1.0)
    assert igd_plus([[0, 0]], [[0, 2], [2, 0]]) == 0.0
    assert igd_plus([[3.0, 6.0], [math.nan, 0.0]], [[0, 2]]) == pytest.approx(5.0)


def test_additive_epsilon_by_hand() -> None:
    assert additive_epsilon([[1, 3], [3, 1]], [[0, 3], [2, 1]]) == pytest.approx(1.0)
    assert additive_epsilon([[0, 0]], [[1, 2]]) == pytest.approx(-1.0)


@given(grid_points(2), grid_points(2))
def test_distance_indicators_equal_their_definition(points: NDArray[np.float64], front: NDArray[np.float64]) -> None:
    if not len(front):
        return
    if not len(points):
        assert igd_plus(points, front) == additive_epsilon(points, front) == math.inf
        return
    gap = points[None, :, :] - front[:, None, :]
    plus = np.sqrt((np.maximum(gap, 0.0) ** 2).sum(axis=2)).min(axis=1).mean()
    assert igd_plus(points, front) == pytest.approx(plus, abs=1e-12)
    assert additive_epsilon(points, front) == pytest.approx(gap.max(axis=2).min(axis=1).max(), abs=1e-12)
    assert igd_plus(np.vstack([points, front]), front) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("front", [[], [[math.nan, 1]], [[1, 2, 3]]])
def test_a_usable_reference_front_is_needed(front: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="reference front"):
        igd_plus([[1, 2]], front)
    with pytest.raises(ValueError, match="reference front"):
        additive_epsilon([[1, 2]], front)


def test_attainment_by_hand() -> None:
    points = [[9.0, 1.0], [5.0, 2.0], [7.0, 2.0], [1.0, 8.0], [math.nan, 0.0]]
    assert attainment(points, 1, [0.5, 1, 2, 5, 8]).tolist() == [math.inf, 9, 5, 5, 1]
    assert attainment(points, 0, [6.0], value_column=1).tolist() == [2]
    assert attainment([], 1, [1.0, 2.0]).tolist() == [math.inf, math.inf]
    assert attainment([[math.nan, 1.0]], 1, [2.0]).tolist() == [math.inf]


@given(grid_points(2), st.lists(st.floats(-2, 6), max_size=5))
def test_attainment_never_gets_worse_with_a_larger_threshold(
    points: NDArray[np.float64], thresholds: list[float]
) -> None:
    values = attainment(points, 1, sorted(thresholds))
    assert (values[1:] <= values[:-1]).all()


def test_attainment_refuses_unknown_columns_and_nan() -> None:
    with pytest.raises(ValueError, match="no column 2"):
        attainment([[1, 2]], 2, [1])
    with pytest.raises(ValueError, match="thresholds"):
        attainment([[1, 2]], 1, [math.nan])
