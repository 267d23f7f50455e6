"""How many jobs go into a lease: enough to hide the cost of a lease, few enough to keep all workers busy to the end."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

#: Evaluations whose time counts.
WINDOW = 64

#: Opening a lease costs tens of milliseconds; a lease is not made shorter than this to spread the last jobs.
SHORTEST_LEASE_S = 0.5

LARGEST_LEASE = 4096


class LeaseSizer:
    """Chooses lease sizes from the running median of evaluation times.

    Args:
        lease_seconds: Work wanted in a lease.
        workers: Parallel workers.
    """

    def __init__(self, lease_seconds: float, workers: int) -> None:
        self._lease_seconds = lease_seconds
        self._workers = max(1, workers)
        self._seconds: deque[float] = deque(maxlen=WINDOW)

    def record(self, seconds: float) -> None:
        """Takes note of a finished evaluation."""
        self._seconds.append(max(seconds, 1e-4))

    def size(self, remaining: int | None, in_flight_limit: int | None) -> int:
        """Jobs for the next lease.

        Args:
            remaining: Jobs left before a barrier or the end; None when unknown.
            in_flight_limit: Most jobs that all workers together should hold, so that a searcher learns from results
                before it proposes more; None for no limit.
        """
        if not self._seconds:
            return 1
        typical = median(self._seconds)
        size = max(1, min(LARGEST_LEASE, round(self._lease_seconds / typical)))
        if in_flight_limit is not None:
            size = min(size, max(1, in_flight_limit // self._workers))
        if remaining is not None:
            fair = math.ceil(remaining / (2 * self._workers))
            size = min(size, max(fair, round(SHORTEST_LEASE_S / typical), 1))
            size = min(size, math.ceil(remaining / self._workers))
        return max(1, size)
