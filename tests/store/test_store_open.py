"""Opening stores that are missing, foreign, damaged or out of reach, and writing when there is no room."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qsearch.errors import StoreError
from qsearch.store import Store
from qsearch.store import engine as engines
from qsearch.testing.store_samples import sample_config, sample_evaluation, snapshot
from qsearch.types import TrialState


def fill(path: Path, trials: int = 40) -> dict[str, Any]:
    """Writes a study into a new store and returns its snapshot."""
    with Store.open(path) as store:
        store.create_study("first", {}, "d")
        study = store.study("first")
        add(study, 0, trials)
        return snapshot(study)


def add(study: Any, first: int, count: int) -> None:
    """Adds trials and their results in one transaction."""
    with study.transaction():
        configs = [sample_config(first + i) for i in range(count)]
        study.add_trials(configs, [TrialState.COMPLETE] * count, [{"size": 1.0}] * count)
        for i in range(count):
            study.add_evaluation(sample_evaluation(first + i))


def run_python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program in another process."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def refused(path: Path | str, match: str, **options: Any) -> StoreError:
    """Checks that a store cannot be opened, with a hint."""
    with pytest.raises(StoreError, match=match) as caught:
        Store.open(path, **options)
    assert caught.value.hint
    return caught.value


# Settings


def test_settings_of_a_writer(tmp_path: Path) -> None:
    fill(tmp_path / "a.db")
    with Store.open(tmp_path / "a.db") as store, store.transaction():
        pragma = {
            name: store._connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_closing_leaves_one_file(tmp_path: Path) -> None:
    fill(tmp_path / "a.db")
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


def test_directory_is_made(tmp_path: Path) -> None:
    fill(tmp_path / "x" / "y" / "a.db")
    assert (tmp_path / "x" / "y" / "a.db").is_file()


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ("/dev/sda / ext4 rw 0 0\nhost:/x /data/home nfs4 rw 0 0\n", "nfs4"),
        ("/dev/sda / ext4 rw 0 0\nhost:/x /data/homes nfs4 rw 0 0\n", "ext4"),
        ("host:/x /data nfs rw 0 0\n/dev/sda / ext4 rw 0 0\n", "nfs"),
        ("host:/x /data nfs rw 0 0\n/dev/sdb /data xfs rw 0 0\n", "xfs"),
        ("garbage\n/dev/sda /data/home/a\\040b lustre rw 0 0\n", "lustre"),
        ("", None),
    ],
)
def test_filesystem_is_that_of_the_deepest_mount(tmp_path: Path, mounts: str, expected: str | None) -> None:
    table = tmp_path / "mounts"
    table.write_text(mounts)
    assert engines.filesystem_of(Path("/data/home/a b/study.db"), table) == expected


def test_filesystem_unknown_without_mount_table(tmp_path: Path) -> None:
    assert engines.filesystem_of(tmp_path, tmp_path / "missing") is None


def test_store_moved_to_a_network_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fill(tmp_path / "a.db")
    for kind, mode in (("nfs", "delete"), ("ext4", "wal")):
        monkeypatch.setattr(engines, "filesystem_of", lambda path, kind=kind: kind)
        with Store.open(tmp_path / "a.db") as store:
            with store.transaction():
                assert store._connection.exec_driver_sql("PRAGMA journal_mode").scalar() == mode
            assert snapshot(store.study("first")) == before


# Wrong places


def test_missing_file_cannot_be_read(tmp_path: Path) -> None:
    refused(tmp_path / "a.db", "there is no store at", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_directory_is_no_store(tmp_path: Path) -> None:
    for read_only in (False, True):
        refused(tmp_path, "is a directory", read_only=read_only)


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file" / "a.db", "cannot be made")


@pytest.mark.parametrize("content", [b"not a database, but some text\n" * 100, b"x", bytes(5000)])
def test_other_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(content)
    for read_only in (True, False):
        refused(path, "a.db", read_only=read_only)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["a.db"]


def test_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.touch()
    refused(path, "no study was ever started", read_only=True)
    fill(path)
    with Store.open(path, read_only=True) as store:
        assert len(store.studies()) == 1


def test_database_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE trials (number INTEGER)")
    connection.close()
    before = path.read_bytes()
    for read_only in (True, False):
        error = refused(path, "database of something else", read_only=read_only)
        assert "trials" in error.message
    assert path.read_bytes() == before


def test_unusable_urls(tmp_path: Path) -> None:
    refused("://", "cannot be read")
    refused("mysql://host/db", "cannot live in a mysql database")
    error = refused("postgresql+nosuchdriver://user:secret@host/db", "nosuchdriver")
    assert "secret" not in str(error)


def test_server_out_of_reach(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    error = refused("postgresql+psycopg://user:secret@127.0.0.1:9/db", "127.0.0.1")
    assert "secret" not in str(error)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="qsearch-test-"))
    path.chmod(0o755)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


AS_ANOTHER_USER = """
    import os, sys
    from qsearch.errors import StoreError
    from qsearch.store import Store
    import sqlalchemy.dialects.sqlite.pysqlite
    if os.geteuid() == 0:  # root may write everywhere
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    path, read_only = sys.argv[1], sys.argv[2] == "read"
    try:
        with Store.open(path, read_only=read_only) as store:
            print(len(store.study("first").trials()))
    except StoreError as error:
        print("StoreError", error.message, "|", error.hint)
"""


def test_directory_that_may_not_be_written(open_directory: Path) -> None:
    path = open_directory / "a.db"
    fill(path, 3)
    path.chmod(0o444)
    open_directory.chmod(0o555)
    writer = run_python(AS_ANOTHER_USER, str(path), "write")
    assert "StoreError" in writer.stdout, writer.stderr
    assert "writ" in writer.stdout.partition("|")[2]
    nowhere = run_python(AS_ANOTHER_USER, str(open_directory / "new.db"), "write")
    assert "StoreError" in nowhere.stdout, nowhere.stderr
    reader = run_python(AS_ANOTHER_USER, str(path), "read")
    assert reader.stdout.strip() == "3", reader.stderr


def test_unmerged_log_is_not_skipped_in_a_directory_that_may_not_be_written(open_directory: Path) -> None:
    """Reading the main file alone would show an old state as if it were the last."""
    live = open_directory / "live.db"
    fill(live, 3)
    with Store.open(live) as store:
        add(store.study("first"), 3, 3)
        for suffix in ("", "-wal"):
            shutil.copy(f"{live}{suffix}", open_directory / f"a.db{suffix}")
    open_directory.chmod(0o555)
    reader = run_python(AS_ANOTHER_USER, str(open_directory / "a.db"), "read")
    assert "unable to open" in reader.stdout or reader.stdout.strip() == "6", reader.stdout + reader.stderr


# Damage


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    fill(path, 200)
    size = path.stat().st_size
    os.truncate(path, size // 2 // 4096 * 4096)
    error = refused(path, "malformed|damaged")
    assert "backup" in error.hint
    refused(path, "malformed|damaged", read_only=True)


def test_overwritten_page(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    fill(path, 200)
    with path.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(os.urandom(4096))
    error = refused(path, "malformed|damaged")
    assert "backup" in error.hint


def test_check_finds_dangling_references(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    fill(path, 3)
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM evaluations WHERE accuracy = (SELECT min(accuracy) FROM evaluations)")
    connection.commit()
    connection.close()
    with Store.open(path) as store, pytest.raises(StoreError, match="study_evaluations refers to a missing row"):
        store.check()


# No room


def write_on_after_failure(study: Any) -> None:
    """Ignores a failed write inside a transaction."""
    with study.transaction():
        study.add_event("lost")
        with pytest.raises(StoreError, match="full"):
            study.add_event("lost", {"text": "x" * 10**6})
        with pytest.raises(StoreError, match="nothing of this transaction"):
            study.add_event("lost")


def test_full_database_keeps_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Store.open(path) as store:
        store.create_study("first", {}, "d")
        study = store.study("first")
        add(study, 0, 20)
        before = snapshot(study)
        store._connection.exec_driver_sql("PRAGMA max_page_count = 1")  # SQLite raises it to the present size
        store._connection.rollback()
        with pytest.raises(StoreError, match="full") as caught:
            add(study, 20, 500)
        assert "free some space" in caught.value.hint
        assert snapshot(study) == before
        # A block that catches the error keeps nothing either, though SQLite has rolled back by itself meanwhile.
        with pytest.raises(StoreError, match="nothing of this transaction"):
            write_on_after_failure(study)
        assert snapshot(study) == before
        store._connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        store._connection.rollback()
        add(study, 20, 500)
        store.check()
    with Store.open(path) as store:
        assert len(store.study("first").trials()) == 520


FILL_UP = """
    import resource, sys
    from qsearch.errors import StoreError
    from qsearch.store import Store
    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    with Store.open(sys.argv[1]) as store:
        store.create_study("first", {}, "d")
        study = store.study("first")
        try:
            for number in range(100_000):
                study.add_event("kind", {"number": number, "text": "x" * 500})
        except StoreError as error:
            print(number, len(study.events()), error)
        try:
            study.add_event("kind", {"text": "x" * 50_000})
        except StoreError as error:
            print("again", error.hint)
"""


def check_filled(path: Path, process: subprocess.CompletedProcess[str]) -> None:
    """Everything committed before the failing write is there, and the store goes on."""
    assert process.returncode == 0, process.stderr
    assert "again" in process.stdout
    assert "safe" in process.stdout
    written, readable = (int(word) for word in process.stdout.split()[:2])
    assert written == readable > 10
    with Store.open(path) as store:
        store.check()
        study = store.study("first")
        assert [event.payload["number"] for event in study.events()] == list(range(written))
        assert study.add_event("more") == written


def test_file_size_limit(tmp_path: Path) -> None:
    """An I/O error from the operating system, as with a quota."""
    check_filled(tmp_path / "a.db", run_python(FILL_UP, str(tmp_path / "a.db"), str(300_000)))


def test_full_disk(tmp_path: Path) -> None:
    """A real full disk: a small file system in memory, seen only by this process and its children."""
    script = tmp_path / "fill.py"
    script.write_text(textwrap.dedent(FILL_UP))
    mount = tmp_path / "disk"
    mount.mkdir()
    flags = ["--mount"] if os.geteuid() == 0 else ["--mount", "--user", "--map-root-user"]
    # The store is copied out of the full disk while it is mounted; -shm holds nothing that lasts.
    steps = f"""
        mount -t tmpfs -o size=400k none {mount} || exit 77
        {sys.executable} {script} {mount}/a.db; code=$?
        cp {mount}/a.db* {tmp_path}; rm -f {tmp_path}/a.db-shm
        exit $code
    """
    if shutil.which("unshare") is None:
        pytest.skip("no unshare on this machine")
    process = subprocess.run(
        ["unshare", *flags, "sh", "-c", steps], capture_output=True, text=True, timeout=60, check=False
    )
    if process.returncode in (1, 77) and "Traceback" not in process.stderr:
        pytest.skip(f"cannot mount a file system here: {process.stderr.strip()}")
    check_filled(tmp_path / "a.db", process)


# Several processes


def test_many_processes_create_one_store(tmp_path: Path) -> None:
    code = """
        import sys
        from qsearch.store import Store
        with Store.open(sys.argv[1]) as store:
            store.create_study(sys.argv[2], {}, "d")
            for _ in range(20):
                store.study(sys.argv[2]).add_event("kind")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.db")]
    processes = [subprocess.Popen([*command, f"s{i}"], stderr=subprocess.PIPE, text=True) for i in range(4)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    with Store.open(tmp_path / "a.db") as store:
        store.check()
        assert sorted(study.name for study in store.studies()) == ["s0", "s1", "s2", "s3"]
        assert [len(store.study(f"s{i}").events()) for i in range(4)] == [20] * 4


def test_waiting_for_another_writer_ends_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0.2)
    fill(tmp_path / "a.db", 1)
    with Store.open(tmp_path / "a.db") as one, Store.open(tmp_path / "a.db") as two:
        with one.transaction():
            one.study("first").add_event("kind")
            with pytest.raises(StoreError, match="locked") as caught:
                two.study("first").add_event("kind")
        assert "another program" in caught.value.hint
        assert two.study("first").add_event("kind") == 1
