"""What a resumed study may change, and how to tell the user what it may not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsearch.spec.schema import StudySpec

#: Settings that decide where, how long and how patiently the study runs, but not what it finds.
_FREE_SECTIONS = ("budget", "store")
_FREE_EVALUATION = ("timeout_s",)
_LOCKED_EXECUTION = ("scheduling",)  # decides in which order the searcher hears of results

#: Stands for a setting that one of the two studies does not have.
ABSENT = "(not set)"


@dataclass(frozen=True, slots=True)
class Difference:
    """One locked setting that differs.

    Attributes:
        path: Where it stands, such as ``space.layers[0].match``.
        old: Its value in the study that was started, or :data:`ABSENT`.
        new: Its value now, or :data:`ABSENT`.
    """

    path: str
    old: Any
    new: Any


def locked(spec: StudySpec | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a study that may not change on resume.

    Free to change are ``budget``, ``store``, ``evaluation.timeout_s`` and all of ``execution`` but ``scheduling``.

    Args:
        spec: A study, or what its ``resolved()`` returned.
    """
    resolved = spec if isinstance(spec, Mapping) else spec.resolved()
    kept = {key: value for key, value in resolved.items() if key not in _FREE_SECTIONS}
    if isinstance(kept.get("evaluation"), Mapping):
        kept["evaluation"] = {k: v for k, v in kept["evaluation"].items() if k not in _FREE_EVALUATION}
    if isinstance(kept.get("execution"), Mapping):
        kept["execution"] = {k: v for k, v in kept["execution"].items() if k in _LOCKED_EXECUTION}
    return kept


def diff(old_resolved: Mapping[str, Any], new_resolved: Mapping[str, Any]) -> list[Difference]:
    """Lists the locked settings in which two studies differ, in the order of the file.

    Args:
        old_resolved: ``resolved()`` of the study that was started.
        new_resolved: ``resolved()`` of the study as it is now.
    """
    return list(_compare("", locked(old_resolved), locked(new_resolved)))


def _compare(path: str, old: Any, new: Any) -> Iterator[Difference]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _compare(f"{path}.{key}" if path else str(key), old.get(key, ABSENT), new.get(key, ABSENT))
    elif _are_sections(old) and _are_sections(new) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _compare(f"{path}[{index}]", before, after)
    elif old != new or isinstance(old, bool) != isinstance(new, bool):  # True == 1 in Python, not in a study
        yield Difference(path, old, new)


def _are_sections(value: Any) -> bool:
    """True for a list of mappings, which is compared item by item; other lists are shown whole."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, Mapping) for v in value)


def describe(differences: Sequence[Difference]) -> str:
    """Returns the differences as text, one per line; empty when there are none."""
    if not differences:
        return ""
    verb = "setting differs" if len(differences) == 1 else "settings differ"
    lines = [f"  {d.path}: {_show(d.old)} -> {_show(d.new)}" for d in differences]
    return "\n".join([f"{len(differences)} {verb} from the study that was started:", *lines])


def _show(value: Any) -> str:
    return ABSENT if value == ABSENT else json.dumps(value, ensure_ascii=False)
