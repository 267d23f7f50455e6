"""What a store holds after its writer was killed, or after the end of its log was torn off."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_writer import committed, write

from qsearch.errors import StoreError
from qsearch.store import CRASH_POINTS, Store, crash_point, crashpoints, register_crash_points

WRITER = str(Path(__file__).parent / "store_writer.py")

#: Write transactions before the first numbered one, in a new store: its tables, and the study.
PREPARATION = 2


def start_writer(path: Path, count: int, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, WRITER, str(path), str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("point", [point for point in CRASH_POINTS if point.startswith("store.")])
def test_killed_at_crash_point(tmp_path: Path, point: str, n: int) -> None:
    path = tmp_path / "a.db"
    writer = start_writer(path, 10, QSEARCH_CRASH_AT=f"{point}:{n}")
    output, errors = writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL, errors
    survived = n if point == "store.after_commit" else n - 1
    with Store.open(path) as store:
        whole = max(0, survived - PREPARATION)
        assert committed(store) == whole
        assert (store.find_study("first") is not None) == (survived >= PREPARATION)
        # The next run carries on where this one was killed.
        if survived < PREPARATION:
            store.create_study("first", {}, "d")
        write(store.study("first"), whole)
        assert committed(store) == whole + 1
    # Killed after a commit, it could not say so any more; all before it were reported.
    reported = whole if point == "store.before_commit" else max(0, whole - 1)
    assert output.splitlines() == [str(i) for i in range(reported)]


def test_killed_at_random_times(tmp_path: Path) -> None:
    """Kill, resume, kill, ...: what was reported as written stays, and at most the last one was not reported."""
    path = tmp_path / "a.db"
    rng = random.Random(7)
    known = 0
    for _ in range(4):
        writer = start_writer(path, 10**6)
        if writer.stdout is None:
            raise RuntimeError("no pipe")
        first = writer.stdout.readline()
        assert first == f"{known}\n"
        time.sleep(rng.uniform(0.0, 0.15))
        writer.kill()
        rest = writer.communicate(timeout=60)[0].splitlines()
        reported = int(rest[-1] if rest else first) + 1
        with Store.open(path, read_only=True) as store:
            known = committed(store)
        assert reported <= known <= reported + 1
    assert known > 4


def test_torn_log(tmp_path: Path) -> None:
    """Whatever end of the write-ahead log is missing, what opens is a prefix of the transactions."""
    path = tmp_path / "a.db"
    sizes = []
    with Store.open(path) as store:
        store.create_study("first", {}, "d")
        study = store.study("first")
        for i in range(6):
            write(study, i)
            sizes.append(path.with_name("a.db-wal").stat().st_size)
        for suffix in ("", "-wal"):  # as a kill leaves them: nothing is merged into the main file
            shutil.copy(f"{path}{suffix}", tmp_path / f"torn{suffix}")
    end, frame = sizes[-1], 4096 + 24
    cuts = {0, 1, 31, 32, 33, 32 + frame, *sizes, *(size - 1 for size in sizes), *(size + 1 for size in sizes[:-1])}
    cuts |= {end - k * frame // 4 for k in range(1, 8)} | {sizes[-2] + k * frame for k in range(4)}
    found = {}
    for cut in sorted(cuts):
        shutil.copy(tmp_path / "torn", tmp_path / "cut.db")
        (tmp_path / "cut.db-wal").write_bytes((tmp_path / "torn-wal").read_bytes()[:cut])
        with Store.open(tmp_path / "cut.db", read_only=True) as store:
            try:
                found[cut] = committed(store)
            except StoreError as error:
                pytest.fail(f"log of {cut} bytes: {error}")
        with Store.open(tmp_path / "cut.db") as store:  # and it can be written again
            assert committed(store) == found[cut]
            if store.find_study("first") is None:
                store.create_study("first", {}, "d")
            write(store.study("first"), found[cut])
        with Store.open(tmp_path / "cut.db") as store:
            assert committed(store) == found[cut] + 1
    expected = {cut: sum(size <= cut for size in sizes) for cut in cuts}
    assert found == expected


@pytest.mark.parametrize("damage", ["garbage after it", "last frame changed"])
def test_damaged_log(tmp_path: Path, damage: str) -> None:
    """Checksums keep out what is not a whole frame of this log."""
    path = tmp_path / "a.db"
    with Store.open(path) as store:
        store.create_study("first", {}, "d")
        for i in range(3):
            write(store.study("first"), i)
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", tmp_path / f"copy.db{suffix}")
    log = tmp_path / "copy.db-wal"
    data = bytearray(log.read_bytes())
    if damage == "garbage after it":
        data += random.Random(0).randbytes(3 * 4120)
    else:
        data[-100] ^= 1
    log.write_bytes(data)
    with Store.open(tmp_path / "copy.db") as store:
        assert committed(store) == (3 if damage == "garbage after it" else 2)


# The hook itself


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Records signals instead of sending them, and forgets registrations and counts afterwards."""
    sent: list[tuple[str, int]] = []
    monkeypatch.setattr(crashpoints.os, "kill", lambda pid, number: sent.append(("process", number)))
    monkeypatch.setattr(crashpoints.os, "killpg", lambda group, number: sent.append(("group", number)))
    monkeypatch.setattr(crashpoints, "_passed", type(crashpoints._passed)())
    monkeypatch.setattr(crashpoints, "CRASH_POINTS", list(CRASH_POINTS))
    monkeypatch.delenv("QSEARCH_CRASH_AT", raising=False)
    monkeypatch.delenv("QSEARCH_CRASH_GROUP", raising=False)
    return sent


def test_crash_point_counts(kills: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    register_crash_points("run.here", "store.after_commit")
    registered = [name for name in crashpoints.CRASH_POINTS if not name.startswith("broker.")]
    assert registered == ["store.before_commit", "store.after_commit", "run.here"]
    crash_point("run.here")
    monkeypatch.setenv("QSEARCH_CRASH_AT", "run.here:3")
    for expected in (0, 0, 1, 1):
        crash_point("run.here")
        crash_point("store.after_commit")
        assert kills == [("process", signal.SIGKILL)] * expected


def test_crash_point_defaults_to_the_first_time(kills: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSEARCH_CRASH_AT", "store.after_commit")
    monkeypatch.setenv("QSEARCH_CRASH_GROUP", "1")
    crash_point("store.after_commit")
    assert kills[0] == ("group", signal.SIGKILL)


@pytest.mark.parametrize("request_", ["store.after_commit:0", "store.after_commit:x", "store.after_commit:-1"])
def test_crash_point_request_must_be_readable(
    kills: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, request_: str
) -> None:
    monkeypatch.setenv("QSEARCH_CRASH_AT", request_)
    with pytest.raises(StoreError, match="QSEARCH_CRASH_AT"):
        crash_point("store.after_commit")
    assert kills == []


def test_crash_point_must_be_registered(kills: list[tuple[str, int]]) -> None:
    with pytest.raises(StoreError, match="not registered") as caught:
        crash_point("store.after_comit")
    assert "store.after_commit" in caught.value.hint
