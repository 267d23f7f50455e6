"""kill -9 of the whole process group at random times and at every crash point: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from crash_tools import decisions, finish, kill_group, recorded_keys, start

import qsearch.run.broker  # noqa: F401 (registers its crash points)
from qsearch.store import CRASH_POINTS

pytestmark = [pytest.mark.crash, pytest.mark.timeout(1500)]

KILLS = 30


def _wait_for_news(process: Any, directory: Path, known: int, limit: float) -> None:
    """Waits until the process has recorded something new, or ended, or the limit passed."""
    end = time.monotonic() + limit
    while time.monotonic() < end and process.poll() is None and len(recorded_keys(directory)) <= known:
        time.sleep(0.05)


@pytest.mark.parametrize("executor", ["serial", "tune"])
def test_thirty_random_kills_lose_nothing_and_repeat_nothing(
    slow_study: tuple[Path, dict[str, Any]], tmp_path: Path, executor: str
) -> None:
    study, expected = slow_study
    directory = tmp_path / "run"
    rng = random.Random(20261121)
    known: list[str] = []
    kills = 0
    process = start("launch", study, "--dir", directory, "--executor", executor)
    while kills < KILLS:
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0.0, 6.0))  # any moment, start-up included
        else:
            _wait_for_news(process, directory, len(known), 120)
            time.sleep(rng.uniform(0.0, 0.8))  # in the thick of it
        assert process.poll() is None, f"the study ended before kill {kills + 1}: {process.stderr.read().decode()}"
        kill_group(process)
        kills += 1
        keys = recorded_keys(directory)
        assert keys[: len(known)] == known, "a finished evaluation was lost"
        assert len(set(keys)) == len(keys), "an evaluation was recorded twice"
        known = keys
        if (directory / "study.yaml").exists():
            process = start("resume", directory, "--executor", executor)
        else:
            process = start("launch", study, "--dir", directory, "--executor", executor)
    finish(process)
    assert decisions(directory) == expected
    print(f"{executor}: {kills} kills, {len(known)} evaluations recorded before the last one, lost 0, duplicated 0")


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("point", sorted(set(CRASH_POINTS)))
def test_a_kill_at_every_crash_point_changes_nothing(
    real_study: tuple[Path, dict[str, Any]], tmp_path: Path, point: str, count: int
) -> None:
    study, expected = real_study
    directory = tmp_path / "run"
    process = start(
        "launch", study, "--dir", directory, "--executor", "serial",
        QSEARCH_CRASH_AT=f"{point}:{count}", QSEARCH_CRASH_GROUP="1",
    )  # fmt: skip
    process.communicate(timeout=240)
    if (point, count) == ("broker.finalists", 4):
        assert process.returncode == 0  # passed only once
    else:
        assert process.returncode == -signal.SIGKILL
    finish(start("resume", directory, "--executor", "serial"))
    assert decisions(directory) == expected


def test_a_broker_killed_inside_ray_is_restarted_and_the_study_ends_the_same(
    real_study: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    study, expected = real_study
    directory = tmp_path / "run"
    process = start("launch", study, "--dir", directory, "--executor", "tune", QSEARCH_CRASH_AT="broker.results:5")
    process.communicate(timeout=240)
    keys = recorded_keys(directory)
    assert keys
    finish(start("resume", directory, "--executor", "tune"))
    assert decisions(directory) == expected


def test_a_lost_driver_frees_the_study_for_the_next_one(
    slow_study: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Only the driver is killed, not its group: the broker's process must let go of the study by itself."""
    study, expected = slow_study
    directory = tmp_path / "run"
    process = start("launch", study, "--dir", directory, "--executor", "tune")
    _wait_for_news(process, directory, 20, 120)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finish(start("resume", directory, "--executor", "tune"))
    assert decisions(directory) == expected
