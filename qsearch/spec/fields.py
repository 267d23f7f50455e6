"""Field types that the sections of a study file are made of. None of them converts silently."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints
from pydantic_core import PydanticCustomError

#: pydantic's error type of problems that this room words itself.
CUSTOM = "qsearch"


def fail(message: str, hint: str = "") -> PydanticCustomError:
    """Returns an error for a validator to raise; it ends up in the list that the user sees.

    Args:
        message: What is wrong.
        hint: What to write instead.
    """
    return PydanticCustomError(CUSTOM, "{message}", {"message": message, "hint": hint})


def _ascending(widths: tuple[int, ...]) -> tuple[int, ...]:
    if not widths:
        raise fail("the list is empty", "give at least one width, such as [8]")
    repeated = sorted({bits for bits in widths if widths.count(bits) > 1})
    if repeated:
        raise fail(f"{repeated[0]} is listed twice", "list every width once")
    return tuple(sorted(widths))


def _json_ready(value: Any) -> Any:
    """Refuses numbers that JSON cannot hold, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        raise fail(f"{value} is not a number that can be used here", "write a finite number")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _json_ready(item)
    return value


Text = Annotated[str, StringConstraints(min_length=1)]
#: Names that go into file names and metric names.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$")]
Count = Annotated[int, Field(strict=True, ge=1)]
#: The range that numpy and torch both take.
Seed = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
#: One bit-width that an operand may have.
Bits = Annotated[int, Field(strict=True, ge=1, le=8)]
#: Distinct bit-widths, ascending.
Widths = Annotated[tuple[Bits, ...], AfterValidator(_ascending)]
#: What is passed on to a plug-in without a look inside; null means none.
Options = Annotated[
    dict[str, JsonValue], BeforeValidator(lambda value: {} if value is None else value), AfterValidator(_json_ready)
]


class Section(BaseModel):
    """Base of all parts of a study file: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
