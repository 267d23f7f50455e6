"""The Ray Tune executor. One Tune trial carries one lease; the broker is an actor; Tune's own records are never used.

Tune does placement, resources, actor life and replacement of lost workers. What was asked and found lives in the
broker's log alone. A trial gets its jobs when its worker fetches them, so an idle worker waits inside its trial and
keeps its loaded network (between trials Tune would end it).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher as TuneSearcher

from qsearch.errors import EvaluationError, QSearchError
from qsearch.evaluate import Target
from qsearch.evaluate.artifacts import ArtifactExchange, set_default_exchange
from qsearch.run.artifact_exchange import artifact_exchange
from qsearch.run.broker_actor import BrokerActor
from qsearch.run.executor import BrokerFactory, StatusListener
from qsearch.run.jobs import Outcome
from qsearch.run.status import Status
from qsearch.run.worker import Worker, WorkerSettings

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

#: Workers that die this often in a row before they fetched any job cannot start at all.
MAX_DEAD_STARTS = 3

#: Outcomes are sent in groups at this interval; long evaluations go one by one.
PUSH_EVERY_S = 0.2

_LISTEN_EVERY_S = 0.25


class EvaluationTrainable(tune.Trainable):
    """A worker. Loads the network once; each Tune trial it is given is one lease."""

    def setup(
        self,
        config: dict[str, Any],
        broker: Any = None,
        target: Target | None = None,
        settings: WorkerSettings | None = None,
        exchange: ArtifactExchange | None = None,
    ) -> None:
        """Loads the target; everything beside ``config`` comes through the object store."""
        if target is None or settings is None:
            raise EvaluationError("a worker was started without its target", "report this as a bug")
        self._broker = broker
        self._lease = str(config["lease"])
        self._buffer: list[Outcome] = []
        self._sending: Any = None
        self._pushed_at = 0.0
        set_default_exchange(exchange)
        self._worker = Worker(target, settings, on_timeout=self._report_timeout)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next lease without loading anything."""
        self._lease = str(new_config["lease"])
        return True

    def cleanup(self) -> None:
        """Leaves nothing behind in the process."""
        set_default_exchange(None)

    def step(self) -> dict[str, Any]:
        """Waits for jobs, evaluates them, sends the outcomes."""
        evaluations = 0
        while True:
            evaluations += self._work()
            if not ray.get(self._broker.renew.remote(self._lease)):
                return {"done": True, "evaluations": evaluations}

    def _work(self) -> int:
        """Works off one batch of jobs."""
        handle = ray.get_runtime_context().current_actor
        pause = 0.01
        while True:
            jobs, done = ray.get(self._broker.fetch.remote(self._lease, handle))
            if jobs or done:
                break
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        self._pushed_at = time.monotonic()
        for job in jobs:
            self._buffer.append(self._worker.run(job))
            if time.monotonic() - self._pushed_at >= PUSH_EVERY_S:
                self._push()
        self._push()
        self._wait_for_receipt()
        return len(jobs)

    def _push(self) -> None:
        """Sends what is buffered, at most one group being under way."""
        if not self._buffer:
            return
        self._wait_for_receipt()
        self._sending = self._broker.report.remote(self._lease, self._buffer)
        self._buffer = []
        self._pushed_at = time.monotonic()

    def _wait_for_receipt(self) -> None:
        if self._sending is not None:
            ray.get(self._sending)
            self._sending = None

    def _report_timeout(self, outcome: Outcome) -> None:
        """Called from the watchdog's thread, just before the process ends itself."""
        ray.get(self._broker.report.remote(self._lease, [*self._buffer, outcome]), timeout=5)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: the broker has it all."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""


class LeaseSearcher(TuneSearcher):
    """Gives Tune trials to run as long as the broker is not done."""

    def __init__(self, broker: Any, failure: list[str]) -> None:
        super().__init__(metric=None, mode=None)
        self._broker = broker
        self._failure = failure

    def suggest(self, trial_id: str) -> Any:
        """A lease that is filled when a worker fetches it."""
        if self._failure or ray.get(self._broker.done.remote()):
            return str(TuneSearcher.FINISHED)
        return {"lease": trial_id}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: :class:`LeaseCloser` sees the error text too."""

    def save(self, checkpoint_path: str) -> None:
        """Tune's record is not used."""

    def restore(self, checkpoint_path: str) -> None:
        """Tune's record is not used."""


class LeaseCloser(tune.Callback):
    """Tells the broker when a lease ends, and why."""

    def __init__(self, broker: Any, failure: list[str]) -> None:
        self._broker = broker
        self._failure = failure
        self._dead_starts = 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The lease was worked off."""
        ray.get(self._broker.close.remote(trial.config["lease"], None))
        self._dead_starts = 0

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The worker is gone, or raised where it must not."""
        error = trial.get_error()
        text = str(error).strip().split("\n")[-1] if error is not None else "the worker process ended"
        had_lease = ray.get(self._broker.close.remote(trial.config["lease"], f"the worker was lost: {text}"))
        self._dead_starts = 0 if had_lease else self._dead_starts + 1
        cause = getattr(error, "cause", None)
        if isinstance(cause, QSearchError):
            self._failure.append(str(cause))
        elif self._dead_starts >= MAX_DEAD_STARTS:
            self._failure.append(f"workers die before they can evaluate anything: {error}")


class TuneExecutor:
    """Evaluations on Ray workers.

    Args:
        workers: Parallel workers.
        cpus_per_worker: Cores of each.
        gpus_per_worker: GPUs of each.
        scratch: Directory for Tune's own files, which are thrown away.
        share_artifacts: Offer what a worker computed to workers on other machines. Those of one machine share a
            directory anyway.
    """

    def __init__(
        self,
        workers: int,
        cpus_per_worker: float,
        gpus_per_worker: float,
        scratch: Path,
        share_artifacts: bool = False,
    ) -> None:
        self.workers = workers
        self.share_artifacts = share_artifacts
        self.scratch = scratch.absolute()
        self.resources = {"cpu": cpus_per_worker, "gpu": gpus_per_worker}

    def run(
        self, make_broker: BrokerFactory, target: Target, settings: WorkerSettings, listener: StatusListener
    ) -> Status:
        """See :meth:`qsearch.run.executor.Executor.run`; Ray must be initialised."""
        os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
        for name in ("ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.ERROR)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        make_remote: Any = ray.remote(num_cpus=0, max_restarts=-1)
        actor = make_remote(BrokerActor).options(max_task_retries=-1, scheduling_strategy=here)
        scratch = self._make_scratch()
        recipe = Path(scratch, "broker")
        recipe.write_bytes(ray.cloudpickle.dumps(make_broker))  # type: ignore[no-untyped-call]
        broker = actor.remote(recipe, settings.timeout_s)
        try:
            listener(_get(broker.open.remote()))
            self._remove_others(scratch)
            sharing = artifact_exchange() if self.share_artifacts else contextlib.nullcontext()
            with sharing as exchange, _Listening(broker, listener) as listening:
                self._fit(broker, target, settings, exchange, scratch)
            listening.check()
            status: Status = _get(broker.status.remote())
            listener(status)
            return status
        finally:
            with contextlib.suppress(Exception):
                ray.get(broker.shut_down.remote(), timeout=10)
            ray.kill(broker)
            shutil.rmtree(scratch, ignore_errors=True)

    def _make_scratch(self) -> str:
        self.scratch.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(dir=self.scratch)

    def _remove_others(self, mine: str) -> None:
        """Clears what killed drivers left; called once the study is locked."""
        for left in self.scratch.iterdir():
            if str(left) != mine:
                shutil.rmtree(left, ignore_errors=True)

    def _limit(self) -> int | None:
        """Trials that may be alive; None where the cores are the limit, so that the next one is made ready early."""
        cores = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
        fitting = cores / max(self.resources["cpu"], 1e-9)
        return None if fitting < self.workers + 1 else self.workers

    def _fit(
        self,
        broker: Any,
        target: Target,
        settings: WorkerSettings,
        exchange: ArtifactExchange | None,
        scratch: str,
    ) -> None:
        failure: list[str] = []
        trainable = tune.with_parameters(
            EvaluationTrainable, broker=broker, target=target, settings=settings, exchange=exchange
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, self.resources),
            tune_config=tune.TuneConfig(
                search_alg=LeaseSearcher(broker, failure),
                num_samples=1_000_000_000,
                max_concurrent_trials=self._limit(),
                reuse_actors=True,
                trial_name_creator=lambda trial: f"lease_{trial.trial_id}",
                trial_dirname_creator=lambda trial: f"lease_{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name="leases",
                storage_path=scratch,
                verbose=0,
                callbacks=[LeaseCloser(broker, failure)],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
        if failure:
            raise EvaluationError(failure[-1], "run with --executor serial to see the error in one process")


def _get(reference: Any) -> Any:
    """``ray.get`` that raises the broker's own error instead of Ray's wrapper."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, QSearchError):
            raise error.cause from None
        raise


class _Listening:
    """Polls the broker's status from a thread while Tune's loop holds the main one."""

    def __init__(self, broker: Any, listener: StatusListener) -> None:
        self._broker = broker
        self._listener = listener
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="qsearch-progress")

    def __enter__(self) -> _Listening:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(_LISTEN_EVERY_S):
            try:
                self._listener(_get(self._broker.status.remote()))
            except Exception as error:
                self._error = error
                return

    def check(self) -> None:
        """Raises what ended the thread."""
        if self._error is not None:
            raise self._error
