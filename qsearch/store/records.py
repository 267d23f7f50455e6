"""What the store hands out: plain frozen records, detached from the database.

All times are unix seconds (UTC). Mappings are JSON values: a tuple inside one comes back as a list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qsearch.types import BitConfig, Score, TrialState

#: Relative tolerance within which two losses of one evaluation key are the same result.
LOSS_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """One study of a store.

    Attributes:
        id: Number of the study in its store, from 1.
        name: Its unique name.
        created_at: When it was created, unix seconds.
        spec: The resolved study specification, as JSON values.
        digest: Digest of the part of the specification that is locked.
        version: Version of qsearch that created it.
        model_digest: Digest of the folded network, if it was known at creation.
    """

    id: int
    name: str
    created_at: float
    spec: Mapping[str, Any]
    digest: str
    version: str
    model_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate's life in a study.

    Attributes:
        id: Number of the trial in its study, in ask order, from 0.
        config: The candidate.
        state: Where it stands.
        costs: Cost metrics by name, in the units of :class:`qsearch.types.Metrics`.
        attempts: Evaluations of it that were started.
        asked_at: When it was asked, unix seconds.
    """

    id: int
    config: BitConfig
    state: TrialState
    costs: Mapping[str, float]
    attempts: int
    asked_at: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One finished evaluation.

    Attributes:
        key: Digest of its :class:`qsearch.types.EvaluationKey`; unique in the store.
        config: The candidate that was evaluated.
        fidelity: ``ptq``, ``brecq``, ...
        split: ``validation`` or ``test``.
        score: What was measured.
        seconds: Wall time it took.
        worker: Who did it.
        finished_at: When it was finished, unix seconds.
        provenance: Anything else worth keeping (device, versions, artifacts), as JSON values.
    """

    key: str
    config: BitConfig
    fidelity: str
    split: str
    score: Score
    seconds: float
    worker: str
    finished_at: float
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that ended in an error.

    Attributes:
        trial_id: The trial that was attempted.
        key: Key of the evaluation that was attempted.
        attempt: Which attempt it was, from 1.
        kind: Short machine-readable cause, such as ``exception``, ``timeout`` or ``worker_lost``.
        message: One line for people.
        traceback: Full text, may be empty.
        at: When it happened, unix seconds.
    """

    trial_id: int
    key: str
    attempt: int
    kind: str
    message: str
    traceback: str
    at: float


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a study's log.

    Attributes:
        seq: Position in the study's log, from 0, without gaps.
        kind: What happened.
        payload: Its details, as JSON values.
        at: When it was recorded, unix seconds.
    """

    seq: int
    kind: str
    payload: Mapping[str, Any]
    at: float


def same_score(first: Score, second: Score) -> bool:
    """Tells whether two scores are one result.

    Accuracy and counts must be equal. Losses may differ by :data:`LOSS_TOLERANCE` (a sum in another order), and all
    losses that are not finite are alike, since the store keeps only that.
    """
    exact = (first.accuracy, first.correct, first.samples) == (second.accuracy, second.correct, second.samples)
    if not (math.isfinite(first.loss) and math.isfinite(second.loss)):
        return exact and math.isfinite(first.loss) == math.isfinite(second.loss)
    return exact and math.isclose(first.loss, second.loss, rel_tol=LOSS_TOLERANCE)
