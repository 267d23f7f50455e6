"""The broker as a Ray actor, so that workers on any node reach it. Holds no truth of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from qsearch.run.broker import Broker
from qsearch.run.jobs import Job, Outcome
from qsearch.run.status import Status

#: A worker that says nothing for this much longer than an evaluation may take is killed from outside.
OVERDUE_GRACE_S = 60.0


class BrokerActor:
    """The broker behind a Ray actor. It reopens the log by itself when Ray restarts it.

    Args:
        recipe: Private file of the driver, on this node, that makes the broker: a restart must not depend on an object
            store that may be gone.
        timeout_s: Longest evaluation.
    """

    def __init__(self, recipe: Path, timeout_s: float | None) -> None:
        self._make_broker: Callable[[], Broker] = ray.cloudpickle.loads(recipe.read_bytes())
        self._timeout_s = timeout_s
        self._broker: Broker | None = None
        self._leases: dict[str, int] = {}
        self._seen: dict[str, float] = {}
        self._workers: dict[str, Any] = {}
        self._connected: set[str] = set()

    def _open(self) -> Broker:
        if self._broker is None:
            self._broker = self._make_broker()
        return self._broker

    def open(self) -> Status:
        """Opens the log; raises what that raises."""
        return self._open().status()

    def fetch(self, trial: str, worker: Any) -> tuple[tuple[Job, ...], bool]:
        """Jobs for a trial, and whether the study is done; no jobs means ask again later."""
        broker = self._open()
        self._connected.add(_actor_id(worker))
        if trial in self._leases:  # a repeated call: the answer to the first one was lost
            return broker.jobs(self._leases[trial]), broker.done
        lease = broker.lease()
        if lease is None:
            return (), broker.done
        self._leases[trial] = lease.id
        self._seen[trial] = time.monotonic()
        self._workers[trial] = worker
        return lease.jobs, False

    def report(self, trial: str, outcomes: list[Outcome]) -> None:
        """Records outcomes."""
        self._seen[trial] = time.monotonic()
        self._open().report(self._leases.get(trial, -1), outcomes)

    def close(self, trial: str, error: str | None) -> bool:
        """Ends a trial's lease; returns whether it ever had one."""
        lease = self._leases.pop(trial, None)
        self._seen.pop(trial, None)
        worker = self._workers.pop(trial, None)
        if error is not None and worker is not None:
            self._connected.discard(_actor_id(worker))
        if lease is not None:
            self._open().close(lease, error)
        return lease is not None

    def renew(self, trial: str) -> bool:
        """Ends a trial's lease and says whether the trial should fetch another one.

        It should while workers are still starting: a trial that ended now would hand its own worker to the next
        trial, and Tune would then drop the worker that is being started for that one.
        """
        self.close(trial, None)
        broker = self._open()
        return len(self._connected) < broker.plan.workers and not broker.done

    def done(self) -> bool:
        """Whether the study is done."""
        return self._open().done

    def status(self) -> Status:
        """A snapshot; also kills workers that hang where their own watchdogs cannot reach."""
        if self._timeout_s is not None:
            late = time.monotonic() - self._timeout_s - OVERDUE_GRACE_S
            for trial in [t for t, seen in self._seen.items() if seen < late]:
                self._seen.pop(trial)
                with contextlib.suppress(Exception):
                    ray.kill(self._workers.pop(trial))
        return self._open().status()

    def shut_down(self) -> None:
        """Closes the log."""
        if self._broker is not None:
            self._broker.shut_down()


def _actor_id(worker: Any) -> str:
    return str(worker._actor_id.hex())
