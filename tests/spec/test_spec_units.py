from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsearch.errors import SpecError
from qsearch.spec import parse_quantity
from qsearch.spec.units import UNITS


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("20 kB", "size", 20_000),
        ("20KB", "size", 20_000),
        ("20 KiB", "size", 20_480),
        (" 1.5 MB ", "size", 1_500_000),
        ("0.5MiB", "size", 524_288),
        ("2 GB", "size", 2e9),
        ("17", "size", 17),
        ("1.5 ms", "latency", 0.0015),
        ("20 us", "latency", 2e-5),  # 20 * 1e-6 in doubles is not 2e-5
        ("20 µs", "latency", 2e-5),
        ("20 μs", "latency", 2e-5),  # Greek mu
        ("3 ns", "latency", 3e-9),
        (".25 s", "latency", 0.25),
        ("1e-3 mJ", "energy", 1e-6),
        ("7 pJ", "energy", 7e-12),
        ("4.5", "bits", 4.5),
        ("4 bits", "bits", 4),
    ],
)
def test_quantities(text: str, kind: str, expected: float) -> None:
    assert parse_quantity(text, kind) == expected


@pytest.mark.parametrize(
    ("text", "kind", "message", "hint"),
    [
        ("fast", "latency", "not a quantity", "1.5 s"),
        ("", "size", "not a quantity", "number and a unit"),
        ("20,000 B", "size", "not a quantity", "unit"),
        ("20 kbit", "size", "no unit of size", "known: B, GB"),
        ("20 kb", "size", "no unit of size", "did you mean 'kB'"),
        ("3 J", "latency", "'J' is a unit of energy, not of latency", "ms"),
        ("3 KIB", "size", "no unit of size", "did you mean 'KiB'"),
        ("1 2 B", "size", "not a quantity", "unit"),
        ("nan B", "size", "not a quantity", "unit"),
    ],
)
def test_errors_name_the_problem_and_a_way_out(text: str, kind: str, message: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_quantity(text, kind)
    assert message in caught.value.message
    assert hint in caught.value.hint


@given(st.sampled_from([(kind, unit) for kind, units in UNITS.items() for unit in units]), st.integers(1, 10**6))
def test_a_quantity_is_the_number_times_its_unit(kind_and_unit: tuple[str, str], number: int) -> None:
    kind, unit = kind_and_unit
    assert parse_quantity(f"{number} {unit}", kind) == pytest.approx(number * float(UNITS[kind][unit]), rel=1e-15)
