from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsearch.pareto import Archive, Entry, non_dominated_mask

VALUES = st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, 3.0, math.inf, math.nan])
VIOLATIONS = st.sampled_from([-1.0, 0.0, 0.0, 0.0, 0.5, 2.0, math.nan])


@st.composite
def offers(draw: st.DrawFn) -> list[tuple[int, tuple[float, ...], float]]:
    width = draw(st.integers(1, 4))
    rows = draw(st.lists(st.tuples(st.tuples(*[VALUES] * width), VIOLATIONS), min_size=1, max_size=15))
    return [(i, objectives, violation) for i, (objectives, violation) in enumerate(rows)]


def fill(rows: list[tuple[int, tuple[float, ...], float]]) -> Archive:
    archive = Archive()
    for row in rows:
        archive.add(*row)
    return archive


def test_hand_case() -> None:
    archive = Archive()
    assert archive.add("a", (2, 2))
    assert archive.add("b", (1, 3))
    assert archive.add("c", (2, 2))  # equal to a front point: kept
    assert not archive.add("d", (2, 3))
    assert not archive.add("e", (0, 0), violation=0.1)
    assert not archive.add("f", (0, math.nan))
    assert [entry.id for entry in archive.front()] == ["b", "a", "c"]
    assert archive.add("g", (1, 2))  # dominates all
    assert archive.front() == (Entry("g", (1.0, 2.0)),)
    assert "g" in archive
    assert "a" not in archive
    assert len(archive) == 1


def test_the_least_infeasible_stay_until_something_feasible_comes() -> None:
    archive = Archive()
    assert archive.add(1, (5, 5), 2.0)
    assert archive.add(2, (9, 9), 1.0)
    assert archive.add(3, (8, 10), 1.0)
    assert not archive.add(4, (0, 0), 1.5)
    assert [entry.id for entry in archive.front()] == [3, 2]
    assert archive.add(5, (99, 99), -1.0)
    assert archive.front() == (Entry(5, (99.0, 99.0), 0.0),)


def test_a_member_may_be_offered_again_but_not_with_other_values() -> None:
    archive = Archive()
    archive.add(7, (1, 2))
    assert archive.add(7, (1, 2))
    assert len(archive) == 1
    with pytest.raises(ValueError, match="other values"):
        archive.add(7, (1, 1))


def test_numbers_and_texts_may_be_mixed_as_ids() -> None:
    archive = Archive()
    for id in ("10", 9, "9", 10):
        archive.add(id, (1, 1))
    assert [entry.id for entry in archive.front()] == [9, 10, "10", "9"]


@pytest.mark.parametrize("objectives", [(), (1, 2, 3), ((1, 2),)])
def test_wrong_shapes_are_refused(objectives: tuple[float, ...]) -> None:
    archive = Archive()
    if len(objectives) == 3:
        archive.add(0, (1, 2))
    with pytest.raises(ValueError, match="objectives"):
        archive.add(1, objectives)


def test_points_are_those_of_the_front() -> None:
    archive = Archive()
    assert archive.points().shape == (0, 1)
    archive.add(0, (math.nan, 1, 1))
    assert archive.points().shape == (0, 3)
    archive.add(1, (2, 1, 0))
    archive.add(2, (1, 2, 0))
    assert archive.points().tolist() == [[1, 2, 0], [2, 1, 0]]


@given(offers(), st.integers(0, 2**16))
def test_any_order_gives_the_same_front(rows: list[tuple[int, tuple[float, ...], float]], seed: int) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert fill(rows).front() == fill(shuffled).front()


@given(offers())
def test_the_front_is_the_one_of_the_whole_set(rows: list[tuple[int, tuple[float, ...], float]]) -> None:
    archive = fill(rows)
    mask = non_dominated_mask([r[1] for r in rows], [r[2] for r in rows])
    assert {entry.id for entry in archive.front()} == {row[0] for row, kept in zip(rows, mask, strict=True) if kept}
    assert {entry.id for entry in archive.front()} == {row[0] for row in rows if row[0] in archive}


@given(offers())
def test_add_says_whether_the_candidate_is_a_member(rows: list[tuple[int, tuple[float, ...], float]]) -> None:
    archive = Archive()
    for row in rows:
        assert archive.add(*row) == (row[0] in archive)
        assert np.array_equal(archive.points(), [entry.objectives for entry in archive.front()]) or not len(archive)
