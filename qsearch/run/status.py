"""Where a study stands: what the broker tells the progress display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where a study stands."""

    SEARCH = "search"
    FINALISTS = "finalists"
    DONE = "done"
    STOPPED = "stopped"  #: too many candidates were given up


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot for the progress display.

    Attributes:
        phase: Where the study stands.
        counts: Trials by state.
        budget: Evaluations to do in the search; None when unlimited.
        evaluated: Candidates evaluated in the search so far.
        finalists: Finalist evaluations done, and to do.
        new_evaluations: Evaluations recorded in this session.
        busy_seconds: Seconds spent in evaluations in this session, over all workers.
        wall_seconds: Seconds since the first lease of this session.
        hypervolume: Of the evaluated candidates, in the problem's fixed box.
        front: Candidates on the front so far.
        failures: Failed attempts so far.
        last_failure: The latest of them, one line.
        lease_size: Jobs in the latest lease.
        ask_ms: Mean time to propose one candidate.
        store_ms: Mean time to record one group of results.
        workers: Parallel workers.
    """

    phase: Phase
    counts: Mapping[str, int]
    budget: int | None
    evaluated: int
    finalists: tuple[int, int]
    new_evaluations: int
    busy_seconds: float
    wall_seconds: float
    hypervolume: float
    front: int
    failures: int
    last_failure: str
    lease_size: int
    ask_ms: float
    store_ms: float
    workers: int

    @property
    def efficiency(self) -> float:
        """Share of the workers' time that was spent in evaluations, in this session."""
        return self.busy_seconds / (self.workers * self.wall_seconds) if self.wall_seconds > 0 else 0.0


def time_spent(events: Sequence[tuple[str, float]], results: Sequence[float]) -> float:
    """Seconds that earlier sessions ran, judged by the first and last sign of life of each."""
    starts = [at for kind, at in events if kind == "session"]
    signs = sorted([at for _, at in events] + list(results))
    spent = 0.0
    for index, start in enumerate(starts):
        end = starts[index + 1] if index + 1 < len(starts) else float("inf")
        last = max((at for at in signs if start <= at < end), default=start)
        spent += last - start
    return spent
