from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from crash_tools import REAL_STUDY, SLOW_STUDY, decisions, finish, start


def _uninterrupted(directory: Path, text: str) -> tuple[Path, dict[str, Any]]:
    study = directory / "study.yaml"
    study.write_text(text)
    finish(start("launch", study, "--dir", directory / "whole", "--executor", "serial"))
    return study, decisions(directory / "whole")


@pytest.fixture(scope="session")
def real_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A real study (ptq, then brecq), and what it decides when nothing happens to it."""
    return _uninterrupted(tmp_path_factory.mktemp("real"), REAL_STUDY)


@pytest.fixture(scope="session")
def slow_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """300 evaluations of 0.1 s, and what they decide when nothing happens."""
    return _uninterrupted(tmp_path_factory.mktemp("slow"), SLOW_STUDY)
