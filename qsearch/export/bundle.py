"""A folder with everything that is handed on of a front: tables, one configuration for each point, a figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qsearch import __version__
from qsearch.errors import ExportError
from qsearch.export.config import configuration_of
from qsearch.export.extras import MissingExtra
from qsearch.export.files import cannot_write, make_directory, write_file, write_text
from qsearch.export.table import front_text
from qsearch.run.results import Front, FrontPoint

#: Lists the files of an export, so that the next one knows which files are its own.
MANIFEST: Final = "export.json"

#: Draws the front into a file.
Figure = Callable[[Front, Path], None]


@dataclass(frozen=True, slots=True)
class Written:
    """What :func:`write_export` did.

    Attributes:
        directory: The folder.
        files: What was written, relative to the folder.
        notes: What was left out, and why; for people.
    """

    directory: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]


def select_points(front: Front, wanted: str) -> tuple[FrontPoint, ...]:
    """Returns the points that are meant.

    Args:
        front: The front.
        wanted: ``all``, ``knee``, or the number of a point.

    Raises:
        ExportError: No such point is on the front.
    """
    if wanted == "all":
        return front.points
    number = int(wanted) if wanted.isdecimal() else None
    chosen = tuple(p for p in front.points if (p.is_knee if wanted == "knee" else p.id == number))
    if not chosen:
        known = ", ".join(str(point.id) for point in front.points) or "none"
        raise ExportError(f"there is no point {wanted!r} on the front", f"write all, knee, or one of: {known}")
    return chosen


def configuration_name(point: FrontPoint) -> str:
    """Path of a point's configuration in an export."""
    return f"configs/point-{point.id:04d}.json"


def write_export(front: Front, out: Path, points: Sequence[FrontPoint], figure: Figure | None = None) -> Written:
    """Writes ``front.csv``, ``front.json``, ``front.png`` and ``configs/point-NNNN.json`` into a folder.

    A folder that holds an earlier export of the same study is brought up to date: configurations that left the front
    go. Files that no export of this study wrote are never touched. Every file is replaced in one step.

    Args:
        front: The front; tables and figure show all of it.
        out: The folder; made if need be.
        points: Whose configurations to write.
        figure: Draws the front; a missing extra becomes a note. None: no figure.

    Raises:
        ExportError: A file in the way is not from an export of this study, or something cannot be written.
    """
    make_directory(out)
    owned = _owned(front, out)
    contents = {
        "front.csv": front_text(front, "csv"),
        "front.json": front_text(front, "json"),
        **{configuration_name(point): configuration_of(front, point).to_text() for point in points},
    }
    planned = [*contents, *(["front.png"] if figure is not None and front.points else [])]
    in_the_way = [name for name in planned if name not in owned and (out / name).exists()]
    if in_the_way:
        raise ExportError(
            f"{out / in_the_way[0]} is there already, and no export of study {front.spec.study.name!r} wrote it",
            "choose another folder, or move the file away",
        )
    # Listed before they are written, so that an export that was cut short can be repeated.
    _write_manifest(front, out, sorted({*owned, *planned}))
    for name, text in contents.items():
        write_text(out / name, text)
    files, notes = list(contents), []
    if "front.png" in planned and figure is not None:
        try:
            write_file(out / "front.png", lambda temporary: figure(front, temporary))
            files.append("front.png")
        except MissingExtra as error:
            notes.append(f"front.png was not drawn: {error.message} ({error.hint})")
    for name in sorted(owned - set(files)):
        _remove(out, name)
    _write_manifest(front, out, sorted(files))
    return Written(out, tuple(files), tuple(notes))


def _identity(front: Front) -> dict[str, str]:
    return {"name": front.spec.study.name, "digest": front.spec.digest}


def _write_manifest(front: Front, out: Path, files: Sequence[str]) -> None:
    manifest = {"schema": "qsearch.export/1", "qsearch": __version__, "study": _identity(front), "files": list(files)}
    write_text(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _owned(front: Front, out: Path) -> set[str]:
    """Files in the folder that an earlier export of this study wrote.

    Raises:
        ExportError: The folder holds the export of another study, or a manifest that cannot be read.
    """
    path = out / MANIFEST
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
        study, files = manifest["study"], manifest["files"]
        is_manifest = manifest["schema"] == "qsearch.export/1" and all(_is_inside(name) for name in files)
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}", "choose another folder") from error
    except (ValueError, KeyError, TypeError):
        is_manifest, study, files = False, None, []
    if not is_manifest:
        raise ExportError(f"{path} was not written by qsearch", "choose another folder, or move the file away")
    if study != _identity(front):
        name = study.get("name") if isinstance(study, dict) else study
        other = f"study {name!r}" if name != front.spec.study.name else f"another study of the name {name!r}"
        raise ExportError(f"{out} holds the export of {other}", "choose another folder")
    return set(files)


def _is_inside(name: Any) -> bool:
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


def _remove(out: Path, name: str) -> None:
    try:
        (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(out / name, error) from error
