"""The protocol of executors, and the serial one: no Ray, one evaluation at a time, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from qsearch.errors import QSearchError
from qsearch.evaluate import Target
from qsearch.run.broker import Broker
from qsearch.run.status import Status
from qsearch.run.worker import Worker, WorkerSettings

#: Makes the broker, in whichever process it will live; takes the study lock and opens the log.
BrokerFactory = Callable[[], Broker]

#: Takes a snapshot for display.
StatusListener = Callable[[Status], None]


class Executor(Protocol):
    """Brings a study's jobs to workers until the broker is done."""

    def run(
        self, make_broker: BrokerFactory, target: Target, settings: WorkerSettings, listener: StatusListener
    ) -> Status:
        """Works until the broker is done and returns its last status.

        Args:
            make_broker: Opens the broker.
            target: Network and data.
            settings: How workers evaluate.
            listener: Called a few times a second.
        """
        ...


class SerialExecutor:
    """Everything in the calling process. For debugging and tests; time limits are not enforced.

    Args:
        listen_every_s: Least time between two calls of the listener.
    """

    def __init__(self, listen_every_s: float = 0.25) -> None:
        self._listen_every_s = listen_every_s

    def run(
        self, make_broker: BrokerFactory, target: Target, settings: WorkerSettings, listener: StatusListener
    ) -> Status:
        """See :meth:`Executor.run`."""
        broker = make_broker()
        try:
            worker = Worker(target, settings)
            heard = 0.0
            while (lease := broker.lease()) is not None:
                for job in lease.jobs:
                    broker.report(lease.id, [worker.run(job)])
                    if time.monotonic() - heard >= self._listen_every_s:
                        heard = time.monotonic()
                        listener(broker.status())
                broker.close(lease.id)
            if not broker.done:
                raise QSearchError(
                    "the searcher neither proposes candidates nor finishes", "this is a bug in the searcher"
                )
            listener(broker.status())
            return broker.status()
        finally:
            broker.shut_down()
