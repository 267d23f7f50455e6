"""Ray and the Tune executor together, for the length of one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qsearch.run.cluster import ray_session
from qsearch.run.executor import Executor


@contextmanager
def tune_executor(
    address: str | None, workers: int, cpus_per_worker: float, gpus_per_worker: float, scratch: Path
) -> Iterator[Executor]:
    """Starts or joins Ray and yields the executor; see :func:`qsearch.run.cluster.ray_session`."""
    with ray_session(address, workers, cpus_per_worker, gpus_per_worker) as ray:
        from qsearch.run.tune import TuneExecutor  # after Ray is set up: importing it reads the environment

        # A cluster that was joined may grow; a Ray of this machine alone has one directory of artifacts.
        several = address is not None or sum(node["Alive"] for node in ray.nodes()) > 1
        yield TuneExecutor(workers, cpus_per_worker, gpus_per_worker, scratch, share_artifacts=several)
