from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from conftest_run import KEYS, done, failed, log_of, make_spec, true_score, work_off

from qsearch.errors import NondeterministicEvaluation, StudyMismatchError
from qsearch.run.broker import Broker
from qsearch.run.jobs import Outcome
from qsearch.run.status import Phase
from qsearch.store import Evaluation
from qsearch.types import Score, TrialState

STEADY = {"execution": {"scheduling": "steady_state"}}


@pytest.mark.parametrize("changes", [{}, STEADY, {"searcher": "random"}, {"searcher": "random", **STEADY}])
def test_a_study_runs_to_its_budget_and_scores_finalists_on_test(open_broker: Any, changes: dict[str, Any]) -> None:
    broker = open_broker(make_spec(**changes))
    work_off(broker)
    assert broker.phase is Phase.DONE
    trials = broker.store.trials()
    assert len(trials) == 40
    assert all(trial.state is TrialState.COMPLETE for trial in trials)
    assert len({trial.config for trial in trials}) == 40
    assert 1 <= len(broker.store.evaluations(split="test")) <= 5
    assert len(broker.store.evaluations(split="validation")) == 40


@pytest.mark.parametrize("changes", [{}, STEADY])
def test_every_final_trial_is_told_exactly_once(open_broker: Any, changes: dict[str, Any]) -> None:
    broker = open_broker(make_spec(**changes))
    work_off(broker)
    told = [trial for kind, payload in log_of(broker) if kind == "tell" for trial in payload["trials"]]
    assert sorted(told) == list(range(40))


def test_generational_search_does_not_depend_on_the_order_of_results(open_broker: Any, tmp_path: Path) -> None:
    straight = open_broker(make_spec(), path=tmp_path / "a.db")
    work_off(straight)
    expected = log_of(straight), [t.config for t in straight.store.trials()]

    shuffled = open_broker(make_spec(), workers=5, path=tmp_path / "b.db")
    rng = random.Random(0)
    held: list[tuple[int, Any]] = []
    while not shuffled.done:
        while (lease := shuffled.lease()) is not None:
            held.extend((lease.id, job) for job in lease.jobs)
        if shuffled.done:
            break
        rng.shuffle(held)
        lease_id, job = held.pop()
        shuffled.report(lease_id, [done(job, seconds=rng.random())])
    assert (log_of(shuffled), [t.config for t in shuffled.store.trials()]) == expected


@pytest.mark.parametrize("steps", range(0, 46, 3))
def test_a_generational_study_stopped_anywhere_continues_as_if_it_never_was(
    open_broker: Any, tmp_path: Path, steps: int
) -> None:
    whole = open_broker(make_spec(), path=tmp_path / "whole.db")
    work_off(whole)
    expected = log_of(whole), [(t.config, t.state) for t in whole.store.trials()], len(whole.store.evaluations())

    broker = open_broker(make_spec(), path=tmp_path / "stopped.db")
    before = work_off(broker, steps)
    broker.lease()  # handed out, never reported
    broker = open_broker(make_spec(), path=tmp_path / "stopped.db")
    after = work_off(broker)
    assert (log_of(broker), [(t.config, t.state) for t in broker.store.trials()], before + after) == expected


@pytest.mark.parametrize("steps", [0, 1, 7, 20, 39, 41])
def test_a_steady_state_study_replays_its_log_and_loses_nothing(open_broker: Any, steps: int) -> None:
    spec = make_spec(**STEADY)
    broker = open_broker(spec)
    before = work_off(broker, steps)
    recorded = {e.key for e in broker.store.evaluations()}
    broker = open_broker(spec)
    assert {e.key for e in broker.store.evaluations()} == recorded
    after = work_off(broker)
    assert broker.phase is Phase.DONE
    assert before + after == len(broker.store.evaluations())
    again = open_broker(spec)
    assert again.phase is Phase.DONE
    assert again.lease() is None


def test_a_searcher_that_does_not_repeat_the_log_is_refused(open_broker: Any) -> None:
    work_off(open_broker(make_spec()), 10)
    with pytest.raises(StudyMismatchError, match=r"does not repeat trials 0\.\.7"):
        open_broker(make_spec(study={"name": "small", "seed": 4}))


def test_a_raising_candidate_is_retried_alone_then_abandoned(open_broker: Any) -> None:
    broker = open_broker(make_spec())
    poison = None
    attempts = []
    while not broker.done:
        lease = broker.lease()
        poison = poison or lease.jobs[0].key
        for job in lease.jobs:
            if job.key == poison:
                attempts.append((job.attempt, len(lease.jobs)))
                broker.report(lease.id, [failed(job)])
            else:
                broker.report(lease.id, [done(job)])
        broker.close(lease.id)
    assert [attempt for attempt, _ in attempts] == [1, 2, 3]
    assert [size for _, size in attempts[1:]] == [1, 1]
    states = [trial.state for trial in broker.store.trials()]
    assert states.count(TrialState.ABANDONED) == 1
    assert states.count(TrialState.COMPLETE) == 39
    assert [failure.attempt for failure in broker.store.failures()] == [1, 2, 3]
    assert broker.phase is Phase.DONE


def _grow_leases(broker: Broker) -> None:
    """Finishes one job, so that the next lease is larger."""
    lease = broker.lease()
    broker.report(lease.id, [done(lease.jobs[0], seconds=0.05)])
    broker.close(lease.id)


def test_a_lost_worker_costs_nobody_an_attempt_when_several_jobs_were_open(open_broker: Any) -> None:
    broker = open_broker(make_spec())
    _grow_leases(broker)
    lease = broker.lease()
    assert len(lease.jobs) >= 2
    broker.report(lease.id, [])
    broker.close(lease.id, "killed")
    assert broker.store.failures() == []
    sizes = []
    seen: list[str] = []
    suspects = {job.key for job in lease.jobs}
    while suspects - set(seen):
        following = broker.lease()
        if {job.key for job in following.jobs} & suspects:
            sizes.append(len(following.jobs))
        seen += [job.key for job in following.jobs]
    assert set(sizes) == {1}


def test_a_worker_lost_with_one_open_job_charges_that_job(open_broker: Any) -> None:
    broker = open_broker(make_spec())
    lease = broker.lease()
    assert len(lease.jobs) == 1
    broker.close(lease.id, "killed")
    (failure,) = broker.store.failures()
    assert (failure.key, failure.kind, failure.attempt) == (lease.jobs[0].key, "worker_lost", 1)
    work_off(broker)
    assert broker.phase is Phase.DONE
    assert all(trial.state is TrialState.COMPLETE for trial in broker.store.trials())


def test_a_killed_driver_charges_nobody(open_broker: Any) -> None:
    for _ in range(5):
        broker = open_broker(make_spec())
        broker.lease()
    work_off(broker)
    assert broker.store.failures() == []


def test_results_of_a_closed_lease_are_still_recorded_once(open_broker: Any) -> None:
    broker = open_broker(make_spec())
    lease = broker.lease()
    broker.close(lease.id, "thought dead")
    late = done(lease.jobs[0])
    broker.report(lease.id, [late])
    broker.report(lease.id, [late])
    assert [e.key for e in broker.store.evaluations()] == [late.key]
    work_off(broker)
    assert len(broker.store.evaluations(split="validation")) == 40


def test_another_result_for_the_same_key_is_an_error_and_changes_nothing(open_broker: Any) -> None:
    broker = open_broker(make_spec())
    lease = broker.lease()
    job = lease.jobs[0]
    broker.report(lease.id, [done(job)])
    right = true_score(job.config)
    wrong = Score(right.accuracy - 1, right.loss, right.correct - 10, right.samples)
    with pytest.raises(NondeterministicEvaluation):
        broker.store.add_evaluation(Evaluation(job.key, job.config, "ptq", "validation", wrong, 0.1, "other", 0.0))
    assert broker.store.find_evaluation(job.key).score == right


def test_unknown_outcomes_are_ignored(open_broker: Any) -> None:
    broker = open_broker(make_spec())
    broker.report(99, [Outcome("no such key", Score(1.0, 1.0, 1, 100), 0.1, "worker")])
    assert broker.store.evaluations() == []


def test_a_store_shared_by_two_studies_pays_for_an_evaluation_once(open_broker: Any, tmp_path: Path) -> None:
    first = open_broker(make_spec(), path=tmp_path / "shared.db")
    work_off(first)
    other = make_spec(study={"name": "other", "seed": 3})
    second = open_broker(other, path=tmp_path / "shared.db")
    assert work_off(second) == 0
    assert second.phase is Phase.DONE
    assert len(second.store.evaluations(split="validation")) == 40


def test_a_larger_budget_continues_a_finished_study(open_broker: Any) -> None:
    work_off(open_broker(make_spec()))
    broker = open_broker(make_spec(budget={"evaluations": 60}))
    work_off(broker)
    assert len(broker.store.trials()) == 60
    assert broker.phase is Phase.DONE


def test_constraints_hold_for_every_evaluated_candidate(open_broker: Any) -> None:
    spec = make_spec(constraints=["size <= 3 kB", "mean_weight_bits <= 5"])
    broker = open_broker(spec)
    work_off(broker)
    assert all(trial.costs["size"] <= 3000 for trial in broker.store.trials())
    assert len(broker.store.trials()) == 40


def test_a_study_whose_candidates_all_fail_is_stopped(open_broker: Any) -> None:
    broker = open_broker(make_spec())
    while not broker.done:
        lease = broker.lease()
        broker.report(lease.id, [failed(job) for job in lease.jobs])
        broker.close(lease.id)
    assert broker.phase is Phase.STOPPED
    status = broker.status()
    assert status.counts["abandoned"] >= 6
    assert status.last_failure == "error happened"


def test_a_failing_finalist_does_not_hold_up_the_end(open_broker: Any) -> None:
    broker = open_broker(make_spec())
    while not broker.done:
        lease = broker.lease()
        broker.report(lease.id, [failed(j) if j.split == "test" else done(j) for j in lease.jobs])
        broker.close(lease.id)
    assert broker.phase is Phase.DONE
    assert broker.store.evaluations(split="test") == []


def test_finalists_of_another_fidelity_are_scored_on_validation_and_test(open_broker: Any) -> None:
    broker = open_broker(make_spec(finalists={"fidelity": "brecq", "max": 4}))
    work_off(broker)
    finals = broker.store.evaluations(fidelity="brecq")
    assert {e.split for e in finals} == {"validation", "test"}
    assert len(finals) == 2 * len({e.config for e in finals}) <= 8


def test_wall_time_ends_the_search_and_counts_over_sessions(open_broker: Any) -> None:
    now = [1000.0]
    spec = make_spec(budget={"evaluations": None, "wall_time_s": 100.0}, **STEADY)
    broker = open_broker(spec)
    broker.clock = lambda: now[0]
    broker.store.store.clock = broker.clock
    broker._opened_at = now[0]
    for _ in range(30):
        now[0] += 2.0
        work_off(broker, 1)
    assert not broker.done
    asked = len(broker.store.trials())
    now[0] += 60.0
    work_off(broker)
    assert broker.phase is Phase.DONE
    assert len(broker.store.trials()) <= asked + 8


def test_status_counts_what_happened(open_broker: Any) -> None:
    broker = open_broker(make_spec())
    work_off(broker, 12)
    status = broker.status()
    assert status.evaluated == status.counts["complete"] == status.new_evaluations == 12
    assert status.busy_seconds == pytest.approx(12 * 0.05)
    assert 0 < status.hypervolume < 1
    assert status.front >= 1
    assert KEYS.key(broker.store.trials()[0].config, "ptq", "validation") == broker.store.evaluations()[0].key
