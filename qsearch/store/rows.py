"""Between records and rows."""

from __future__ import annotations

import json
import math
from typing import Any

from qsearch.errors import StoreError
from qsearch.store.records import Evaluation, Event, Failure, StudyRecord, Trial
from qsearch.types import BitConfig, Score, TrialState, canonical_json


def dump(value: Any, what: str) -> str:
    """Returns canonical JSON.

    Args:
        value: JSON values; any mapping will do for an object.
        what: What it is; appears in the error.

    Raises:
        StoreError: It is not JSON (a NaN, an array, an object).
    """
    try:
        return canonical_json(dict(value) if hasattr(value, "keys") else value)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"{what} cannot be recorded: {error}",
            "use only finite numbers, text, lists and dictionaries with text keys",
        ) from error


def clean_text(text: str) -> str:
    """Returns ``text`` in a form every database takes: no NUL, no lone surrogate (both occur in tracebacks)."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


def to_study(row: Any) -> StudyRecord:
    """Makes a record of a row of ``studies``."""
    return StudyRecord(
        row.id, row.name, row.created_at, json.loads(row.spec), row.digest, row.version, row.model_digest
    )


def to_trial(row: Any) -> Trial:
    """Makes a record of a row of ``trials``."""
    config = BitConfig.from_json(json.loads(row.config))
    return Trial(row.id, config, TrialState(row.state), json.loads(row.costs), row.attempts, row.asked_at)


def to_evaluation(row: Any) -> Evaluation:
    """Makes a record of a row of ``evaluations``."""
    return Evaluation(
        key=row.key,
        config=BitConfig.from_json(json.loads(row.config)),
        fidelity=row.fidelity,
        split=row.split,
        score=Score(row.accuracy, math.inf if row.loss is None else row.loss, row.correct, row.samples),
        seconds=row.seconds,
        worker=row.worker,
        finished_at=row.finished_at,
        provenance=json.loads(row.provenance),
    )


def from_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Makes a row of ``evaluations``, without its study."""
    score = evaluation.score
    return {
        "key": evaluation.key,
        "config": dump(evaluation.config.to_json(), "the configuration of an evaluation"),
        "fidelity": evaluation.fidelity,
        "split": evaluation.split,
        "accuracy": float(score.accuracy),
        "loss": float(score.loss) if math.isfinite(score.loss) else None,
        "correct": int(score.correct),
        "samples": int(score.samples),
        "seconds": float(evaluation.seconds),
        "worker": clean_text(evaluation.worker),
        "finished_at": float(evaluation.finished_at),
        "provenance": dump(evaluation.provenance, "the provenance of an evaluation"),
    }


def from_failure(failure: Failure) -> dict[str, Any]:
    """Makes a row of ``failures``, without its study and position."""
    return {
        "trial_id": failure.trial_id,
        "key": failure.key,
        "attempt": failure.attempt,
        "kind": failure.kind,
        "message": clean_text(failure.message),
        "traceback": clean_text(failure.traceback),
        "at": failure.at,
    }


def to_failure(row: Any) -> Failure:
    """Makes a record of a row of ``failures``."""
    return Failure(row.trial_id, row.key, row.attempt, row.kind, row.message, row.traceback, row.at)


def to_event(row: Any) -> Event:
    """Makes a record of a row of ``events``."""
    return Event(row.seq, row.kind, json.loads(row.payload), row.at)
