"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
from pathlib import Path

# As on the workers; two threads each would fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

pytest.register_assert_rewrite("qsearch.testing")


def find_shared_data() -> Path | None:
    """Returns the directory of real data for tests: $QSEARCH_SHARED_DATA, or `shared/data` beside the checkout."""
    candidates = [os.environ.get("QSEARCH_SHARED_DATA"), Path(__file__).resolve().parents[2] / "shared" / "data"]
    for candidate in candidates:
        if candidate and Path(candidate, "README.md").is_file():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of real data; skips the test where it is absent."""
    path = find_shared_data()
    if path is None:
        pytest.skip("real data not found: set QSEARCH_SHARED_DATA to a directory that holds it")
    return path


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests never read or write the user's cache."""
    path = tmp_path_factory.mktemp("qsearch-cache")
    os.environ["QSEARCH_CACHE_DIR"] = str(path)
    return path
