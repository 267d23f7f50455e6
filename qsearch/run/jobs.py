"""What travels between broker and workers: jobs, leases, outcomes; and the keys that identify them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qsearch.types import BitConfig, EvaluationKey, Score

SEARCH_SPLIT = "validation"
FINAL_SPLIT = "test"


@dataclass(frozen=True, slots=True)
class Job:
    """One evaluation to be done.

    Attributes:
        key: Digest of its evaluation key.
        trial: Trial it belongs to.
        config: The candidate.
        fidelity: How to evaluate it.
        split: On which split.
        attempt: 1 for the first try.
    """

    key: str
    trial: int
    config: BitConfig
    fidelity: str
    split: str
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Lease:
    """The batch of jobs that one worker holds at a time."""

    id: int
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job.

    Attributes:
        key: The job's key.
        score: The result; None when it failed.
        seconds: Wall time of the evaluation.
        worker: Host and process.
        kind: ``ok``, ``error`` (an exception), ``timeout`` or ``worker_lost``.
        message: One line for people, when it failed.
        traceback: Full text, when it failed.
        provenance: Where and with what it was computed, as far as that may touch the numbers; JSON-ready.
    """

    key: str
    score: Score | None
    seconds: float
    worker: str
    kind: str = "ok"
    message: str = ""
    traceback: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KeyMaker:
    """Makes evaluation keys without the network at hand.

    Attributes:
        model: Digest of the folded network.
        data: Digest of calibration and scored images, by split.
        quantizer: Digest of all settings, by fidelity.
        versions: Version of the evaluator's numerics, by fidelity.
        seed: Seed of the evaluations.
    """

    model: str
    data: Mapping[str, str]
    quantizer: Mapping[str, str]
    versions: Mapping[str, int]
    seed: int

    def key(self, config: BitConfig, fidelity: str, split: str) -> str:
        """Digest of one evaluation's key."""
        return EvaluationKey(
            model=self.model,
            data=self.data[split],
            split=split,
            quantizer=self.quantizer[fidelity],
            config=config,
            fidelity=fidelity,
            seed=self.seed,
            version=self.versions[fidelity],
        ).digest
