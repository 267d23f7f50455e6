"""Reads a study file; every error names the file, the line and the key, and all of them are shown at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qsearch.errors import SpecError, nearest
from qsearch.spec.document import read_document
from qsearch.spec.paths import BASE
from qsearch.spec.problems import Location, Problem, show, spec_error, translate
from qsearch.spec.schema import StudySpec

_SMALLEST = "a study file needs at least 'study: {name: ...}', 'model: ...' and 'data: ...'"


def load_spec(path: str | os.PathLike[str]) -> StudySpec:
    """Reads a study file.

    Files that it names (weights, device descriptions) are looked for in its own directory first; those that are there
    become absolute paths.

    Args:
        path: The YAML file.

    Raises:
        SpecError: The file is missing, is not YAML, or is not a study.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        beside = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = nearest(path.name, beside) if beside else f"there is no YAML file in {path.parent}"
        raise SpecError(f"{path}: no such file", hint) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SpecError(f"{path}:{line}: the file is not UTF-8 text", "save it as UTF-8") from error
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}", "give the path of a readable YAML file") from error
    return parse_spec(text, str(path), path.absolute().parent)


def parse_spec(text: str, source_name: str = "study", base: Path | None = None) -> StudySpec:
    """Reads a study from YAML text.

    Args:
        text: The YAML.
        source_name: What errors call it.
        base: Directory in which relative paths are looked for; None leaves them alone.

    Raises:
        SpecError: The text is not YAML, or not a study.
    """
    document = read_document(text, source_name)
    if document.value is None and not document.problems:
        raise SpecError(f"{source_name}: the file is empty", _SMALLEST)
    if not isinstance(document.value, dict) and not document.problems:
        line = document.lines[()]
        raise SpecError(f"{source_name}:{line}: this is {show(document.value)}, not a mapping of sections", _SMALLEST)
    return _validate(document.value, source_name, base, document.lines, document.problems)


def spec_from_mapping(value: Mapping[str, Any], source_name: str = "study") -> StudySpec:
    """Builds a study from plain values, such as what :meth:`StudySpec.resolved` returned.

    Args:
        value: The sections.
        source_name: What errors call it.

    Raises:
        SpecError: The values are not a study.
    """
    return _validate(value, source_name, None, {}, [])


def _validate(
    value: Any, source: str, base: Path | None, lines: Mapping[Location, int], problems: list[Problem]
) -> StudySpec:
    spec: StudySpec | None = None
    problems = list(problems)
    if isinstance(value, Mapping):
        reported = {problem.location for problem in problems}
        try:
            spec = StudySpec.model_validate(value, context={BASE: base})
        except ValidationError as error:
            # What could not be read was reported already; it came here as null.
            problems += [
                problem
                for problem in translate(error, StudySpec)
                if not any(problem.location[:end] in reported for end in range(len(problem.location) + 1))
            ]
    if spec is None or problems:
        raise spec_error(problems, source, lines)
    return spec
