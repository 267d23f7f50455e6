"""Named places where a test may kill the process, to prove that a study survives it.

``QSEARCH_CRASH_AT=store.after_commit:3`` sends SIGKILL to this process the third time it passes that point;
``QSEARCH_CRASH_GROUP=1`` kills its whole process group instead. Without the first variable a point does nothing.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

from qsearch.errors import StoreError, nearest

#: Every registered point. Other rooms add theirs with :func:`register_crash_points`.
CRASH_POINTS: list[str] = []

_passed: Counter[str] = Counter()


def register_crash_points(*names: str) -> None:
    """Adds points to :data:`CRASH_POINTS`; a name that is already there is left alone.

    Args:
        names: ``room.place``, without a colon.
    """
    CRASH_POINTS.extend(name for name in names if name not in CRASH_POINTS)


register_crash_points("store.before_commit", "store.after_commit")


def crash_point(name: str) -> None:
    """Kills the process here if the environment asks for it.

    Args:
        name: A registered point.

    Raises:
        StoreError: The point is not registered, or ``QSEARCH_CRASH_AT`` is not ``name`` or ``name:n`` with n >= 1.
    """
    if name not in CRASH_POINTS:
        raise StoreError(f"crash point {name!r} is not registered", nearest(name, CRASH_POINTS))
    request = os.environ.get("QSEARCH_CRASH_AT")
    if not request:
        return
    wanted, _, count = request.partition(":")
    if not (count or "1").isdecimal() or int(count or "1") < 1:
        raise StoreError(f"QSEARCH_CRASH_AT is {request!r}", "write it as name or name:n, n from 1")
    if wanted != name:
        return
    _passed[name] += 1
    if _passed[name] != int(count or "1"):
        return
    if os.environ.get("QSEARCH_CRASH_GROUP") == "1":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
