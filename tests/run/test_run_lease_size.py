from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from qsearch.run.lease_size import LARGEST_LEASE, LeaseSizer


def sizer(seconds: list[float], workers: int = 2, lease_seconds: float = 3.0) -> LeaseSizer:
    made = LeaseSizer(lease_seconds, workers)
    for value in seconds:
        made.record(value)
    return made


def test_the_first_lease_is_a_probe() -> None:
    assert sizer([]).size(1000, None) == 1


def test_short_evaluations_fill_the_lease() -> None:
    assert sizer([0.05] * 9).size(None, None) == 60


def test_long_evaluations_go_one_by_one() -> None:
    assert sizer([7200.0]).size(None, None) == 1


def test_one_slow_evaluation_does_not_shrink_the_lease() -> None:
    assert sizer([0.05] * 9 + [60.0]).size(None, None) == 60


def test_the_last_jobs_are_shared() -> None:
    assert sizer([1.0], workers=4).size(4, None) == 1
    assert sizer([0.05], workers=2).size(20, None) == 10


def test_a_searcher_that_learns_bounds_what_is_in_flight() -> None:
    assert sizer([0.05], workers=2).size(None, 32) == 16


@given(
    st.lists(st.floats(0.0, 1e5), min_size=0, max_size=80),
    st.integers(1, 1000),
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.one_of(st.none(), st.integers(1, 10**4)),
)
def test_sizes_stay_in_bounds(seconds: list[float], workers: int, remaining: int | None, limit: int | None) -> None:
    size = sizer(seconds, workers).size(remaining, limit)
    assert 1 <= size <= LARGEST_LEASE
    if remaining is not None and seconds:
        assert size <= math.ceil(remaining / workers)
