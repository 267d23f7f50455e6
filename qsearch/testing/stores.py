"""What every store must do, as a pytest class to subclass.

For readable failures call ``pytest.register_assert_rewrite("qsearch.testing")`` in a ``conftest.py``. Then::

    class TestMyStore(StoreSuite):
        def make_store(self, tmp_path):
            return Store.open(tmp_path / "study.db")
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from qsearch.errors import NondeterministicEvaluation, StoreError, StudyMismatchError
from qsearch.store import Store, StudyStore
from qsearch.testing.store_commits import CommitSuite
from qsearch.testing.store_samples import sample_config, sample_evaluation, sample_failure, snapshot
from qsearch.types import Score, TrialState

__all__ = ["StoreSuite", "sample_config", "sample_evaluation", "sample_failure", "snapshot"]


class StoreSuite(CommitSuite):
    """The contract of :class:`qsearch.store.Store`. Override :meth:`make_store`, and :meth:`make_reader` if durable."""

    # Studies

    def test_new_store_is_empty(self, store: Store) -> None:
        """No study, and asking for one names the problem."""
        assert store.studies() == []
        assert store.find_study("first") is None
        with pytest.raises(StoreError, match="no study 'first'"):
            store.study("first")

    def test_study_round_trip(self, store: Store) -> None:
        """A study comes back as it was created, found by its name and in the list."""
        spec = {"b": [1, {"x": None}], "a": 0.1, "ü": True}
        made = store.create_study("first", spec, "d1", model_digest="m1")
        other = store.create_study("second", {}, "d2")
        assert (made.name, made.spec, made.digest, made.model_digest) == ("first", spec, "d1", "m1")
        assert made.version
        assert other.model_digest is None
        assert other.id != made.id
        assert store.find_study("first") == made
        assert store.studies() == [made, other]
        assert store.study("second").record == other

    def test_name_is_unique(self, store: Store) -> None:
        """A second study of one name is refused and the first one kept."""
        made = store.create_study("first", {"a": 1}, "d1")
        with pytest.raises(StoreError, match="already has a study 'first'"):
            store.create_study("first", {"a": 2}, "d2")
        assert store.studies() == [made]

    def test_unknown_study_suggests_a_name(self, store: Store) -> None:
        """A misspelt name brings up the right one."""
        self.new_study(store, "resnet20")
        with pytest.raises(StoreError, match="did you mean 'resnet20'"):
            store.study("resnet2O")

    def test_replace_spec(self, study: StudyStore) -> None:
        """The specification may change while its locked part does not."""
        known = study.record
        study.replace_spec({"budget": 7}, known.digest)
        assert study.record == replace(known, spec={"budget": 7})
        with pytest.raises(StudyMismatchError, match="another specification"):
            study.replace_spec({"budget": 8}, "another")
        assert study.record.spec == {"budget": 7}

    def test_spec_must_be_json(self, store: Store) -> None:
        """What cannot be read back is refused, not mangled."""
        for bad in ({"x": math.nan}, {"x": object()}):
            with pytest.raises(StoreError, match="cannot be recorded"):
                store.create_study("first", bad, "d")
        assert store.studies() == []

    # Trials

    def test_trials_are_numbered_in_ask_order(self, study: StudyStore) -> None:
        """Numbers start at 0 and go on from batch to batch."""
        first = self.add(study, 5, 3)
        second = self.add(study, 4, state=TrialState.INFEASIBLE)
        assert [trial.id for trial in first + second] == [0, 1, 2]
        assert [trial.config for trial in first + second] == [sample_config(n) for n in (5, 3, 4)]
        assert study.trials() == first + second
        assert self.add(study) == []

    def test_trial_round_trip(self, study: StudyStore) -> None:
        """All fields come back exactly, floats included."""
        costs = {"size": 0.1 + 0.2, "energy@y": 1e-300, "latency@x": 12345678901234567.0}
        (made,) = study.add_trials([sample_config(9)], [TrialState.WAITING], [costs])
        assert made.costs == costs
        assert (made.state, made.attempts) == (TrialState.WAITING, 0)
        assert study.trials() == [made]

    def test_trial_states(self, study: StudyStore) -> None:
        """States change one trial at a time; filters and counts follow."""
        made = self.add(study, 0, 1, 2)
        study.set_state(1, TrialState.FAILED, attempts=1)
        study.set_state(2, TrialState.ABANDONED, attempts=3)
        study.set_state(1, TrialState.COMPLETE)
        assert study.trials() == [
            made[0],
            replace(made[1], state=TrialState.COMPLETE, attempts=1),
            replace(made[2], state=TrialState.ABANDONED, attempts=3),
        ]
        assert [trial.id for trial in study.trials(TrialState.ABANDONED)] == [2]
        assert study.trials(TrialState.FAILED) == []
        assert study.counts() == {
            TrialState.WAITING: 1,
            TrialState.COMPLETE: 1,
            TrialState.FAILED: 0,
            TrialState.ABANDONED: 1,
            TrialState.INFEASIBLE: 0,
        }

    def test_trial_by_config(self, study: StudyStore) -> None:
        """A candidate finds its trial."""
        made = self.add(study, 0, 1)
        assert study.trial_by_config(sample_config(1)) == made[1]
        assert study.trial_by_config(sample_config(2)) is None

    def test_candidate_is_unique(self, study: StudyStore) -> None:
        """A known candidate, or one twice in a batch, refuses the whole batch."""
        made = self.add(study, 0, 1)
        with pytest.raises(StoreError, match="trial 1 "):
            self.add(study, 2, 1)
        with pytest.raises(StoreError, match="candidates 0 and 2 of one batch"):
            self.add(study, 3, 2, 3)
        assert study.trials() == made

    def test_batch_must_be_consistent(self, study: StudyStore) -> None:
        """One state and one set of finite costs per candidate."""
        with pytest.raises(StoreError, match="2 candidates with 1 states"):
            study.add_trials([sample_config(0), sample_config(1)], [TrialState.WAITING], [{}, {}])
        for bad in (math.nan, math.inf):
            with pytest.raises(StoreError, match="costs"):
                study.add_trials([sample_config(0), sample_config(1)], [TrialState.WAITING] * 2, [{}, {"size": bad}])
        assert study.trials() == []

    def test_unknown_trial(self, study: StudyStore) -> None:
        """State and failure of a trial that was never asked."""
        self.add(study, 0)
        with pytest.raises(StoreError, match="no trial 1"):
            study.set_state(1, TrialState.COMPLETE)
        with pytest.raises(StoreError, match="no trial 1"):
            study.add_failure(sample_failure(1))
        assert study.failures() == []

    # Evaluations

    def test_evaluation_round_trip(self, study: StudyStore) -> None:
        """All fields come back exactly, an infinite loss included."""
        normal = sample_evaluation(1)
        diverged = sample_evaluation(2, score=Score(10.0, math.inf, 1, 10), split="test", fidelity="brecq")
        assert study.add_evaluation(normal)
        assert study.add_evaluation(diverged)
        assert study.find_evaluation(normal.key) == normal
        assert study.find_evaluation(diverged.key) == diverged
        assert study.evaluations() == [normal, diverged]
        assert study.evaluations(fidelity="ptq") == [normal]
        assert study.evaluations(split="test") == [diverged]
        assert study.evaluations(fidelity="ptq", split="test") == []

    def test_unknown_keys(self, study: StudyStore) -> None:
        """Unknown keys are simply absent, and cannot be used."""
        known = sample_evaluation(1)
        study.add_evaluation(known)
        assert study.find_evaluation("nothing") is None
        assert study.find_evaluations(["nothing", known.key, known.key]) == {known.key: known}
        assert study.find_evaluations([]) == {}
        with pytest.raises(StoreError, match="no evaluation nothing"):
            study.link_evaluation("nothing")

    def test_equal_result_is_ignored(self, study: StudyStore) -> None:
        """The first result stays, whoever computed the second and whatever it took; tiny loss differences pass."""
        first = sample_evaluation(1)
        study.add_evaluation(first)
        loss = first.score.loss * (1 + 5e-6)
        again = replace(first, worker="other", seconds=9.0, provenance={}, score=replace(first.score, loss=loss))
        assert not study.add_evaluation(again)
        assert study.evaluations() == [first]

    @pytest.mark.parametrize(
        "changes",
        [{"accuracy": 90.00000001}, {"correct": 8}, {"samples": 11}, {"loss": 2.0 * (1 + 3e-5)}, {"loss": math.inf}],
        ids=lambda changes: next(iter(changes)),
    )
    def test_other_result_is_an_error(self, study: StudyStore, changes: dict[str, Any]) -> None:
        """A different score for one key is reported with both, and changes nothing."""
        first = sample_evaluation(1, score=Score(90.0, 2.0, 9, 10), worker="alpha")
        study.add_evaluation(first)
        other = replace(first, score=replace(first.score, **changes), worker="beta")
        with pytest.raises(NondeterministicEvaluation) as caught:
            study.add_evaluation(other)
        for part in (first.key, str(first.score), str(other.score), "alpha", "beta"):
            assert part in caught.value.message
        assert caught.value.hint
        assert study.evaluations() == [first]

    def test_key_of_another_candidate(self, study: StudyStore) -> None:
        """One key cannot stand for two candidates, even with equal scores."""
        first = sample_evaluation(1)
        study.add_evaluation(first)
        for changes in ({"config": sample_config(2)}, {"split": "test"}, {"fidelity": "qat"}):
            with pytest.raises(StoreError, match="stands for"):
                study.add_evaluation(replace(first, **changes))

    def test_studies_share_evaluations(self, store: Store) -> None:
        """A result is found from every study, and listed in those that used it, in the order they did."""
        one, two = self.new_study(store, "one"), self.new_study(store, "two")
        results = [sample_evaluation(number) for number in range(3)]
        for result in results:
            assert one.add_evaluation(result)
        assert two.evaluations() == []
        assert two.find_evaluation(results[1].key) == results[1]
        assert two.link_evaluation(results[2].key)
        assert not two.link_evaluation(results[2].key)
        assert not two.add_evaluation(results[0])
        assert two.evaluations() == [results[2], results[0]]
        assert one.evaluations() == results
        with pytest.raises(NondeterministicEvaluation):
            two.add_evaluation(replace(results[0], score=Score(0.0, 9.0, 0, 10)))

    def test_studies_are_apart(self, store: Store) -> None:
        """Trials, failures and events of one study are not seen in another, which numbers its own from 0."""
        one, two = self.new_study(store, "one"), self.new_study(store, "two")
        self.fill(one)
        before = snapshot(one)
        assert (two.trials(), two.failures(), two.events()) == ([], [], [])
        self.add(two, 1, 0)
        two.set_state(0, TrialState.COMPLETE)
        assert two.add_event("started") == 0
        assert [trial.id for trial in two.trials()] == [0, 1]
        assert snapshot(one) == before

    # Failures and events

    def test_failures_round_trip(self, study: StudyStore) -> None:
        """Failures come back in order, also with text that databases do not like."""
        self.add(study, 0, 1)
        made = [
            sample_failure(1, attempt=2, kind="timeout", message="é \U0001f600"),
            sample_failure(0, traceback=""),
            sample_failure(1),
        ]
        for failure in made:
            study.add_failure(failure)
        assert study.failures() == made
        study.add_failure(sample_failure(0, message="nul \0 and \udcff"))
        assert study.failures()[-1].message == "nul \\0 and \\udcff"

    def test_events_are_ordered(self, study: StudyStore) -> None:
        """Positions count from 0 without gaps; reading goes on after any of them."""
        payloads: list[dict[str, Any]] = [{}, {"trials": [2, 0, 1]}, {"x": {"y": None}, "f": 0.1}]
        assert [study.add_event(f"kind{i}", payload) for i, payload in enumerate(payloads)] == [0, 1, 2]
        events = study.events()
        assert [(event.seq, event.kind, event.payload) for event in events] == [
            (i, f"kind{i}", payload) for i, payload in enumerate(payloads)
        ]
        assert study.events(after=0) == events[1:]
        assert study.events(after=2) == []
        with pytest.raises(StoreError, match="event 'bad'"):
            study.add_event("bad", {"x": math.nan})
        assert study.add_event("next") == 3

    # By value

    def test_reads_are_by_value(self, store: Store, study: StudyStore) -> None:
        """Changing what went in or came out changes nothing in the store."""
        spec: dict[str, Any] = {"list": [1]}
        costs = {"size": 1.0}
        payload: dict[str, Any] = {"list": [1]}
        store.create_study("second", spec, "d")
        (trial,) = study.add_trials([sample_config(0)], [TrialState.WAITING], [costs])
        study.add_event("kind", payload)
        spec["list"].append(2)
        costs["size"] = 2.0
        payload["list"].append(2)
        for mapping in (trial.costs, study.trials()[0].costs):
            mapping["size"] = 3.0  # type: ignore[index]
        study.events()[0].payload["list"].append(3)
        assert store.study("second").record.spec == {"list": [1]}
        assert study.trials()[0].costs == {"size": 1.0}
        assert study.events()[0].payload == {"list": [1]}
