"""Opening a database, and turning its errors into ones a user can act on.

SQLite runs with a write-ahead log and ``synchronous=FULL``: a commit that returned survives a power cut, and readers
never wait for the writer. The write-ahead log needs memory shared between the processes, which a network file system
does not give (https://sqlite.org/wal.html, section 1), so there the rollback journal is used: as safe, but slower, and
a commit waits for the reads in progress.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc, pool

from qsearch.errors import StoreError

#: How long a write waits for another writer, seconds.
BUSY_SECONDS = 30.0

#: File systems on which a write-ahead log is not safe.
NETWORK_FILESYSTEMS = frozenset(
    [
        *(
            "9p",
            "afs",
            "beegfs",
            "ceph",
            "cifs",
            "fuse.ceph",
            "fuse.glusterfs",
            "fuse.sshfs",
            "glusterfs",
            "gpfs",
            "lustre",
        ),
        *("ncpfs", "nfs", "nfs4", "orangefs", "panfs", "smb3", "smbfs", "wekafs"),
    ]
)

_HINTS = {
    sqlite3.SQLITE_NOTADB: "check the path; to start a new store there, move the file away first",
    sqlite3.SQLITE_CORRUPT: "copy the file and its -wal aside, then restore a backup or try `sqlite3 FILE .recover`",
    sqlite3.SQLITE_FULL: "free some space and resume: everything recorded before is safe",
    sqlite3.SQLITE_IOERR: "the disk is full, over quota or failing; make room and resume: what was recorded is safe",
    sqlite3.SQLITE_READONLY: "check that the file and its directory are writable for you",
    sqlite3.SQLITE_PERM: "check that the file and its directory are writable for you",
    sqlite3.SQLITE_CANTOPEN: "check that the directory exists and that you may read and write it",
    sqlite3.SQLITE_BUSY: "another program is writing to it: wait for it or stop it",
    sqlite3.SQLITE_LOCKED: "another program is writing to it: wait for it or stop it",
    sqlite3.SQLITE_CONSTRAINT: "two drivers may be writing one study: look at `qsearch status`",
}


def location(url_or_path: str | Path) -> tuple[sa.URL, Path | None, str]:
    """Returns the URL of a store, its file if it is an SQLite file, and what to call it in messages.

    Args:
        url_or_path: A file path, ``:memory:``, or a database URL (anything with ``://`` in it).

    Raises:
        StoreError: The URL cannot be parsed.
    """
    text = str(url_or_path)
    try:
        url = sa.make_url(text) if "://" in text else sa.URL.create("sqlite", database=text)
    except (exc.ArgumentError, ValueError) as error:
        raise StoreError(
            "the URL of the store cannot be read", "write a path, or postgresql+psycopg://user@host/db"
        ) from error
    if url.get_backend_name() != "sqlite":
        return url, None, url.render_as_string(hide_password=True)
    if url.database in (None, "", ":memory:"):
        return url, None, "the store in memory"
    path = Path(str(url.database))
    return url, path, str(path)


def open_engine(url_or_path: str | Path, *, read_only: bool) -> sa.Engine:
    """Returns an engine that holds one connection.

    Args:
        url_or_path: See :func:`location`.
        read_only: Never write; the file must exist.

    Raises:
        StoreError: The file is missing, a directory or not accessible; the database is of an unknown kind or its
            driver is not installed.
    """
    url, path, label = location(url_or_path)
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"a store cannot live in a {backend} database", "use an SQLite file or PostgreSQL")
    if backend == "postgresql":
        # A reader sees one state of the database throughout a transaction, as it does in SQLite.
        options = {"isolation_level": "REPEATABLE READ"} if read_only else {}
        try:
            return sa.create_engine(url, poolclass=pool.QueuePool, pool_size=1, max_overflow=0, **options)
        except (exc.NoSuchModuleError, ImportError) as error:
            raise StoreError(
                f"{label}: {error}", "install the database driver, such as `pip install psycopg`"
            ) from error
    if path is not None:
        _check_path(path, read_only)

    def connect() -> sqlite3.Connection:
        return _connect_reader(path) if path is not None and read_only else _connect_writer(path)

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=pool.StaticPool)

    # The sqlite3 module would begin a transaction only at the first write; see the pysqlite page of SQLAlchemy.
    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(connection.info.pop("begin", "BEGIN"))

    return engine


def begin(connection: sa.Connection, *, write: bool) -> None:
    """Starts a transaction; one that will write takes SQLite's write lock at once rather than fail half-way."""
    connection.info["begin"] = "BEGIN IMMEDIATE" if write else "BEGIN"
    connection.begin()


def choose_journal(connection: sa.Connection, path: Path) -> None:
    """Sets the journal mode that suits the file system. Call it outside a transaction, on a writer.

    Raises:
        sqlite3.OperationalError: The file stayed locked for :data:`BUSY_SECONDS`.
    """
    wanted = "delete" if filesystem_of(path) in NETWORK_FILESYSTEMS else "wal"
    raw = connection.connection.driver_connection
    if not isinstance(raw, sqlite3.Connection):
        return
    deadline = time.monotonic() + BUSY_SECONDS
    while raw.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
        try:
            raw.execute(f"PRAGMA journal_mode={wanted}")
            return  # SQLite keeps the old mode where it cannot do the wanted one; both are safe
        except sqlite3.OperationalError as error:
            # The busy timeout does not cover this statement.
            if _primary(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def filesystem_of(path: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """Returns the type of the file system that holds ``path``, None where the system does not tell.

    Args:
        path: Any path; need not exist.
        mounts: The mount table, in fstab format.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    target = path.resolve()
    best, kind = -1, None
    for fields in (line.split() for line in lines):
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        # A later mount over the same directory hides the earlier one.
        if target.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


@contextmanager
def translated(label: str) -> Iterator[None]:
    """Turns database errors raised inside into :class:`StoreError`.

    Args:
        label: What to call the store in the message.
    """
    try:
        yield
    except exc.DBAPIError as error:
        original = error.orig if error.orig is not None else error
        raise StoreError(f"{label}: {_text(original)}", _hint(original)) from error
    except (sqlite3.Error, exc.SQLAlchemyError) as error:
        raise StoreError(f"{label}: {_text(error)}", _hint(error)) from error


def _text(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _primary(error: BaseException) -> int:
    """The primary SQLite result code (https://sqlite.org/rescode.html), 0 if it is not an SQLite error."""
    return int(getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _hint(error: BaseException) -> str:
    if isinstance(error, sqlite3.Error):
        return _HINTS.get(_primary(error), "resume the study; if it happens again, report it with this message")
    return "check that the database server can be reached and that you may use this database"


def _check_path(path: Path, read_only: bool) -> None:
    if path.is_dir():
        raise StoreError(f"{path} is a directory, not a store", "name the file inside it")
    if path.exists() and not path.with_name(path.name + "-journal").exists():
        # SQLite takes some short files for empty databases, and would overwrite them.
        with suppress(OSError), path.open("rb") as file:
            header = file.read(16)
            if header not in (b"", b"SQLite format 3\0"):
                raise StoreError(f"{path} is not a store (file is not a database)", _HINTS[sqlite3.SQLITE_NOTADB])
    if read_only:
        if not path.exists():
            raise StoreError(f"there is no store at {path}", "check the path, or start a study with `qsearch launch`")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the directory of {path} cannot be made: {error.strerror}", "choose a directory that you may write to"
        ) from error


def _connect(database: str, *, uri: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(database, uri=uri, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA foreign_keys=ON")
    return connection


def _connect_writer(path: Path | None) -> sqlite3.Connection:
    connection = _connect(":memory:", uri=False) if path is None else _connect(_uri(path, "mode=rwc"), uri=True)
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def _connect_reader(path: Path) -> sqlite3.Connection:
    connection = _connect(_uri(path, "mode=ro"), uri=True)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        log = path.with_name(path.name + "-wal")
        unreachable = _primary(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if not unreachable or not path.is_file() or (log.exists() and log.stat().st_size > 0):
            raise
        # A store at rest in a directory where even the shared memory file of a reader cannot be made.
        return _connect(_uri(path, "mode=ro&immutable=1"), uri=True)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _uri(path: Path, query: str) -> str:
    return f"{path.absolute().as_uri()}?{query}"
