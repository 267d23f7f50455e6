"""One tiny real study for all tests of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import Ended, run, write_study


@pytest.fixture(scope="session")
def qsearch() -> Any:
    return run


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory, private_cache: Path) -> tuple[Path, Ended]:
    """The directory of a finished study, and how its launch ended. Tests only read it."""
    folder = tmp_path_factory.mktemp("tiny")
    ended = run("launch", write_study(folder), "--dir", folder / "study")
    assert ended.code == 0, ended.err
    return folder / "study", ended


@pytest.fixture(scope="session")
def study(launched: tuple[Path, Ended]) -> Path:
    return launched[0]
