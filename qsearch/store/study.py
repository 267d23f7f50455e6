"""The log of one study: its trials, evaluations, failures and events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from qsearch.errors import NondeterministicEvaluation, StoreError, StudyMismatchError
from qsearch.store import rows, schema
from qsearch.store.records import Evaluation, Event, Failure, StudyRecord, Trial, same_score
from qsearch.store.store import Store
from qsearch.types import BitConfig, TrialState
from qsearch.types import digest as digest_of

#: Values per query; SQLite builds take at least 999.
_CHUNK = 500


@cache
def insert_ignoring(table: sa.Table, dialect: str) -> sqlite.Insert | postgresql.Insert:
    """Returns an INSERT that leaves an existing row alone (and then touches no row).

    Args:
        table: Where to.
        dialect: ``sqlite`` or ``postgresql``.
    """
    if dialect == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


# Statements that run for every candidate are built once: building one costs more than running it.


@cache
def _last(table: sa.Table, column: str) -> sa.Select[Any]:
    """The highest number in a column of one study, None if it has no rows; bind ``study``."""
    return sa.select(sa.func.max(table.c[column])).where(table.c.study_id == sa.bindparam("study"))


@cache
def _append_use(dialect: str) -> sqlite.Insert | postgresql.Insert:
    """Appends ``used`` to the evaluations of ``study``, if it is not among them."""
    uses = schema.study_evaluations
    position = sa.func.coalesce(_last(uses, "position").scalar_subquery(), -1) + 1
    values = {"study_id": sa.bindparam("study"), "position": position, "key": sa.bindparam("used")}
    return insert_ignoring(uses, dialect).values(values).inline()


_INSERT_EVENT = sa.insert(schema.events)
_EVALUATION_BY_KEY = sa.select(schema.evaluations).where(schema.evaluations.c.key == sa.bindparam("wanted"))
_SET_STATE = (
    sa.update(schema.trials)
    .where(schema.trials.c.study_id == sa.bindparam("study"), schema.trials.c.id == sa.bindparam("trial"))
    .values(state=sa.bindparam("new_state"))
)
_SET_STATE_AND_ATTEMPTS = _SET_STATE.values(attempts=sa.bindparam("new_attempts"))


class StudyStore:
    """One study of a store. Get one from :meth:`Store.study`.

    Every write method is all or nothing by itself, and joins the transaction that is open. The contract of
    :mod:`qsearch.store.store` holds for all of them; any may raise :class:`StoreError` when the database fails.

    Args:
        store: The open store.
        record: The study.
    """

    def __init__(self, store: Store, record: StudyRecord) -> None:
        self.store = store
        self.id = record.id
        self.name = record.name

    @property
    def record(self) -> StudyRecord:
        """The study as it is recorded now."""
        found = self.store.read(sa.select(schema.studies).where(schema.studies.c.id == self.id))
        if not found:
            raise StoreError(f"study {self.name!r} is gone from {self.store.label}", "restore a backup of the store")
        return rows.to_study(found[0])

    def transaction(self) -> AbstractContextManager[None]:
        """Groups writes into one commit; see :meth:`Store.transaction`."""
        return self.store.transaction()

    def replace_spec(self, spec: Mapping[str, Any], digest: str) -> None:
        """Records a specification that differs only in what may change on resume (budget, resources).

        Args:
            spec: The resolved specification, JSON values.
            digest: Digest of its locked part.

        Raises:
            StudyMismatchError: The digest is not the one the study was created with.
        """
        text = rows.dump(spec, "the study specification")
        with self.store.group():
            known = self.record.digest
            if digest != known:
                raise StudyMismatchError(
                    f"study {self.name!r} was started with another specification"
                    f" (digest {known[:12]}, now {digest[:12]})",
                    "undo the change, or start a new study under another name",
                )
            self.store.write(sa.update(schema.studies).where(schema.studies.c.id == self.id).values(spec=text))

    # Trials

    def add_trials(
        self, configs: Sequence[BitConfig], states: Sequence[TrialState], costs: Sequence[Mapping[str, float]]
    ) -> list[Trial]:
        """Records candidates in the order they were asked, numbered on from the last trial.

        Args:
            configs: n candidates, none of them in the study yet.
            states: Their n states.
            costs: Their n cost metrics; finite.

        Returns:
            The n new trials.

        Raises:
            StoreError: The lengths differ, a candidate is in the study already or twice here, or a cost is not finite.
        """
        if not len(configs) == len(states) == len(costs):
            raise StoreError(
                f"{len(configs)} candidates with {len(states)} states and {len(costs)} costs", "pass one of each"
            )
        digests = [config_digest(config) for config in configs]
        plain = [{name: float(value) for name, value in cost.items()} for cost in costs]
        now = self.store.clock()
        with self.store.group():
            self._refuse_known(configs, digests)
            first = self._next(schema.trials, "id")
            values = [
                {
                    "study_id": self.id,
                    "id": first + i,
                    "config": rows.dump(config.to_json(), "a candidate"),
                    "config_digest": digests[i],
                    "state": TrialState(states[i]).value,
                    "costs": rows.dump(plain[i], "the costs of a candidate"),
                    "attempts": 0,
                    "asked_at": now,
                }
                for i, config in enumerate(configs)
            ]
            if values:
                self.store.write(sa.insert(schema.trials), values)
        return [Trial(first + i, config, TrialState(states[i]), plain[i], 0, now) for i, config in enumerate(configs)]

    def set_state(self, trial_id: int, state: TrialState, attempts: int | None = None) -> None:
        """Moves a trial to another state.

        Args:
            trial_id: Which trial.
            state: Its new state.
            attempts: Its new number of attempts; unchanged if None.

        Raises:
            StoreError: There is no such trial.
        """
        values = {"study": self.id, "trial": trial_id, "new_state": TrialState(state).value}
        if attempts is None:
            touched = self.store.write(_SET_STATE, values)
        else:
            touched = self.store.write(_SET_STATE_AND_ATTEMPTS, {**values, "new_attempts": attempts})
        if touched != 1:
            raise self._no_trial(trial_id)

    def trials(self, state: TrialState | None = None) -> list[Trial]:
        """Returns the trials in ask order, all or those in one state."""
        query = sa.select(schema.trials).where(schema.trials.c.study_id == self.id).order_by(schema.trials.c.id)
        if state is not None:
            query = query.where(schema.trials.c.state == TrialState(state).value)
        return [rows.to_trial(row) for row in self.store.read(query)]

    def trial_by_config(self, config: BitConfig) -> Trial | None:
        """Returns the trial of a candidate, None if it was never asked."""
        where = (schema.trials.c.study_id == self.id) & (schema.trials.c.config_digest == config_digest(config))
        found = self.store.read(sa.select(schema.trials).where(where))
        return rows.to_trial(found[0]) if found else None

    def counts(self) -> dict[TrialState, int]:
        """Returns the number of trials in each state, zeros included."""
        state = schema.trials.c.state
        number = sa.func.count().label("number")
        query = sa.select(state, number).where(schema.trials.c.study_id == self.id).group_by(state)
        found = {row.state: int(row.number) for row in self.store.read(query)}
        return {state: found.get(state.value, 0) for state in TrialState}

    # Evaluations

    def add_evaluation(self, evaluation: Evaluation) -> bool:
        """Records a result, and that this study used it.

        Args:
            evaluation: What a worker reported.

        Returns:
            True if the key is new to the store; False if it was there with the same score, which is then kept as is.

        Raises:
            NondeterministicEvaluation: The store has another score under this key.
            StoreError: The store has another candidate, fidelity or split under this key.
        """
        row = rows.from_evaluation(evaluation)
        with self.store.group():
            insert = insert_ignoring(schema.evaluations, self.store.dialect)
            is_new = self.store.write(insert, {"study_id": self.id, **row}) == 1
            known = evaluation if is_new else self.find_evaluation(evaluation.key)
            if known is not None:
                _require_same(known, evaluation)
            self._link(evaluation.key)
        return is_new

    def link_evaluation(self, key: str) -> bool:
        """Records that this study uses a result that is already in the store, computed by whichever study.

        Returns:
            True if the study did not use it before.

        Raises:
            StoreError: The store has no such key.
        """
        with self.store.group():
            if self.find_evaluation(key) is None:
                raise StoreError(f"{self.store.label} has no evaluation {key}", "evaluate the candidate")
            return self._link(key)

    def find_evaluation(self, key: str) -> Evaluation | None:
        """Returns the result with this key, whichever study computed it; None if there is none."""
        found = self.store.read(_EVALUATION_BY_KEY, {"wanted": key})
        return rows.to_evaluation(found[0]) if found else None

    def find_evaluations(self, keys: Iterable[str]) -> dict[str, Evaluation]:
        """Returns those of the results that are in the store, whichever study computed them, by key."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Evaluation] = {}
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            for row in self.store.read(sa.select(schema.evaluations).where(schema.evaluations.c.key.in_(chunk))):
                found[row.key] = rows.to_evaluation(row)
        return {key: found[key] for key in wanted if key in found}

    def evaluations(self, fidelity: str | None = None, split: str | None = None) -> list[Evaluation]:
        """Returns the results this study used, in the order it got them.

        Args:
            fidelity: Only of this fidelity.
            split: Only of this split.
        """
        uses = schema.study_evaluations
        query = (
            sa.select(schema.evaluations)
            .join(uses, uses.c.key == schema.evaluations.c.key)
            .where(uses.c.study_id == self.id)
            .order_by(uses.c.position)
        )
        if fidelity is not None:
            query = query.where(schema.evaluations.c.fidelity == fidelity)
        if split is not None:
            query = query.where(schema.evaluations.c.split == split)
        return [rows.to_evaluation(row) for row in self.store.read(query)]

    # Failures and events

    def add_failure(self, failure: Failure) -> None:
        """Records a failed attempt.

        Raises:
            StoreError: There is no such trial.
        """
        table = schema.failures
        with self.store.group():
            where = (schema.trials.c.study_id == self.id) & (schema.trials.c.id == failure.trial_id)
            if not self.store.read(sa.select(schema.trials.c.id).where(where)):
                raise self._no_trial(failure.trial_id)
            self.store.write(
                sa.insert(table),
                {"study_id": self.id, "position": self._next(table, "position"), **rows.from_failure(failure)},
            )

    def failures(self) -> list[Failure]:
        """Returns all failed attempts in the order they were recorded."""
        table = schema.failures
        query = sa.select(table).where(table.c.study_id == self.id).order_by(table.c.position)
        return [rows.to_failure(row) for row in self.store.read(query)]

    def add_event(self, kind: str, payload: Mapping[str, Any] | None = None) -> int:
        """Appends to the study's log.

        Args:
            kind: What happened.
            payload: Details, JSON values.

        Returns:
            Its position in the log, from 0.
        """
        table = schema.events
        text = rows.dump(payload or {}, f"the payload of event {kind!r}")
        with self.store.group():
            seq = self._next(table, "seq")
            values = {"study_id": self.id, "seq": seq, "kind": kind, "payload": text, "at": self.store.clock()}
            self.store.write(_INSERT_EVENT, values)
        return seq

    def events(self, after: int = -1) -> list[Event]:
        """Returns the log in order, from the event that follows position ``after``."""
        table = schema.events
        where = (table.c.study_id == self.id) & (table.c.seq > after)
        return [rows.to_event(row) for row in self.store.read(sa.select(table).where(where).order_by(table.c.seq))]

    def _next(self, table: sa.Table, column: str) -> int:
        """The next free number; always read back, so that no counter can run ahead of a rollback."""
        last = self.store.read(_last(table, column), {"study": self.id})[0][0]
        return 0 if last is None else int(last) + 1

    def _link(self, key: str) -> bool:
        return self.store.write(_append_use(self.store.dialect), {"study": self.id, "used": key}) == 1

    def _refuse_known(self, configs: Sequence[BitConfig], digests: Sequence[str]) -> None:
        seen: dict[str, int] = {}
        for i, value in enumerate(digests):
            if value in seen:
                raise StoreError(
                    f"candidates {seen[value]} and {i} of one batch are the same: {configs[i].to_json()}",
                    "drop duplicates before asking",
                )
            seen[value] = i
        for start in range(0, len(digests), _CHUNK):
            chunk = list(digests[start : start + _CHUNK])
            where = (schema.trials.c.study_id == self.id) & schema.trials.c.config_digest.in_(chunk)
            known = self.store.read(sa.select(schema.trials.c.id, schema.trials.c.config).where(where).limit(1))
            if known:
                raise StoreError(
                    f"candidate {known[0].config} is trial {known[0].id} of study {self.name!r} already",
                    "look it up with trial_by_config before asking",
                )

    def _no_trial(self, trial_id: int) -> StoreError:
        return StoreError(f"study {self.name!r} has no trial {trial_id}", "trials are numbered from 0 in ask order")


def config_digest(config: BitConfig) -> str:
    """Returns what identifies a candidate within a study.

    Raises:
        StoreError: Its widths are not plain integers.
    """
    rows.dump(config.to_json(), "a candidate")
    return digest_of(config.to_json())


def _require_same(known: Evaluation, new: Evaluation) -> None:
    if (known.config, known.fidelity, known.split) != (new.config, new.fidelity, new.split):
        raise StoreError(
            f"evaluation key {new.key} stands for {known.config.to_json()} at {known.fidelity} on {known.split},"
            f" not for {new.config.to_json()} at {new.fidelity} on {new.split}",
            "the key must be the digest of the EvaluationKey of the candidate",
        )
    if not same_score(known.score, new.score):
        raise NondeterministicEvaluation(
            f"evaluation {new.key} gave {known.score} on {known.worker!r} and now {new.score} on {new.worker!r}",
            "make the evaluator deterministic, or raise its version if its numerics changed",
        )
