"""A program for crash tests: writes numbered transactions, and says on standard output which ones returned.

Run as ``python store_writer.py STORE COUNT``. Transaction i of the study holds three trials, one result, one state
change, one failure and one event, all of them recognisable, so that a half of one would be seen.
"""

from __future__ import annotations

import os
import sys

from qsearch.store import Store, StudyStore
from qsearch.testing.store_samples import sample_config, sample_evaluation, sample_failure
from qsearch.types import TrialState


def write(study: StudyStore, i: int) -> None:
    """Writes transaction i."""
    with study.transaction():
        configs = [sample_config(3 * i + k) for k in range(3)]
        trials = study.add_trials(configs, [TrialState.WAITING] * 3, [{"size": float(i)}] * 3)
        study.add_evaluation(sample_evaluation(3 * i))
        study.set_state(trials[0].id, TrialState.COMPLETE, attempts=1)
        study.add_failure(sample_failure(trials[1].id, message=f"failure {i}"))
        study.add_event("step", {"i": i})


def committed(store: Store) -> int:
    """Returns how many transactions a store holds, and checks that each is whole and the file sound."""
    store.check()
    if store.find_study("first") is None:
        return 0
    study = store.study("first")
    with study.transaction():
        steps = [event.payload["i"] for event in study.events()]
        n = len(steps)
        assert steps == list(range(n))
        assert [trial.config for trial in study.trials()] == [sample_config(k) for k in range(3 * n)]
        complete, waiting = TrialState.COMPLETE, TrialState.WAITING
        assert [trial.state for trial in study.trials()] == [complete, waiting, waiting] * n
        assert study.evaluations() == [sample_evaluation(3 * i) for i in range(n)]
        assert [failure.message for failure in study.failures()] == [f"failure {i}" for i in range(n)]
    return n


if __name__ == "__main__":
    with Store.open(sys.argv[1]) as opened:
        if opened.find_study("first") is None:
            opened.create_study("first", {}, "d")
        log = opened.study("first")
        for step in range(committed(opened), int(sys.argv[2])):
            write(log, step)
            os.write(1, f"{step}\n".encode())
