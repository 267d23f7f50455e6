"""YAML text to plain values, with the line of every key and list item."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from qsearch.errors import SpecError
from qsearch.spec.problems import Location, Problem

_PREFIX = "tag:yaml.org,2002:"

#: Nested aliases can make a short text enormous; no study file comes near this many values.
_MAX_VALUES = 100_000


@dataclass
class Document:
    """What a YAML text holds.

    Attributes:
        value: Made of dict (with text keys), list, str, int, float, bool and None; None for an empty text.
        lines: Line (from 1) of each key and list item.
        problems: What a study cannot use: duplicate keys, keys that are not text, dates, tags, NaN.
    """

    value: Any = None
    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_document(text: str, source: str) -> Document:
    """Reads YAML.

    The node tree is walked here rather than by a loader, so that all problems are found and not only the first.

    Args:
        text: The text; at most one YAML document.
        source: Name of the file, for errors.

    Raises:
        SpecError: The text is not YAML.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text.removeprefix("\ufeff"))
        document = Document()
        if root is not None:
            document.value = _Builder(yaml, document).build(root, ())
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark is not None else source
        problem = (error.problem or error.context or "not YAML").strip()
        raise SpecError(f"{where}: {problem}", _syntax_hint(problem)) from error
    except YAMLError as error:
        raise SpecError(f"{source}: {' '.join(str(error).split())}", "remove that character") from error
    except (RecursionError, OverflowError) as error:
        raise SpecError(f"{source}: nested too deeply or too large", "a study file is a few levels deep") from error
    return document


def _syntax_hint(problem: str) -> str:
    if "'\\t'" in problem or "tab" in problem:
        return "indent with spaces, not with tabs"
    if "another document" in problem:
        return "keep one study per file: remove the second '---'"
    return "check colons, brackets, quotes and the indentation, there and on the line before"


class _Builder:
    def __init__(self, yaml: YAML, document: Document) -> None:
        self._yaml = yaml
        self._document = document
        self._open: set[int] = set()  # nodes being built: an alias to one of them is a cycle
        self._built = 0

    def build(self, node: Node, location: Location) -> Any:
        """Returns the value of a node; notes lines and problems on the way."""
        self._document.lines.setdefault(location, node.start_mark.line + 1)
        self._built += 1
        if self._built > _MAX_VALUES:
            raise OverflowError
        if id(node) in self._open:
            return self._refuse(location, "refers to itself", "write the value out instead of using an alias")
        self._open.add(id(node))
        try:
            if isinstance(node, ScalarNode):
                return self._scalar(node, location)
            if isinstance(node, SequenceNode) and node.tag == f"{_PREFIX}seq":
                return [self.build(item, (*location, index)) for index, item in enumerate(node.value)]
            if isinstance(node, MappingNode) and node.tag == f"{_PREFIX}map":
                return self._mapping(node, location)
            return self._refuse(location, f"the tag {_short(node)} is not used in study files", "remove it")
        finally:
            self._open.discard(id(node))

    def _refuse(self, location: Location, message: str, hint: str) -> None:
        self._document.problems.append(Problem(location, message, hint))

    def _scalar(self, node: ScalarNode, location: Location) -> Any:
        try:
            value = self._yaml.constructor.construct_object(node, deep=True)
        except (YAMLError, ValueError):
            return self._refuse(location, f"{node.value!r} cannot be read as {_short(node)}", "put it in quotes")
        if isinstance(value, float) and not math.isfinite(value):
            return self._refuse(location, f"{node.value} is not a number that can be used here", "write a finite one")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return self._refuse(location, f"YAML reads {node.value!r} as a {type(value).__name__}", "put it in quotes")

    def _mapping(self, node: MappingNode, location: Location) -> dict[str, Any]:
        merges = [item for key, item in node.value if key.tag == f"{_PREFIX}merge"]
        merged = [mapping for item in merges for mapping in self._merged(item, location)]
        result: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, item in node.value:
            if key.tag == f"{_PREFIX}merge":
                continue
            if not isinstance(key, ScalarNode) or key.tag != f"{_PREFIX}str":
                shown = repr(key.value) if isinstance(key, ScalarNode) else "a list or mapping"
                self._document.lines[*location, str(key.value)] = key.start_mark.line + 1
                self._refuse((*location, str(key.value)), f"the key {shown} is not text", "put it in quotes")
            elif key.value in lines:
                place = (*location, key.value)
                self._refuse(place, f"is given twice, first on line {lines[key.value]}", "remove one of the two")
                self._document.lines[place] = key.start_mark.line + 1
            else:
                lines[key.value] = self._document.lines[*location, key.value] = key.start_mark.line + 1
                result[key.value] = self.build(item, (*location, key.value))
        for mapping in merged:
            result = {**mapping, **result}
        return result

    def _merged(self, node: Node, location: Location) -> Iterator[dict[str, Any]]:
        """Yields what stands behind ``<<``: one mapping or a list of them, the first of which counts most."""
        for item in node.value if isinstance(node, SequenceNode) else [node]:
            value = self.build(item, location)
            if isinstance(value, dict):
                yield value
            else:
                self._refuse(location, "'<<' is not followed by a mapping", "merge a mapping, such as '<<: *anchor'")


def _short(node: Node) -> str:
    return str(node.tag).removeprefix(_PREFIX)
