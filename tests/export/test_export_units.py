from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsearch.export import engineering, significant


@pytest.mark.parametrize(
    ("values", "unit", "factor", "shown"),
    [
        ([1.2e-4, 4e-5], "s", 1e-6, "us"),
        ([0.0025], "s", 1e-3, "ms"),
        ([0.999e-3], "J", 1e-6, "uJ"),
        ([1e-3], "J", 1e-3, "mJ"),
        ([17228.0], "B", 1e3, "kB"),
        ([12.0], "B", 1.0, "B"),
        ([0.5], "B", 1.0, "B"),
        ([1e-15], "s", 1e-12, "ps"),
        ([5e12], "B", 1e9, "GB"),
        ([], "s", 1.0, "s"),
        ([0.0], "J", 1.0, "J"),
        ([math.nan, 2.0], "s", 1.0, "s"),
    ],
)
def test_prefix_fits_the_largest_value(values: list[float], unit: str, factor: float, shown: str) -> None:
    assert engineering(values, unit) == (factor, shown)


@given(st.lists(st.floats(min_value=1e-12, max_value=9e11), min_size=1))
def test_largest_value_lies_between_1_and_1000(values: list[float]) -> None:
    factor, _ = engineering(values, "s")
    assert 1 - 1e-9 <= max(values) / factor < 1000 or max(values) >= 1e12


@given(st.floats(min_value=1e-9, max_value=1e9), st.integers(2, 8))
def test_significant_digits_keep_the_value(value: float, digits: int) -> None:
    text = significant(value, digits)
    assert "e" not in text
    assert float(text) == pytest.approx(value, rel=0.5000001 * 10.0 ** (1 - digits), abs=0.5)
    if value < 1:
        assert float(text) == pytest.approx(value, rel=0.5000001 * 10.0 ** (1 - digits))


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (12.345678, "12.35"), (1234567.0, "1234567"), (0.001, "0.001000")]
)
def test_significant_examples(value: float, text: str) -> None:
    assert significant(value) == text
