from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
from fronts import POINTS, make_front

from qsearch.errors import ExportError
from qsearch.export import MissingExtra, load_configuration, select_points, write_export
from qsearch.export import bundle as module
from qsearch.run.results import Front


def draw(front: Front, path: Path) -> None:
    path.write_bytes(b"a picture of " + str(len(front.points)).encode())


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_all_files_are_written_and_listed(tmp_path: Path) -> None:
    front, out = make_front(), tmp_path / "deep" / "out"
    written = write_export(front, out, front.points, draw)
    configs = [f"configs/point-{number:04d}.json" for number in (3, 10, 17, 24)]
    assert sorted(written.files) == sorted(["front.csv", "front.json", "front.png", *configs])
    assert sorted(content(out)) == sorted([*written.files, "export.json"])
    assert written.notes == ()
    assert load_configuration(out / configs[1]).is_knee
    assert content(out)["front.png"] == b"a picture of 4"
    assert json.loads(content(out)["export.json"])["files"] == sorted(written.files)


def test_the_same_export_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    front = make_front()
    write_export(front, tmp_path, front.points, draw)
    before = content(tmp_path)
    write_export(front, tmp_path, front.points, draw)
    assert content(tmp_path) == before


def test_what_left_the_front_goes_and_strange_files_stay(tmp_path: Path) -> None:
    write_export(make_front(), tmp_path, make_front().points, draw)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "configs" / "point-9999.json").write_text("mine", encoding="utf-8")
    smaller = make_front(POINTS[:2])
    write_export(smaller, tmp_path, smaller.points, draw)
    names = {name for name in content(tmp_path) if name.startswith("configs")}
    assert names == {"configs/point-0003.json", "configs/point-0010.json", "configs/point-9999.json"}
    assert content(tmp_path)["notes.txt"] == b"mine"


@pytest.mark.parametrize("name", ["front.csv", "configs/point-0010.json", "front.png"])
def test_a_file_of_somebody_else_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    front = make_front()
    with pytest.raises(ExportError, match="is there already") as error:
        write_export(front, tmp_path, front.points, draw)
    assert name in error.value.message
    assert content(tmp_path) == {name: b"mine"}


def test_the_export_of_another_study_is_not_overwritten(tmp_path: Path) -> None:
    write_export(make_front(), tmp_path, make_front().points)
    before = content(tmp_path)
    for other in (make_front(name="other"), make_front(seed=1)):
        with pytest.raises(ExportError, match="holds the export of"):
            write_export(other, tmp_path, other.points)
    assert content(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "qsearch.export/1"}', "\xff"])
def test_a_strange_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "export.json").write_text(text, encoding="latin-1")
    with pytest.raises(ExportError, match="not written by qsearch"):
        write_export(make_front(), tmp_path, ())


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim.txt"
    victim.write_text("mine", encoding="utf-8")
    write_export(make_front(), out, ())
    manifest = json.loads((out / "export.json").read_text(encoding="utf-8"))
    for name in ("../victim.txt", str(victim)):
        (out / "export.json").write_text(json.dumps({**manifest, "files": [name]}), encoding="utf-8")
        with pytest.raises(ExportError, match="not written by qsearch"):
            write_export(make_front(), out, ())
    assert victim.exists()


def test_an_export_that_was_cut_short_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    front, real = make_front(), module.write_text

    def failing(path: Path, text: str) -> None:
        if path.name == "point-0017.json":
            raise ExportError("cannot write: disk full", "")
        real(path, text)

    monkeypatch.setattr(module, "write_text", failing)
    with pytest.raises(ExportError, match="disk full"):
        write_export(front, tmp_path, front.points, draw)
    monkeypatch.setattr(module, "write_text", real)
    written = write_export(front, tmp_path, front.points, draw)
    assert set(content(tmp_path)) == {*written.files, "export.json"}


def test_a_missing_extra_is_a_note(tmp_path: Path) -> None:
    def missing(front: Front, path: Path) -> None:
        raise MissingExtra(
            "drawing the front needs matplotlib, which is not installed", "pip install 'qsearch[report]'"
        )

    written = write_export(make_front(), tmp_path, (), missing)
    assert not (tmp_path / "front.png").exists()
    assert len(written.notes) == 1
    assert "qsearch[report]" in written.notes[0]
    assert "front.png" not in json.loads((tmp_path / "export.json").read_text(encoding="utf-8"))["files"]


def test_an_old_figure_goes_when_it_cannot_be_drawn_again(tmp_path: Path) -> None:
    def missing(front: Front, path: Path) -> None:
        raise MissingExtra("no", "matplotlib")

    write_export(make_front(), tmp_path, (), draw)
    write_export(make_front(), tmp_path, (), missing)
    assert not (tmp_path / "front.png").exists()


def test_a_figure_that_finds_the_disk_full(tmp_path: Path) -> None:
    def full(front: Front, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ExportError, match="No space left"):
        write_export(make_front(), tmp_path, (), full)
    assert not [name for name in content(tmp_path) if "png" in name]


def test_an_empty_front_has_no_figure(tmp_path: Path) -> None:
    written = write_export(make_front([]), tmp_path, (), draw)
    assert sorted(written.files) == ["front.csv", "front.json"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ExportError, match="cannot write") as error:
            write_export(make_front(), out, ())
        assert error.value.hint


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.EACCES, "may write to"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")]
)
def test_a_folder_that_the_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    def refuse(*_: object, **__: object) -> tuple[int, str]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(ExportError, match=os.strerror(number)) as error:
        write_export(make_front(), tmp_path, ())
    assert hint in error.value.hint


def test_selection() -> None:
    front = make_front()
    assert select_points(front, "all") == front.points
    assert [point.id for point in select_points(front, "knee")] == [10]
    assert [point.id for point in select_points(front, "0017")] == [17]
    for wanted in ("5", "best", "", "-3", "1.0"):
        with pytest.raises(ExportError, match="there is no point") as error:
            select_points(front, wanted)
        assert "3, 10, 17, 24" in error.value.hint
    with pytest.raises(ExportError, match="no point 'knee'"):
        select_points(make_front(knee=None), "knee")
