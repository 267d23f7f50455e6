"""The Tune executor against real Ray workers; one Ray session for the module."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qsearch.errors import EvaluationError, StudyLockedError, TooManyFailures
from qsearch.run.directory import StudyDirectory
from qsearch.run.status import Status
from qsearch.run.study import RunOptions, front, launch, resume
from qsearch.run.worker import WorkerSettings
from qsearch.store import StudyLock
from qsearch.testing.synthetic import NAME
from qsearch.types import TrialState

STUDY = """
study: {{name: faults, seed: 1}}
model: qsearch:digits_resnet
data: qsearch:digits
devices: [bismo_edge]
objectives: [error, latency, size]
searcher: {{name: genetic, population: 16}}
evaluation: {{fidelity: "{name}", timeout_s: {timeout}}}
fidelities: {{"{name}": {options}}}
finalists: {{max: 4}}
budget: {{evaluations: {evaluations}}}
execution: {{scheduling: {scheduling}, max_attempts: 2}}
"""


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def write_study(directory: Path, options: str = "{}", evaluations: int = 40, timeout: float = 60, **more: Any) -> Path:
    path = directory / "study.yaml"
    scheduling = more.get("scheduling", "steady_state")
    path.write_text(
        STUDY.format(name=NAME, options=options, evaluations=evaluations, timeout=timeout, scheduling=scheduling)
    )
    return path


def states(directory: Path) -> list[TrialState]:
    home = StudyDirectory(directory)
    with home.open_store(home.load(), read_only=True) as store:
        return [trial.state for trial in store.study("faults").trials()]


def failures(directory: Path) -> list[Any]:
    home = StudyDirectory(directory)
    with home.open_store(home.load(), read_only=True) as store:
        return store.study("faults").failures()


def test_a_generational_study_gives_the_front_of_the_serial_executor(tmp_path: Path) -> None:
    study = write_study(tmp_path, scheduling="generational")
    serial = launch(study, tmp_path / "serial", RunOptions(executor="serial"))
    parallel = launch(study, tmp_path / "tune", RunOptions(workers=2))
    assert parallel.points == serial.points
    assert parallel.is_final


def test_progress_is_reported_and_resume_of_a_finished_study_changes_nothing(tmp_path: Path) -> None:
    heard: list[Status] = []
    study = write_study(tmp_path, options="{seconds: 0.02}")
    first = launch(study, tmp_path / "run", RunOptions(workers=2), heard.append)
    assert heard[-1].evaluated == 40
    assert any(0 < status.evaluated < 40 for status in heard)
    again = resume(tmp_path / "run", RunOptions(workers=2))
    assert again.points == first.points
    assert front(tmp_path / "run").points == first.points


@pytest.mark.parametrize("fault", ["raise", "nan", "kill"])
def test_a_worker_that_fails_once_costs_a_retry_never_the_study(tmp_path: Path, fault: str) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    options = f"{{fault: {fault}, fault_every: 12, fault_directory: '{marks}'}}"
    result = launch(write_study(tmp_path, options, scheduling="generational"), tmp_path / "run", RunOptions(workers=2))
    assert list(marks.iterdir())
    assert states(tmp_path / "run") == [TrialState.COMPLETE] * 40
    assert result.is_final
    if fault != "kill":
        assert len(failures(tmp_path / "run")) >= 1


def test_a_hanging_evaluation_is_ended_at_its_time_limit(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    options = f"{{fault: hang, fault_every: 15, fault_directory: '{marks}'}}"
    result = launch(
        write_study(tmp_path, options, timeout=2, scheduling="generational"), tmp_path / "run", RunOptions(workers=2)
    )
    assert states(tmp_path / "run") == [TrialState.COMPLETE] * 40
    assert result.is_final
    kinds = {failure.kind for failure in failures(tmp_path / "run")}
    assert "timeout" in kinds


def test_a_candidate_that_always_kills_its_worker_is_abandoned_and_only_that_one(tmp_path: Path) -> None:
    options = "{fault: kill, fault_every: 20}"
    study = write_study(tmp_path, options, evaluations=30, scheduling="generational")
    launch(study, tmp_path / "run", RunOptions(workers=2))
    found = states(tmp_path / "run")
    abandoned = found.count(TrialState.ABANDONED)
    assert 1 <= abandoned <= 6
    assert found.count(TrialState.COMPLETE) == 30 - abandoned
    charged = {failure.trial_id for failure in failures(tmp_path / "run")}
    assert charged >= {i for i, state in enumerate(found) if state is TrialState.ABANDONED}


def test_a_study_in_which_everything_fails_stops_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailures, match="synthetic failure"):
        launch(write_study(tmp_path, "{fault: raise, fault_every: 1}"), tmp_path / "run", RunOptions(workers=2))


def test_two_drivers_on_one_study_are_refused(tmp_path: Path) -> None:
    study = write_study(tmp_path, evaluations=10)
    launch(study, tmp_path / "run", RunOptions(executor="serial"))
    with StudyLock(tmp_path / "run" / "study.lock").acquire(), pytest.raises(StudyLockedError):
        resume(tmp_path / "run", RunOptions(workers=2))


def test_a_gpu_that_is_not_there_is_said_before_anything_starts(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    study = write_study(tmp_path, evaluations=10)
    study.write_text(study.read_text().replace("max_attempts: 2", "max_attempts: 2, device: cuda"))
    with pytest.raises(EvaluationError, match="no GPU"):
        launch(study, tmp_path / "run", RunOptions(workers=2))


def test_workers_that_cannot_start_end_the_run_with_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = WorkerSettings.from_spec
    monkeypatch.setattr(WorkerSettings, "from_spec", lambda spec, threads: real(spec, -1))
    with pytest.raises(EvaluationError, match="die before they can evaluate anything"):
        launch(write_study(tmp_path, evaluations=10), tmp_path / "run", RunOptions(workers=2))


def test_nothing_is_left_in_the_scratch_directory(tmp_path: Path) -> None:
    scratch = tmp_path / "run" / "scratch"
    (scratch / "left-by-a-killed-driver").mkdir(parents=True)
    study = write_study(tmp_path, evaluations=10)
    (tmp_path / "run" / "study.yaml").write_text(study.read_text())
    resume(tmp_path / "run", RunOptions(workers=2))
    assert list(scratch.iterdir()) == []


def test_the_command_joins_a_running_cluster_and_leaves_it_running(tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    command = [
        sys.executable,
        "-m",
        "qsearch",
        "launch",
        write_study(tmp_path, evaluations=20, scheduling="generational"),
    ]
    finished = subprocess.run(
        [*command, "--dir", tmp_path / "run", "--address", address, "--workers", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert states(tmp_path / "run") == [TrialState.COMPLETE] * 20
    assert ray.cluster_resources()["CPU"] == 2


def test_an_address_where_nothing_answers_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qsearch", "launch", write_study(tmp_path), "--dir", tmp_path / "run"]
    failed = subprocess.run(
        [*command, "--address", "127.0.0.1:1"], capture_output=True, text=True, timeout=120, check=False
    )
    assert failed.returncode == 2
    assert "127.0.0.1:1" in failed.stderr
    assert "hint" in failed.stderr
