"""The durable log of studies, and the lock that keeps one driver per study."""

from __future__ import annotations

from qsearch.store.crashpoints import CRASH_POINTS, crash_point, register_crash_points
from qsearch.store.lock import LockRecord, LockStatus, StudyLock, read_lock
from qsearch.store.records import Evaluation, Event, Failure, StudyRecord, Trial, same_score
from qsearch.store.schema import SCHEMA_VERSION
from qsearch.store.store import Store
from qsearch.store.study import StudyStore

__all__ = [
    "CRASH_POINTS",
    "SCHEMA_VERSION",
    "Evaluation",
    "Event",
    "Failure",
    "LockRecord",
    "LockStatus",
    "Store",
    "StudyLock",
    "StudyRecord",
    "StudyStore",
    "Trial",
    "crash_point",
    "read_lock",
    "register_crash_points",
    "same_score",
]
