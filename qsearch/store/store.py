"""The durable log of one or more studies, in one database.

Contract:

* A write that returned outside a transaction is on disk. Inside :meth:`Store.transaction` it is on disk when the
  outermost block ends, together with everything else written in the block, or not at all.
* Reads are by value: records are detached, and changing a mapping that was passed in or handed out changes nothing.
* Reads inside a transaction see its own writes; reads of other processes do not.
* A store may be used from several threads; a transaction keeps the others out until it ends.
* One process writes a study (see :mod:`qsearch.store.lock`); any number may read it meanwhile.
* An error leaves everything that was committed before intact, and the store usable.
"""

from __future__ import annotations

import importlib.metadata
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.sql.dml import UpdateBase

from qsearch.errors import QSearchError, StoreError, nearest
from qsearch.store import engine as engines
from qsearch.store import rows, schema
from qsearch.store.crashpoints import crash_point
from qsearch.store.records import StudyRecord

if TYPE_CHECKING:
    from qsearch.store.study import StudyStore


class Store:
    """A database of studies. Make one with :meth:`open`; it is a context manager that closes itself.

    Args:
        connection: The only connection; the store owns it and its engine.
        label: What to call the store in messages; holds no password.
        read_only: Refuse every write.
        clock: Gives the current unix time in seconds.
    """

    def __init__(self, connection: sa.Connection, label: str, read_only: bool, clock: Callable[[], float]) -> None:
        self._connection = connection
        self.label = label
        self.read_only = read_only
        self.clock = clock
        self._mutex = threading.RLock()
        self._inside = False
        self._doomed = False
        self._wrote = False

    @classmethod
    def open(cls, url_or_path: str | Path, *, read_only: bool = False, clock: Callable[[], float] = time.time) -> Store:
        """Opens a store; creates it if there is none and it may write.

        Args:
            url_or_path: Path of an SQLite file, ``:memory:``, or a database URL such as
                ``postgresql+psycopg://user@host/db``.
            read_only: Open for reading next to a running study.
            clock: Gives the current unix time in seconds.

        Raises:
            StoreError: It is missing (``read_only``), not a store, damaged, of a newer schema, or not accessible.
        """
        _, path, label = engines.location(url_or_path)
        with engines.translated(label):
            connection = engines.open_engine(url_or_path, read_only=read_only).connect()
            # The number of rows an INSERT touched says whether its key was new.
            connection = connection.execution_options(preserve_rowcount=True)
            store = cls(connection, label, read_only, clock)
            try:
                with store._transaction(write=not read_only):
                    store._wrote = schema.ensure_schema(store._connection, label, read_only=read_only)
                if path is not None and not read_only:
                    engines.choose_journal(store._connection, path)
                    store.check(quick=True)
            except BaseException:
                store.close()
                raise
        return store

    def close(self) -> None:
        """Closes the store; what an open transaction wrote is lost. Closing twice does no harm."""
        with self._mutex, engines.translated(self.label):
            engine = self._connection.engine
            self._connection.close()
            engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Groups everything written in a ``with`` block into one commit, of all studies of the store.

        A block inside a block joins it: there is one commit, at the end of the outermost. An exception that leaves
        any of the blocks undoes all of them, also if it is caught outside an inner one; the rest of the outer block
        is then refused. In a store open for reading the block gives one consistent view to all reads in it.

        A write method that refuses its arguments has written nothing: its error may be caught inside the block, and
        the rest of the block is kept.

        Returns:
            A context manager.

        Raises:
            StoreError: On leaving: the commit failed, or something in the block had failed before.
        """
        return self._transaction(write=not self.read_only)

    @contextmanager
    def group(self) -> Iterator[None]:
        """Groups the statements of one write method, which refuses its arguments before it writes.

        Raises:
            StoreError: The store is open for reading only.
        """
        if self.read_only:
            raise StoreError(f"{self.label} is open for reading only", "open it without read_only")
        with self._mutex:
            if not self._inside:
                with self._transaction(write=True):
                    yield
                return
            try:
                yield
            except QSearchError:
                raise  # an argument was refused; a database error has been noted where it happened
            except BaseException:
                self._doomed = True
                raise

    def create_study(
        self, name: str, spec: Mapping[str, Any], digest: str, *, model_digest: str | None = None
    ) -> StudyRecord:
        """Adds a study.

        Args:
            name: Its name, unique in the store.
            spec: The resolved specification, JSON values.
            digest: Digest of the locked part of ``spec``.
            model_digest: Digest of the folded network, if known.

        Raises:
            StoreError: The name is taken, or ``spec`` is not JSON.
        """
        row = {
            "name": name,
            "created_at": self.clock(),
            "spec": rows.dump(spec, "the study specification"),
            "digest": digest,
            "version": _package_version(),
            "model_digest": model_digest,
        }
        with self.group():
            if self.find_study(name) is not None:
                raise StoreError(
                    f"{self.label} already has a study {name!r}",
                    "resume it with `qsearch resume`, or choose another name",
                )
            self.write(sa.insert(schema.studies), row)
            found = self.find_study(name)
        if found is None:
            raise StoreError(f"{self.label} did not keep study {name!r}", "another program may be removing rows")
        return found

    def find_study(self, name: str) -> StudyRecord | None:
        """Returns the study of that name, None if there is none."""
        found = self.read(sa.select(schema.studies).where(schema.studies.c.name == name))
        return rows.to_study(found[0]) if found else None

    def studies(self) -> list[StudyRecord]:
        """Returns all studies in the order they were created."""
        return [rows.to_study(row) for row in self.read(sa.select(schema.studies).order_by(schema.studies.c.id))]

    def study(self, name: str) -> StudyStore:
        """Returns the log of one study.

        Raises:
            StoreError: There is no study of that name.
        """
        from qsearch.store.study import StudyStore  # the view needs the store, and the store its view

        record = self.find_study(name)
        if record is None:
            known = [study.name for study in self.studies()]
            raise StoreError(f"{self.label} has no study {name!r}", nearest(name, known))
        return StudyStore(self, record)

    def check(self, *, quick: bool = False) -> None:
        """Verifies the file (SQLite only; other databases see to it themselves).

        Args:
            quick: Leave out the comparison of indexes with tables, and references between tables.

        Raises:
            StoreError: It is damaged.
        """
        if self._connection.dialect.name != "sqlite":
            return
        with self._mutex, engines.translated(self.label), self._transaction(write=False):
            pragma = "quick_check" if quick else "integrity_check"
            found = [str(row[0]) for row in self._connection.exec_driver_sql(f"PRAGMA {pragma}(3)")]
            if not quick:
                dangling = self._connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
                found += [f"row {row[1]} of {row[0]} refers to a missing row of {row[2]}" for row in dangling[:3]]
        problems = [line for line in found if line != "ok"]
        if problems:
            raise StoreError(
                f"{self.label} is damaged: {'; '.join(problems)}",
                "copy the file and its -wal aside, then restore a backup or try `sqlite3 FILE .recover`",
            )

    def read(self, statement: sa.Select[Any], parameters: Mapping[str, Any] | None = None) -> Sequence[sa.Row[Any]]:
        """Runs a query for the views of this store; alone, or as part of the transaction that is open."""
        with self._mutex, self._transaction(write=False), self._dooming():
            return self._connection.execute(statement, parameters).fetchall()

    def write(
        self, statement: UpdateBase, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> int:
        """Runs a change for the views of this store; alone, or as part of the transaction that is open.

        Args:
            statement: INSERT, UPDATE or DELETE.
            parameters: Values for one row, or for several.

        Returns:
            The number of rows it touched; means nothing for several parameter sets.

        Raises:
            StoreError: The store is read-only, or the database refuses.
        """
        with self.group(), self._dooming():
            self._wrote = True
            return self._connection.execute(statement, parameters).rowcount

    @property
    def dialect(self) -> str:
        """Name of the SQL dialect: ``sqlite``, ``postgresql``."""
        return self._connection.dialect.name

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[None]:
        with self._mutex:
            if self._inside:
                try:
                    yield
                except BaseException:
                    self._doomed = self._doomed or write
                    raise
                return
            if self._connection.closed:
                raise StoreError(f"{self.label} is closed", "open it again")
            with engines.translated(self.label):
                engines.begin(self._connection, write=write)
            self._inside, self._doomed, self._wrote = True, False, False
            try:
                yield
                self._refuse_doomed()
                if self._wrote:
                    crash_point("store.before_commit")
                with engines.translated(self.label):
                    self._connection.commit()
            except BaseException:
                with suppress(exc.SQLAlchemyError):  # the first error tells more than a failing rollback
                    self._connection.rollback()
                raise
            finally:
                self._inside = False
            if self._wrote:
                crash_point("store.after_commit")

    def _refuse_doomed(self) -> None:
        if self._doomed:
            raise StoreError(
                f"{self.label}: nothing of this transaction is kept, because a part of it failed",
                "let the first error leave the `with` block",
            )

    @contextmanager
    def _dooming(self) -> Iterator[None]:
        """Translates a database error, and lets nothing more be done in its transaction.

        SQLite may have rolled back by itself, and would commit each further statement at once.
        """
        self._refuse_doomed()
        try:
            with engines.translated(self.label):
                yield
        except BaseException:
            self._doomed = True
            raise


def _package_version() -> str:
    try:
        return importlib.metadata.version("qsearch")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
