"""Settings of a searcher, checked against a model that the searcher declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from qsearch.errors import SpecError, nearest


class Options(BaseModel):
    """Base of the option models: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


OptionsT = TypeVar("OptionsT", bound=Options)


def read_options(model: type[OptionsT], options: Mapping[str, object], searcher: str) -> OptionsT:
    """Returns the validated options of a searcher.

    Args:
        model: What the searcher accepts.
        options: What the study file says.
        searcher: Name of the searcher, for messages.

    Raises:
        SpecError: An option is unknown or its value is not accepted.
    """
    for name in options:
        if name not in model.model_fields:
            raise SpecError(f"searcher {searcher!r} has no option {name!r}", nearest(str(name), model.model_fields))
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise SpecError(
            f"searcher {searcher!r}, option {name!r}: {first['msg']}, not {first['input']!r}",
            "correct the value in the searcher's options",
        ) from error
