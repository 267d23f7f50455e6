"""From pydantic's errors to sentences for the person who wrote the study file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from qsearch.errors import SpecError, nearest
from qsearch.spec.fields import CUSTOM

#: Where something stands in a file: keys and list positions from the top.
Location = tuple[str | int, ...]

#: Errors beyond this many are only counted.
SHOWN = 10


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a study file."""

    location: Location
    message: str
    hint: str = ""

    @property
    def path(self) -> str:
        """The location as people write it: ``space.layers[0].match``."""
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.location).lstrip(".")


def spec_error(problems: Iterable[Problem], source: str, lines: Mapping[Location, int]) -> SpecError:
    """Returns one error that shows all problems, in the order of the file.

    Args:
        problems: At least one.
        source: Name of the file.
        lines: Line of each location; a location that is not there takes the line of what contains it.
    """

    def line(problem: Problem) -> int | None:
        ends = range(len(problem.location), -1, -1)
        return next((lines[problem.location[:end]] for end in ends if problem.location[:end] in lines), None)

    def place(problem: Problem) -> str:
        number = line(problem)
        where = f"{source}:{number}" if number is not None else source
        return f"{where}: {problem.path}: {problem.message}" if problem.location else f"{where}: {problem.message}"

    ordered = sorted(problems, key=lambda problem: line(problem) or 0)
    if len(ordered) == 1:
        return SpecError(place(ordered[0]), ordered[0].hint)
    shown = [f"  {place(p)}" + (f" ({p.hint})" if p.hint else "") for p in ordered[:SHOWN]]
    if len(ordered) > SHOWN:
        shown.append(f"  and {len(ordered) - SHOWN} more")
    return SpecError("\n".join([f"{source} has {len(ordered)} errors:", *shown]), "correct the lines named above")


def translate(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Words the errors of one validation.

    Args:
        error: What pydantic found.
        model: The model that was validated; its fields are the known keys.
    """
    details = error.errors(include_url=False)
    # Follows from another error: the default objectives were not made because the devices are wrong.
    return [_word(detail, model) for detail in details if detail["type"] != "default_factory_not_called"]


def _word(detail: ErrorDetails, model: type[BaseModel]) -> Problem:
    location, kind, value = tuple(detail["loc"]), detail["type"], detail["input"]
    context = detail.get("ctx", {})
    keys = _keys_at(model, location[:-1] if kind == "extra_forbidden" else location)
    if kind == CUSTOM:
        return Problem(location, context["message"], context["hint"])
    if kind == "extra_forbidden":
        return Problem(location, "unknown key", nearest(str(location[-1]), keys))
    if kind == "missing":
        return Problem(location, "is missing", "this key has no default")
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        hint = nearest(value, known) if isinstance(value, str) else f"known: {', '.join(known)}"
        return Problem(location, f"cannot be {show(value)}", hint)
    wanted = _WANTED.get(kind)
    if kind == "model_type":
        wanted = f"a mapping with the keys {', '.join(keys)}"
    if wanted is not None:
        hint = "put it in quotes" if kind == "string_type" and isinstance(value, int | float) else ""
        return Problem(location, f"should be {wanted.format(**context)}, not {show(value)}", hint)
    return Problem(location, f"{detail['msg']}, not {show(value)}")


#: By pydantic's error type, what the value should have been.
_WANTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "made of letters, digits, '.', '_' and '-'",
    "bool_type": "true or false",
    "tuple_type": "a list such as [...]",
    "dict_type": "a mapping such as {{key: value}}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}


def show(value: Any) -> str:
    """Returns a value as it looks in YAML, with its kind where that is the point."""
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return f"the text {text}" if isinstance(value, str) else text if len(text) <= 40 else f"{text[:37]}..."


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """Returns the keys that a study file may have at ``location``; none where it is not a section."""
    annotation: Any = model
    for part in location:
        annotation = _unwrap(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(part))
            annotation = field.annotation if field else None
        elif get_args(annotation):
            annotation = get_args(annotation)[-1 if get_origin(annotation) is dict else 0]
        else:
            return []
    annotation = _unwrap(annotation)
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _unwrap(annotation: Any) -> Any:
    """Strips ``Annotated`` and ``| None``."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = next(argument for argument in get_args(annotation) if argument is not type(None))
    return annotation
