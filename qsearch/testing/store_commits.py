"""What every store must do about transactions, readers and files; half of :mod:`qsearch.testing.stores`."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qsearch.errors import NondeterministicEvaluation, StoreError
from qsearch.store import Store, StudyStore, Trial
from qsearch.testing.store_samples import sample_config, sample_evaluation, sample_failure, snapshot
from qsearch.types import Score, TrialState, digest


class CommitSuite:
    """Transactions, readers and files: the half of the contract that does not depend on what is written.

    Attributes:
        durable: What was written is found again by a second :meth:`make_store` with the same path.
        views: A reader may keep a transaction open while the writer commits.
    """

    durable = True
    views = True

    def make_store(self, tmp_path: Path) -> Store:
        """Opens the store that lives under ``tmp_path``, and creates it the first time."""
        raise NotImplementedError

    def make_reader(self, tmp_path: Path) -> Store:
        """Opens the same store for reading, while it may be open for writing. Needed if ``durable``."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Any:
        """An open, empty store."""
        with self.make_store(tmp_path) as store:
            yield store

    @pytest.fixture
    def study(self, store: Store) -> StudyStore:
        """An empty study in it."""
        return self.new_study(store)

    def new_study(self, store: Store, name: str = "first") -> StudyStore:
        """Creates a study and returns its log."""
        store.create_study(name, {"name": name, "objectives": ["error", "size"]}, digest(name))
        return store.study(name)

    def add(self, study: StudyStore, *numbers: int, state: TrialState = TrialState.WAITING) -> list[Trial]:
        """Adds the trials of sample candidates."""
        costs = [{"size": number + 0.1, "latency@x": 1e-3 / (number + 1)} for number in numbers]
        return study.add_trials([sample_config(number) for number in numbers], [state] * len(numbers), costs)

    def fill(self, study: StudyStore) -> None:
        """Writes some of everything."""
        self.add(study, 0, 1, 2)
        self.add(study, 3, state=TrialState.INFEASIBLE)
        study.add_evaluation(sample_evaluation(1))
        study.set_state(1, TrialState.COMPLETE, attempts=1)
        study.add_failure(sample_failure(0))
        study.set_state(0, TrialState.FAILED, attempts=1)
        study.add_event("told", {"trials": [1]})

    def need_durable(self) -> None:
        """Skips a test about what outlives the store object."""
        if not self.durable:
            pytest.skip("this store does not outlive its object")

    # Transactions

    def test_transaction_rolls_back_everything(self, study: StudyStore) -> None:
        """After an exception nothing of the block is left, and numbering goes on as if it had not been."""
        self.fill(study)
        before = snapshot(study)

        def fail_at_the_end() -> None:
            with study.transaction():
                self.add(study, 10, 11)
                study.add_evaluation(sample_evaluation(10))
                study.add_failure(sample_failure(4))
                study.set_state(0, TrialState.ABANDONED, attempts=9)
                study.replace_spec({}, study.record.digest)
                study.add_event("lost")
                study.store.create_study("lost", {}, "d")
                assert len(study.trials()) == 6
                raise KeyError

        with pytest.raises(KeyError):
            fail_at_the_end()
        assert snapshot(study) == before
        assert study.store.find_study("lost") is None
        assert self.add(study, 10)[0].id == 4
        assert study.add_event("kept") == 1
        assert study.add_evaluation(sample_evaluation(10))

    def test_nested_transaction_joins(self, study: StudyStore) -> None:
        """An inner block commits nothing by itself."""

        def fail_after_inner_block() -> None:
            with study.transaction():
                with study.transaction(), study.store.transaction():
                    self.add(study, 0)
                raise KeyError

        with pytest.raises(KeyError):
            fail_after_inner_block()
        assert study.trials() == []
        with study.transaction():
            self.add(study, 0)
            with study.transaction():
                self.add(study, 1)
            self.add(study, 2)
        assert [trial.id for trial in study.trials()] == [0, 1, 2]

    def test_failed_inner_block_undoes_the_outer(self, study: StudyStore) -> None:
        """Half of an inner block is never kept, even if its exception was caught."""

        def fail_inside() -> None:
            with study.transaction():
                self.add(study, 1)
                raise KeyError

        def catch_outside(go_on: bool) -> None:
            with study.transaction():
                self.add(study, 0)
                with pytest.raises(KeyError):
                    fail_inside()
                if go_on:
                    self.add(study, 2)

        for go_on in (False, True):
            with pytest.raises(StoreError, match="nothing of this transaction is kept"):
                catch_outside(go_on)
            assert study.trials() == []
        self.add(study, 0)

    def test_refused_argument_may_be_caught(self, study: StudyStore) -> None:
        """A write that was refused wrote nothing, so the rest of its block may be kept."""
        first = sample_evaluation(0)
        with study.transaction():
            self.add(study, 0, 1)
            study.add_evaluation(first)
            with pytest.raises(NondeterministicEvaluation):
                study.add_evaluation(replace(first, score=Score(0.0, 9.0, 0, 10)))
            with pytest.raises(StoreError):
                self.add(study, 1)
            with pytest.raises(StoreError):
                study.add_failure(sample_failure(7))
            study.add_failure(sample_failure(0, kind="nondeterministic"))
        assert study.evaluations() == [first]
        assert len(study.trials()) == 2
        assert [failure.kind for failure in study.failures()] == ["nondeterministic"]

    def test_threads_take_turns(self, study: StudyStore) -> None:
        """Transactions of several threads do not mix."""

        def work(thread: int) -> None:
            for i in range(10):
                with study.transaction():
                    study.add_event("open", {"thread": thread, "i": i})
                    study.add_event("close", {"thread": thread, "i": i})

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events = study.events()
        assert len(events) == 80
        for first, second in zip(events[::2], events[1::2], strict=True):
            assert (first.kind, second.kind) == ("open", "close")
            assert first.payload == second.payload

    # Files

    def test_closed_store_says_so(self, tmp_path: Path) -> None:
        """Use after close is an error with a hint; closing twice is not."""
        store = self.make_store(tmp_path)
        study = self.new_study(store)
        store.close()
        store.close()
        with pytest.raises(StoreError, match="closed"):
            study.trials()
        with pytest.raises(StoreError, match="closed"):
            self.add(study, 0)

    def test_reopen_finds_everything(self, tmp_path: Path) -> None:
        """A store that was closed opens equal, and goes on."""
        self.need_durable()
        with self.make_store(tmp_path) as store:
            self.fill(self.new_study(store))
            before = snapshot(store.study("first"))
        with self.make_store(tmp_path) as store:
            assert snapshot(store.study("first")) == before
            assert self.add(store.study("first"), 7)[0].id == 4
        with self.make_reader(tmp_path) as reader:
            assert len(reader.study("first").trials()) == 5

    def test_reader_cannot_write(self, tmp_path: Path) -> None:
        """A store open for reading refuses every write."""
        self.need_durable()
        with self.make_store(tmp_path) as store:
            self.fill(self.new_study(store))
            before = snapshot(store.study("first"))
        with self.make_reader(tmp_path) as reader:
            study = reader.study("first")
            for write in (
                lambda: reader.create_study("second", {}, "d"),
                lambda: self.add(study, 9),
                lambda: study.set_state(0, TrialState.COMPLETE),
                lambda: study.add_evaluation(sample_evaluation(9)),
                lambda: study.add_failure(sample_failure(0)),
                lambda: study.add_event("kind"),
                lambda: study.replace_spec({}, study.record.digest),
            ):
                with pytest.raises(StoreError, match="open for reading only"):
                    write()
            assert snapshot(study) == before

    def test_reader_sees_commits_only(self, tmp_path: Path) -> None:
        """A reader next to a writer sees each transaction as a whole, or not yet."""
        self.need_durable()
        with self.make_store(tmp_path) as store:
            study = self.new_study(store)
            with self.make_reader(tmp_path) as reader:
                view = reader.study("first")
                with study.transaction():
                    self.add(study, 0)
                    assert view.trials() == []
                    self.add(study, 1)
                assert view.trials() == study.trials()

    def test_reader_keeps_its_view(self, tmp_path: Path) -> None:
        """A reader's transaction does not stop the writer, and does not see what it commits meanwhile."""
        self.need_durable()
        if not self.views:
            pytest.skip("in this store a reader's transaction makes the writer wait")
        with self.make_store(tmp_path) as store, self.make_reader(tmp_path) as reader:
            with pytest.raises(StoreError, match="no study"):
                reader.study("first")
            study = self.new_study(store)
            view = reader.study("first")
            self.add(study, 0, 1)
            with view.transaction():
                assert len(view.trials()) == 2
                self.add(study, 2)
                assert len(view.trials()) == 2
            assert len(view.trials()) == 3

    def test_reader_runs_beside_writer(self, tmp_path: Path) -> None:
        """Hundreds of commits under a busy reader: neither fails, and no read sees half a commit."""
        self.need_durable()
        problems: list[str] = []
        seen = [-1]
        reading, done = threading.Event(), threading.Event()

        def watch() -> None:
            try:
                with self.make_reader(tmp_path) as reader:
                    view = reader.study("first")
                    last = False
                    while not last:
                        last = done.is_set()  # and read once more, after the writer's last commit
                        with view.transaction():
                            trials, events = len(view.trials()), len(view.events())
                        if trials != 2 * events or events < seen[-1]:
                            problems.append(f"{trials} trials with {events} events, after {seen[-1]} events")
                        seen.append(events)
                        reading.set()
            except Exception as error:
                problems.append(repr(error))
                reading.set()

        commits = 150
        with self.make_store(tmp_path) as store:
            study = self.new_study(store)
            thread = threading.Thread(target=watch)
            thread.start()
            reading.wait()
            for number in range(commits):
                with study.transaction():
                    self.add(study, 2 * number, 2 * number + 1)
                    study.add_event("asked")
            done.set()
            thread.join()
        assert problems == []
        assert (seen[1], seen[-1]) == (0, commits)

    def test_large_study(self, store: Store, study: StudyStore) -> None:
        """5,000 trials in batches of 100, each with its result and event, and everything read back in order."""
        size, batch = 5000, 100
        for start in range(0, size, batch):
            with study.transaction():
                for trial in self.add(study, *range(start, start + batch)):
                    study.add_evaluation(sample_evaluation(trial.id))
                    study.set_state(trial.id, TrialState.COMPLETE, attempts=1)
                study.add_event("told", {"trials": list(range(start, start + batch))})
        assert study.counts()[TrialState.COMPLETE] == size
        assert [trial.config for trial in study.trials()] == [sample_config(number) for number in range(size)]
        expected = [sample_evaluation(number) for number in range(size)]
        assert study.evaluations() == expected
        found = study.find_evaluations(evaluation.key for evaluation in reversed(expected))
        assert list(found.values()) == expected[::-1]
        assert [event.payload["trials"][0] for event in study.events()] == list(range(0, size, batch))
        store.check()
