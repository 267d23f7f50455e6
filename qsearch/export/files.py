"""Writing files for people: all or nothing, and with errors that say what to do."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from qsearch.errors import ExportError

_HINTS = {
    errno.ENOSPC: "free some space, or choose another place with --out; the study itself is safe",
    errno.EDQUOT: "your quota is used up: free some space, or choose another place with --out",
    errno.EACCES: "choose a place that you may write to, with --out",
    errno.EPERM: "choose a place that you may write to, with --out",
    errno.EROFS: "the file system is read-only: choose another place with --out",
    errno.ENOTDIR: "a part of the path is a file: choose another place with --out",
    errno.EEXIST: "a part of the path is a file: choose another place with --out",
    errno.EISDIR: "it is a directory: name a file",
}


def cannot_write(path: Path, error: OSError) -> ExportError:
    """Returns the error for a file or directory that cannot be written."""
    hint = _HINTS.get(error.errno or 0, "choose another place with --out")
    return ExportError(f"cannot write {path}: {error.strerror or error}", hint)


def make_directory(path: Path) -> None:
    """Makes a directory and its parents.

    Raises:
        ExportError: It cannot be made, or is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Replaces a file in one step: readers see the old one or the new one, and an error leaves the old one.

    Args:
        path: The file; its directory is made. A device or a pipe is written directly.
        write: Writes the content to the path it is given, which has the same suffix.

    Raises:
        ExportError: The file cannot be written, or is a directory.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            write(path)
            return
        path = path.resolve()  # a link stays a link
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Replaces a UTF-8 text file in one step; see :func:`write_file`."""
    write_file(path, lambda temporary: _write_utf8(temporary, text))


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
