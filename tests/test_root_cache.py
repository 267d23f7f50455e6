"""Where the cache is, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qsearch.cache import cache_dir, write_atomically
from qsearch.errors import QSearchError


def test_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QSEARCH_CACHE_DIR", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("QSEARCH_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "qsearch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "qsearch"


def content(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_write_and_replace(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_atomically(path, lambda temporary: temporary.write_text("one"))
    assert content(path.parent) == {"file.txt": "one"}

    def write(temporary: Path) -> None:
        assert temporary.parent == path.parent  # or the last step could not be atomic
        temporary.write_text("tw")
        assert path.read_text() == "one"
        temporary.write_text("two")

    write_atomically(path, write)
    assert content(path.parent) == {"file.txt": "two"}


@pytest.mark.parametrize("kind", [OSError, ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, kind: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise kind("stop")

    with pytest.raises(QSearchError if kind is OSError else kind):
        write_atomically(path, fail)
    assert content(tmp_path) == {"file.txt": "old"}


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(QSearchError, match=r"cannot write .*file\.txt: No space left on device") as error:
        write_atomically(tmp_path / "file.txt", fail)
    assert "free space" in error.value.hint


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(QSearchError, match="cannot write") as error:
        write_atomically(tmp_path / "file" / "x.txt", lambda temporary: temporary.write_text("x"))
    assert "QSEARCH_CACHE_DIR" in error.value.hint
