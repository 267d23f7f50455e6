"""Made-up records for tests of stores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qsearch.store import Evaluation, Failure, StudyStore
from qsearch.types import BitConfig, Score, digest


def sample_config(number: int, layers: int = 5) -> BitConfig:
    """Returns the ``number``-th of 8 ** layers different candidates: base 8 digits as weight widths, 8-bit inputs."""
    weights = tuple(1 + (number // 8**i) % 8 for i in range(layers))
    return BitConfig(weights, (8,) * layers)


def sample_evaluation(number: int, **changes: Any) -> Evaluation:
    """Returns a result for :func:`sample_config` ``(number)`` with the given fields changed."""
    config = sample_config(number)
    evaluation = Evaluation(
        key=digest({"config": config.to_json(), "model": "m"}),
        config=config,
        fidelity="ptq",
        split="validation",
        score=Score(accuracy=90.0 + 0.1 / (number + 3), loss=1 / (number + 7), correct=9, samples=10),
        seconds=0.1 + number,
        worker=f"worker-{number % 3}",
        finished_at=1.7e9 + number / 3,
        provenance={"device": "cpu", "versions": {"torch": "2"}, "list": [1, 2.5, None, "é"]},
    )
    return replace(evaluation, **changes)


def sample_failure(trial_id: int, **changes: Any) -> Failure:
    """Returns a first failed attempt of a trial with the given fields changed."""
    return replace(Failure(trial_id, "k" * 64, 1, "exception", "boom", "Traceback ...\n", 1.7e9), **changes)


def snapshot(study: StudyStore) -> dict[str, Any]:
    """Returns everything a study holds; equal snapshots mean equal studies."""
    with study.transaction():
        return {
            "record": study.record,
            "trials": study.trials(),
            "evaluations": study.evaluations(),
            "failures": study.failures(),
            "events": study.events(),
            "counts": study.counts(),
        }
