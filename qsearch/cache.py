"""Where qsearch keeps what can be computed again: trained example networks, reconstructed weights, cost tables."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from qsearch.errors import QSearchError

_HINT = "check the permissions and the free space there; QSEARCH_CACHE_DIR sets where the cache is"


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
        # Unlike tempfile's, with the permissions that any new file of the user has.
        temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise QSearchError(f"cannot write {path}: {error.strerror}", _HINT) from error
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise QSearchError(f"cannot write {path}: {error.strerror or error}", _HINT) from error
    finally:
        temporary.unlink(missing_ok=True)
