"""Where qsearch keeps what can be computed again: trained example networks, reconstructed weights, cost tables."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from qsearch.errors import QSearchError


def cache_dir() -> Path:
    """Returns ``$QSEARCH_CACHE_DIR``, else ``$XDG_CACHE_HOME/qsearch``, else ``~/.cache/qsearch``."""
    explicit = os.environ.get("QSEARCH_CACHE_DIR")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qsearch"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file so that readers see all of it or nothing, also with several writers at once.

    Args:
        path: The final path; its directory is made.
        write: Writes the content to the temporary path it is given.

    Raises:
        QSearchError: The directory cannot be written (no permission, disk full).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise QSearchError(
            f"cannot write {path}: {error.strerror}", "set QSEARCH_CACHE_DIR to a directory you can write"
        ) from error
    temporary = Path(name)
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise QSearchError(
            f"cannot write {path}: {error.strerror or error}", "free some disk space, or set QSEARCH_CACHE_DIR"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
