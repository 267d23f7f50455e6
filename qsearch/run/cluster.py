"""Starting or joining Ray, and leaving it as it was found."""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qsearch.errors import QSearchError

CONNECT_TIMEOUT_S = 10.0


@contextmanager
def ray_session(address: str | None, workers: int, cpus_per_worker: float, gpus_per_worker: float) -> Iterator[Any]:
    """Yields the ``ray`` module, connected.

    Without an address a private Ray is started on this machine, on the loopback interface only and with a token of its
    own, and shut down at the end. A Ray that the calling process is already connected to is used and left running.

    Args:
        address: Of a running cluster (``auto``, ``HOST:PORT``), or None.
        workers: Workers that must fit into a private Ray.
        cpus_per_worker: Cores of each.
        gpus_per_worker: GPUs of each.

    Raises:
        QSearchError: The cluster cannot be reached or started.
    """
    # Ray reads its authentication settings once, when it is first imported; clusters bring their own.
    private = address is None
    if private and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    if address is not None:
        _check_reachable(address)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            if private:
                ray.init(
                    num_cpus=math.ceil(workers * cpus_per_worker),
                    num_gpus=math.ceil(workers * gpus_per_worker) or None,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                )
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        where = "on this machine" if private else f"at {address}"
        raise QSearchError(
            f"Ray cannot be started or reached {where}: {error}",
            "try --executor serial, or check the cluster with `ray status`; RAY_AUTH_MODE must be the cluster's",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuses an address where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto", or something that Ray resolves
    try:
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise QSearchError(
            f"nothing answers at the Ray address {address}: {error.strerror or error}",
            "is the cluster up (`ray status`), and is this HOST:PORT of its head, usually port 6379?",
        ) from error
