"""What a worker does with a job. It knows nothing of Ray; executors feed it and carry its outcomes away."""

from __future__ import annotations

import faulthandler
import os
import platform
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qsearch.evaluate import Evaluator, Target, make_evaluator, resolve_device
from qsearch.run.jobs import Job, Outcome
from qsearch.spec import StudySpec

#: The hard watchdog (which needs no Python) waits this much longer than the polite one.
HARD_WATCHDOG_GRACE_S = 10.0

#: Exit code of a worker that ended itself because an evaluation hung.
TIMEOUT_EXIT_CODE = 17


@dataclass(frozen=True)
class WorkerSettings:
    """How evaluations are done; the same for all workers of a study.

    Attributes:
        options: Options by fidelity.
        device: torch device.
        threads: torch threads; part of what makes results repeat exactly.
        seed: Seed of the evaluations.
        timeout_s: Longest evaluation; None for no limit.
    """

    options: Mapping[str, Mapping[str, Any]]
    device: str
    threads: int
    seed: int
    timeout_s: float | None

    @classmethod
    def from_spec(cls, spec: StudySpec, threads: int) -> WorkerSettings:
        """Reads a study file's sections."""
        return cls(
            options={name: dict(values) for name, values in spec.fidelities.items()},
            device=spec.execution.device,
            threads=threads,
            seed=spec.evaluation.seed,
            timeout_s=spec.evaluation.timeout_s,
        )


class Worker:
    """Evaluates jobs, one after the other.

    Args:
        target: Network and data.
        settings: How to evaluate.
        on_timeout: Where to send the outcome of an evaluation that exceeds its time, just before this process ends
            itself. None: time limits are not enforced (the caller's own process must not die).
    """

    def __init__(
        self, target: Target, settings: WorkerSettings, on_timeout: Callable[[Outcome], None] | None = None
    ) -> None:
        self.target = target
        self.settings = settings
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._on_timeout = on_timeout
        self._evaluators: dict[str, Evaluator] = {}
        torch.set_num_threads(settings.threads)
        self.provenance = {
            "threads": settings.threads,
            "device": resolve_device(settings.device).type,
            "torch": torch.__version__,
            "machine": platform.machine(),
        }

    def run(self, job: Job) -> Outcome:
        """Evaluates one job; an exception becomes a failed outcome."""
        started = time.perf_counter()
        try:
            evaluator = self._evaluator(job.fidelity)
            with _Watchdog(self.settings.timeout_s, lambda: self._expire(job)) if self._on_timeout else _NoWatchdog():
                score = evaluator.evaluate(job.config, job.split)
        except Exception as error:
            return Outcome(
                job.key,
                None,
                time.perf_counter() - started,
                self.name,
                "error",
                f"{type(error).__name__}: {error}".split("\n")[0],
                traceback.format_exc(),
            )
        seconds = time.perf_counter() - started
        return Outcome(job.key, score, seconds, self.name, provenance=self.provenance)

    def _evaluator(self, fidelity: str) -> Evaluator:
        if fidelity not in self._evaluators:
            options = self.settings.options.get(fidelity, {})
            evaluator = make_evaluator(fidelity, self.target, options, self.settings.device, self.settings.seed)
            # What is made once for all candidates does not count as the time of the first one.
            warm_up = getattr(evaluator, "warm_up", None)
            if callable(warm_up):
                warm_up()
            self._evaluators[fidelity] = evaluator
        return self._evaluators[fidelity]

    def _expire(self, job: Job) -> None:
        limit = self.settings.timeout_s or 0.0
        outcome = Outcome(job.key, None, limit, self.name, "timeout", f"the evaluation took longer than {limit:g} s")
        try:
            if self._on_timeout is not None:
                self._on_timeout(outcome)
        finally:
            os._exit(TIMEOUT_EXIT_CODE)


class _NoWatchdog:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _Watchdog:
    """Ends this process when a block takes too long, even one that never returns to Python."""

    def __init__(self, seconds: float | None, expire: Callable[[], None]) -> None:
        self._seconds = seconds
        self._timer = threading.Timer(seconds, expire) if seconds is not None else None

    def __enter__(self) -> None:
        if self._timer is not None and self._seconds is not None:
            self._timer.daemon = True
            self._timer.start()
            faulthandler.dump_traceback_later(
                self._seconds + HARD_WATCHDOG_GRACE_S, exit=True, file=sys.__stderr__ or 2
            )

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            faulthandler.cancel_dump_traceback_later()
