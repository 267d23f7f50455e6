"""Who holds which job: the queue, the open leases, and jobs that travel alone because they may kill their worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from qsearch.run.jobs import Job, Lease


class LeaseDesk:
    """Hands out jobs in order and remembers where they are. Volatile: a resume starts with an empty one."""

    def __init__(self) -> None:
        self._queue: deque[Job] = deque()
        self._queued: set[str] = set()
        self._suspects: set[str] = set()
        self._leases: dict[int, dict[str, Job]] = {}
        self._next_id = 0

    def __len__(self) -> int:
        """Number of jobs that wait."""
        return len(self._queue)

    @property
    def leased(self) -> int:
        """Number of jobs in open leases."""
        return sum(len(jobs) for jobs in self._leases.values())

    def add(self, jobs: Sequence[Job]) -> None:
        """Queues jobs; one that waits already is left where it is."""
        for job in jobs:
            if job.key not in self._queued:
                self._queued.add(job.key)
                self._queue.append(job)

    def suspect(self, keys: Iterable[str]) -> None:
        """Marks jobs one of which may have killed its worker; each is leased alone from now on."""
        self._suspects.update(keys)

    def take(self, size: int) -> Lease:
        """Opens a lease with up to ``size`` waiting jobs; a suspect or a second attempt travels alone."""
        jobs: list[Job] = []
        while self._queue and len(jobs) < size:
            alone = self._queue[0].key in self._suspects or self._queue[0].attempt > 1
            if alone and jobs:
                break
            job = self._queue.popleft()
            self._queued.discard(job.key)
            jobs.append(job)
            if alone:
                break
        lease = Lease(self._next_id, tuple(jobs))
        self._next_id += 1
        self._leases[lease.id] = {job.key: job for job in jobs}
        return lease

    def open_jobs(self, lease: int) -> tuple[Job, ...]:
        """Jobs of a lease without a result; none for a lease that is closed or unknown."""
        return tuple(self._leases.get(lease, {}).values())

    def settle(self, lease: int, key: str) -> None:
        """Takes a job with a result out of its lease."""
        self._leases.get(lease, {}).pop(key, None)

    def close(self, lease: int) -> None:
        """Forgets a lease."""
        self._leases.pop(lease, None)

    def waiting(self, key: str) -> Job | None:
        """The waiting job of a key."""
        return next((job for job in self._queue if job.key == key), None) if key in self._queued else None

    def drop(self, key: str) -> None:
        """Removes a waiting job whose result came in late."""
        if key in self._queued:
            self._queued.discard(key)
            self._queue = deque(job for job in self._queue if job.key != key)
