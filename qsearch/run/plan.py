"""The part of a study file that the broker needs, resolved."""

from __future__ import annotations

from dataclasses import dataclass

from qsearch.spec import StudySpec


@dataclass(frozen=True, slots=True)
class Plan:
    """Budget, fidelities and the handling of failures.

    Attributes:
        evaluations: Candidates to evaluate; None for no limit.
        wall_time_s: Seconds of search over all sessions; None for no limit.
        fidelity: Of the search.
        finalist_fidelity: Of the final scores.
        max_finalists: Most candidates scored at the end.
        generational: Tell results batch by batch in ask order, for a run that repeats bit for bit.
        max_attempts: A job that failed this often is given up.
        max_failed_fraction: Stop when more of the candidates were given up.
        lease_seconds: Work in a lease.
        timeout_s: Longest evaluation; None for no limit.
        workers: Parallel workers.
    """

    evaluations: int | None
    wall_time_s: float | None
    fidelity: str
    finalist_fidelity: str
    max_finalists: int
    generational: bool
    max_attempts: int
    max_failed_fraction: float
    lease_seconds: float
    timeout_s: float | None
    workers: int

    @classmethod
    def from_spec(cls, spec: StudySpec, workers: int) -> Plan:
        """Reads a study file's sections."""
        return cls(
            evaluations=spec.budget.evaluations,
            wall_time_s=spec.budget.wall_time_s,
            fidelity=spec.evaluation.fidelity,
            finalist_fidelity=spec.finalists.fidelity or spec.evaluation.fidelity,
            max_finalists=spec.finalists.max,
            generational=spec.execution.scheduling == "generational",
            max_attempts=spec.execution.max_attempts,
            max_failed_fraction=spec.execution.max_failed_fraction,
            lease_seconds=spec.execution.lease_seconds,
            timeout_s=spec.evaluation.timeout_s,
            workers=workers,
        )
