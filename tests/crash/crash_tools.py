"""Running studies in processes of their own, killing them, and comparing what is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from qsearch.run.directory import StudyDirectory
from qsearch.run.study import front
from qsearch.store import StudyStore

REAL_STUDY = """
study: {name: crash, seed: 5}
model: qsearch:digits_resnet
data: {source: qsearch:digits, validation: 150, test: 150}
devices: [bismo_edge]
objectives: [error, latency, size]
searcher: {name: genetic, population: 12}
finalists: {fidelity: brecq, max: 4}
fidelities: {brecq: {iterations: 30, lr: 0.2}}
budget: {evaluations: 48}
execution: {scheduling: generational}
"""

SLOW_STUDY = """
study: {name: crash, seed: 5}
model: qsearch:digits_resnet
data: qsearch:digits
devices: [bismo_edge]
objectives: [error, latency, size]
searcher: {name: genetic, population: 20}
evaluation: {fidelity: "qsearch.testing.synthetic:SyntheticEvaluator"}
fidelities: {"qsearch.testing.synthetic:SyntheticEvaluator": {seconds: 0.1}}
finalists: {max: 8}
budget: {evaluations: 300}
execution: {scheduling: generational}
"""


def start(command: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[bytes]:
    """Starts a qsearch command as the leader of a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "qsearch", command, *map(str, arguments)],
        env={**os.environ, **environment},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of the whole process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finish(process: subprocess.Popen[bytes], timeout: float = 240) -> None:
    """Waits for a command that must succeed."""
    _, errors = process.communicate(timeout=timeout)
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}: {errors.decode()[-3000:]}")


def with_log(directory: Path, read: Any) -> Any:
    """Reads something from the log of a study, None while there is none."""
    home = StudyDirectory(directory)
    if not (directory / "study.db").exists():
        return None
    with home.open_store(home.load(), read_only=True) as store:
        record = store.find_study("crash")
        return read(store.study("crash")) if record else None


def recorded_keys(directory: Path) -> list[str]:
    """Keys of all evaluations the study used, in order."""
    return with_log(directory, lambda study: [e.key for e in study.evaluations()]) or []


def decisions(directory: Path) -> dict[str, Any]:
    """Everything that must not depend on interruptions."""

    def read(study: StudyStore) -> dict[str, Any]:
        return {
            "log": [(e.kind, e.payload) for e in study.events() if e.kind in ("ask", "tell")],
            "trials": [(t.id, t.config.to_json(), t.state, dict(t.costs)) for t in study.trials()],
            "evaluations": sorted((e.key, e.score.to_json()["accuracy"]) for e in study.evaluations()),
        }

    points = [(p.id, p.config.to_json(), dict(p.accuracy), dict(p.costs)) for p in front(directory).points]
    return json.loads(json.dumps({**with_log(directory, read), "front": points}))
