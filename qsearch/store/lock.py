"""One driver per study: a lock on a file in the study's directory.

The kernel's ``flock`` decides between processes of one machine, and lets go by itself when its holder dies. The file
also says who holds it, for messages, and for the one case that ``flock`` may not see: a shared file system on which
the holder is another machine. The file is never unlinked: whoever had it open would lock a file that is gone.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from qsearch.errors import StoreError, StudyLockedError

#: The record is written in one piece of this size, so that a reader never sees half of one. Bytes.
_RECORD_SIZE = 1024

#: How long a refusal is delayed, in case it was only a reader that tested the lock just then, seconds: if the record
#: names a live process, and if it does not.
_GRACE_SECONDS = (0.25, 1.0)

_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class LockRecord:
    """Who holds a study.

    Attributes:
        host: Host name.
        pid: Process that holds the lock.
        boot_id: Identity of the running kernel; empty where the system has none.
        started_at: When the lock was taken, unix seconds.
        owner_pid: Process on whose behalf it is held, on the same host, if it is another one.
    """

    host: str
    pid: int
    boot_id: str
    started_at: float
    owner_pid: int | None = None

    @classmethod
    def mine(cls, owner_pid: int | None) -> LockRecord:
        """Returns the record of this process, starting now."""
        return cls(socket.gethostname(), os.getpid(), boot_id(), time.time(), owner_pid)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LockRecord:
        """Builds a record from its JSON form.

        Raises:
            KeyError, TypeError, ValueError: It is not one.
        """
        owner = value["owner_pid"]
        return cls(
            str(value["host"]),
            int(value["pid"]),
            str(value["boot_id"]),
            float(value["started_at"]),
            None if owner is None else int(owner),
        )

    @property
    def same_kernel(self) -> bool:
        """True when the holder ran under this kernel, so that ``flock`` tells the truth about it.

        Host names do not decide it where boot ids exist: containers of one machine have names of their own.
        """
        return self.boot_id == boot_id() if self.boot_id and boot_id() else self.host == socket.gethostname()

    @property
    def same_host(self) -> bool:
        """True when the holder ran on a machine of this name, in this boot or an earlier one."""
        return self.host == socket.gethostname()

    @property
    def dying(self) -> bool:
        """True when the holder, or the process it works for, is known to be dead."""
        if not (self.same_kernel and self.same_host):
            return False
        return not is_alive(self.pid) or (self.owner_pid is not None and not is_alive(self.owner_pid))

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.started_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.pid} on {self.host}, since {since}"


@dataclass(frozen=True, slots=True)
class LockStatus:
    """What :func:`read_lock` found.

    Attributes:
        record: The last record, None if the last holder released the lock in order.
        held: True when somebody holds the lock, False when not (with a record: its holder died), None when it cannot
            be told from this machine.
    """

    record: LockRecord | None
    held: bool | None


class StudyLock:
    """The right to drive a study, held until :meth:`release` or the end of the process.

    Args:
        path: The lock file, ``DIR/study.lock``; its directory must exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._fd: int | None = None

    def acquire(self, owner_pid: int | None = None, takeover: bool = False, wait_s: float = 0.0) -> StudyLock:
        """Takes the lock.

        Args:
            owner_pid: The driver that this process works for, if it is not the driver itself; on this host.
            takeover: Also take a lock whose holder was on another machine, where it cannot be seen whether it lives.
            wait_s: How long to wait for a holder that is on its way out (it or its owner is dead), seconds.

        Returns:
            This lock, to be used in a ``with`` statement if wanted.

        Raises:
            StudyLockedError: Another process holds it, or may hold it.
            StoreError: The file cannot be opened or written.
        """
        fd = _open(self.path, os.O_RDWR | os.O_CREAT)
        try:
            reliable = self._wait_for_flock(fd, wait_s)
            record = _read(fd)
            if record is not None:
                self._refuse_if_alive(record, reliable, takeover)
            _write(fd, LockRecord.mine(owner_pid))
        except OSError as error:
            os.close(fd)
            raise StoreError(
                f"the lock {self.path} cannot be written: {error.strerror}",
                "check the space on the disk and your rights to the directory",
            ) from error
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return self

    def release(self) -> None:
        """Gives the lock back and leaves its file in place. Releasing twice does no harm."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            _write(fd, None)
            _flock(fd, fcntl.LOCK_UN)  # also for copies of the descriptor in forked children
        except OSError as error:
            raise StoreError(
                f"the lock {self.path} cannot be cleared: {error.strerror}", "the next run will find it stale"
            ) from error
        finally:
            os.close(fd)

    @property
    def held(self) -> bool:
        """True when this object holds the lock."""
        return self._fd is not None

    def __enter__(self) -> StudyLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _wait_for_flock(self, fd: int, wait_s: float) -> bool:
        """Returns True with the flock held, False where the file system has none."""
        start = time.monotonic()
        while True:
            got = _flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if got is not False:
                return got is True
            waited = time.monotonic() - start
            record = _read(fd)
            dying = record is not None and record.dying
            if waited >= max(_GRACE_SECONDS[record is None or dying], wait_s if dying else 0.0):
                raise self._locked(record, dying)
            time.sleep(_POLL_SECONDS)

    def _locked(self, record: LockRecord | None, dying: bool) -> StudyLockedError:
        holder = str(record) if record is not None else "a process that did not say who it is"
        if dying:
            return StudyLockedError(
                f"the driver of this study is dead, but what it started is still on its way out ({holder})",
                "wait a little and try again, or end that process",
            )
        return StudyLockedError(
            f"this study is being driven by {holder}", "wait for it, or stop it and resume; `qsearch status` only reads"
        )

    def _refuse_if_alive(self, record: LockRecord, reliable: bool, takeover: bool) -> None:
        """Raises unless the holder named in a record, whose flock was not seen, is known to be gone."""
        if record.same_kernel:
            if not reliable and not takeover and is_alive(record.pid):
                raise StudyLockedError(
                    f"this study is being driven by {record}", "stop it; if it is something else, add --takeover"
                )
        elif not record.same_host and not takeover:
            raise StudyLockedError(
                f"this study was last driven by {record}, which cannot be seen from here",
                "make sure that it has ended there, then add --takeover",
            )


def read_lock(path: str | Path) -> LockStatus:
    """Tells who drives a study, without disturbing it.

    Args:
        path: The lock file; need not exist.

    Raises:
        StoreError: The file cannot be read.
    """
    if not Path(path).exists():
        return LockStatus(None, False)
    fd = _open(Path(path), os.O_RDONLY)
    try:
        free = _flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        record = _read(fd)
    except OSError as error:
        raise StoreError(f"the lock {path} cannot be read: {error.strerror}", "check the file system") from error
    finally:
        os.close(fd)
    if free is False:
        return LockStatus(record, True)
    if record is None:
        return LockStatus(None, False)
    if record.same_kernel:
        return LockStatus(record, False if free else is_alive(record.pid))
    return LockStatus(record, False if record.same_host else None)


def boot_id() -> str:
    """Returns what identifies the running kernel since it was booted, empty where the system has no such thing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Tells whether a process of this machine still runs; one that only waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    # The state follows the command, which is in parentheses and may hold some itself.
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(
            f"the lock {path} cannot be opened: {error.strerror}",
            "check that the directory of the study exists and is writable for you",
        ) from error


def _flock(fd: int, operation: int) -> bool | None:
    """Returns True when done, False when another holds the lock, None where the file system has no such lock."""
    try:
        fcntl.flock(fd, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            return None
        raise
    return True


def _read(fd: int) -> LockRecord | None:
    """The record, None if it was cleared or never completely written."""
    try:
        return LockRecord.from_json(json.loads(os.pread(fd, _RECORD_SIZE, 0).rstrip(b"\0 \n")))
    except (ValueError, KeyError, TypeError):
        return None


def _write(fd: int, record: LockRecord | None) -> None:
    text = b"" if record is None else json.dumps(asdict(record)).encode()
    os.pwrite(fd, text.ljust(_RECORD_SIZE - 1) + b"\n", 0)
    os.fsync(fd)
