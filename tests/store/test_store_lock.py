"""One driver per study."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from qsearch.errors import StoreError, StudyLockedError
from qsearch.store import LockRecord, LockStatus, StudyLock, lock, read_lock

HOLDER = """
    import sys, time
    from qsearch.store.lock import StudyLock
    owner = int(sys.argv[2]) or None
    with StudyLock(sys.argv[1]).acquire(owner):
        print("held", flush=True)
        time.sleep(float(sys.argv[3]))
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.lock"


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    """Starts processes that hold the lock, and ends them after the test."""
    processes: list[subprocess.Popen[str]] = []

    def hold(owner_pid: int = 0, seconds: float = 60.0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(path), str(owner_pid), str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        if process.stdout is None or process.stdout.readline() != "held\n":
            raise RuntimeError("the lock was not taken")
        return process

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave_record(path: Path, **changes: object) -> LockRecord:
    """Writes the record of a holder that is not there (any more)."""
    record = replace(LockRecord.mine(None), **changes)
    path.write_text(json.dumps(asdict(record)))
    return record


def test_taken_and_given_back(path: Path) -> None:
    assert read_lock(path) == LockStatus(None, False)
    before = time.time()
    study_lock = StudyLock(path)
    assert not study_lock.held
    with study_lock.acquire(owner_pid=os.getppid()):
        assert study_lock.held
        status = read_lock(path)
        assert status.held is True
        assert status.record is not None
        assert (status.record.host, status.record.pid) == (socket.gethostname(), os.getpid())
        assert status.record.owner_pid == os.getppid()
        assert status.record.boot_id == lock.boot_id()
        assert before <= status.record.started_at <= time.time()
    assert not study_lock.held
    assert path.exists()  # never unlinked
    assert read_lock(path) == LockStatus(None, False)
    study_lock.release()
    with StudyLock(path).acquire():
        assert read_lock(path).held is True


def test_second_driver_is_refused(path: Path, start: Start) -> None:
    holder = start()
    with pytest.raises(StudyLockedError) as caught:
        StudyLock(path).acquire()
    for part in (str(holder.pid), socket.gethostname(), "since", "UTC"):
        assert part in caught.value.message
    assert caught.value.hint
    status = read_lock(path)
    assert status.held is True
    assert status.record is not None
    assert status.record.pid == holder.pid


def test_second_lock_of_one_process_is_refused(path: Path) -> None:
    with StudyLock(path).acquire():
        with pytest.raises(StudyLockedError, match=str(os.getpid())):
            StudyLock(path).acquire()
        assert read_lock(path).held is True  # the refused one gave nothing away


def test_takeover_does_not_take_from_a_live_process(path: Path, start: Start) -> None:
    holder = start()
    with pytest.raises(StudyLockedError, match=str(holder.pid)):
        StudyLock(path).acquire(takeover=True)
    assert holder.poll() is None


def test_killed_holder_leaves_nothing_to_clean_up(path: Path, start: Start) -> None:
    holder = start()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    status = read_lock(path)
    assert status.held is False
    assert status.record is not None
    assert status.record.pid == holder.pid
    with StudyLock(path).acquire():
        record = read_lock(path).record
        assert record is not None
        assert record.pid == os.getpid()


def test_only_one_of_many_gets_it(path: Path) -> None:
    code = """
        import sys, time
        from qsearch.errors import StudyLockedError
        from qsearch.store.lock import StudyLock
        try:
            StudyLock(sys.argv[1]).acquire()
            print("mine", flush=True)
            time.sleep(60)
        except StudyLockedError:
            print("refused", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    lines = [process.stdout.readline().strip() for process in processes if process.stdout]
    for process in processes:
        process.kill()
        process.communicate()
    assert sorted(lines) == ["mine", "refused", "refused", "refused"]


def test_reading_does_not_disturb(path: Path) -> None:
    """A lock that is being read all the time can still be taken at once."""
    StudyLock(path).acquire().release()
    done = threading.Event()

    def read() -> None:
        while not done.wait(0.002):
            read_lock(path)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            StudyLock(path).acquire().release()
    finally:
        done.set()
        for thread in threads:
            thread.join()


# A driver that was killed while the process it started still holds the lock


def test_waits_for_a_dying_holder(path: Path, start: Start, dead_pid: int) -> None:
    start(owner_pid=dead_pid, seconds=0.8)
    begin = time.monotonic()
    with StudyLock(path).acquire(wait_s=30):
        assert 0.1 < time.monotonic() - begin < 20


def test_dying_holder_that_stays(path: Path, start: Start, dead_pid: int) -> None:
    holder = start(owner_pid=dead_pid)
    with pytest.raises(StudyLockedError, match="still on its way out") as caught:
        StudyLock(path).acquire(wait_s=0.4)
    assert str(holder.pid) in caught.value.message


def test_does_not_wait_for_a_live_driver(path: Path, start: Start) -> None:
    start(owner_pid=os.getpid())
    begin = time.monotonic()
    with pytest.raises(StudyLockedError, match="being driven by"):
        StudyLock(path).acquire(wait_s=30)
    assert time.monotonic() - begin < 10


def test_process_that_waits_to_be_reaped_is_dead(dead_pid: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert lock.is_alive(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    assert not lock.is_alive(child.pid)
    child.wait()
    assert not lock.is_alive(dead_pid)
    assert lock.is_alive(os.getpid())
    assert lock.is_alive(1)


# Records that others left


def test_record_of_another_host(path: Path) -> None:
    record = leave_record(path, host="elsewhere", boot_id="other")
    assert read_lock(path) == LockStatus(record, None)
    with pytest.raises(StudyLockedError, match="elsewhere") as caught:
        StudyLock(path).acquire()
    assert "--takeover" in caught.value.hint
    assert read_lock(path) == LockStatus(record, None)
    with StudyLock(path).acquire(takeover=True):
        status = read_lock(path)
        assert status.held is True
        assert status.record is not None
        assert status.record.host == socket.gethostname()


@pytest.mark.parametrize(
    "changes",
    [
        {"boot_id": "an earlier boot"},
        {"boot_id": "an earlier boot", "pid": 1},
        {"pid": 2**22 + 1},
        {"pid": 1},  # alive, but without the flock it cannot be the holder
        {"host": "another-container-of-this-machine"},
    ],
    ids=str,
)
def test_stale_record_is_reclaimed(path: Path, changes: dict[str, object]) -> None:
    record = leave_record(path, **changes)
    assert read_lock(path) == LockStatus(record, False)
    with StudyLock(path).acquire():
        status = read_lock(path)
        assert status.held is True
        assert status.record is not None
        assert (status.record.host, status.record.pid) == (socket.gethostname(), os.getpid())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"host": "x"}', "\0" * 100, "{}" * 2000])
def test_unreadable_record_is_reclaimed(path: Path, text: str) -> None:
    path.write_text(text)
    assert read_lock(path) == LockStatus(None, False)
    with StudyLock(path).acquire():
        assert read_lock(path).held is True
    assert read_lock(path) == LockStatus(None, False)


def test_file_system_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch, dead_pid: int) -> None:
    """Only the record is left to go by."""
    monkeypatch.setattr(lock, "_flock", lambda fd, operation: None)
    alive = leave_record(path, pid=1)
    assert read_lock(path) == LockStatus(alive, True)
    with pytest.raises(StudyLockedError, match="process 1 on"):
        StudyLock(path).acquire()
    with StudyLock(path).acquire(takeover=True):
        assert read_lock(path).held is True
    dead = leave_record(path, pid=dead_pid)
    assert read_lock(path) == LockStatus(dead, False)
    with StudyLock(path).acquire():
        assert read_lock(path).held is True


def test_directory_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        StudyLock(tmp_path / "missing" / "study.lock").acquire()
    assert not isinstance(caught.value, StudyLockedError)
    assert caught.value.hint
