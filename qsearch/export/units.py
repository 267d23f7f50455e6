"""Numbers for people: one decimal prefix for a whole column, so that it can be read down."""

from __future__ import annotations

import math
from collections.abc import Iterable

_PREFIXES = ((1e-12, "p"), (1e-9, "n"), (1e-6, "u"), (1e-3, "m"), (1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"))

#: Bytes have no fractions.
_LEAST = {"B": 1.0}


def engineering(values: Iterable[float], unit: str) -> tuple[float, str]:
    """Returns what to divide a column by, and the unit that it then has.

    The largest magnitude ends up in [1, 1000). Prefixes are decimal (1 kB is 1000 bytes); micro is written ``u``, so
    that every terminal can show it.

    Args:
        values: The column, in ``unit``; NaN and infinity are ignored.
        unit: ``s``, ``J`` or ``B``.
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    known = [(factor, prefix) for factor, prefix in _PREFIXES if factor >= _LEAST.get(unit, 0.0)]
    if largest == 0.0:
        return 1.0, unit
    # The tolerance keeps 1e-3 / 1e-3 from ending up just below 1.
    fitting = [pair for pair in known if largest / pair[0] >= 1 - 1e-9] or known[:1]
    factor, prefix = fitting[-1]
    return factor, prefix + unit


def significant(value: float, digits: int = 4) -> str:
    """Writes a number with so many significant digits, without an exponent and never rounding whole digits away.

    Args:
        value: A finite number.
        digits: Significant digits.
    """
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)) + 1e-12))
    return f"{value:.{decimals}f}"
