"""Reading a study's log, also while it runs; loads neither torch nor Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsearch.run.results import Front


def load_front(directory: Path) -> Front:
    """Reads the front of a study.

    Raises:
        StoreError: There is no study, or it has no results yet.
    """
    from qsearch.errors import StoreError
    from qsearch.run.directory import StudyDirectory
    from qsearch.run.results import read_front

    home = StudyDirectory(directory)
    spec = home.load()
    where = home.store_url(spec)
    if isinstance(where, Path) and not where.exists():
        raise StoreError(f"the study in {directory} has no results yet", f"start it with `qsearch resume {directory}`")
    with home.open_store(spec, read_only=True) as store:
        return read_front(store.study(spec.study.name))
