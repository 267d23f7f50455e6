"""Schema versions: what is written now stays readable, older is migrated, newer is refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from qsearch.errors import StoreError
from qsearch.store import SCHEMA_VERSION, Evaluation, Failure, Store, schema, study
from qsearch.types import BitConfig, Score, TrialState

#: A store of each released schema, as `.dump` prints it; never edit one, add the next.
ASSETS = Path(__file__).parent / "assets"


def load_asset(version: int, path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript((ASSETS / f"schema_v{version}.sql").read_text())
    connection.close()
    return path


def definitions(path: Path) -> dict[str, str]:
    """Returns the normalised definition of every table and index of a database."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {name: " ".join(sql.split()) for name, sql in rows}


def set_version(path: Path, version: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (version,))
    connection.commit()
    connection.close()


def test_tables_are_those_of_the_recorded_version(tmp_path: Path) -> None:
    """Whoever changes a table must raise SCHEMA_VERSION, add a migration, and add an asset."""
    Store.open(tmp_path / "new.db").close()
    load_asset(SCHEMA_VERSION, tmp_path / "old.db")
    assert definitions(tmp_path / "new.db") == definitions(tmp_path / "old.db")


def test_version_1_is_read(tmp_path: Path) -> None:
    with Store.open(load_asset(1, tmp_path / "a.db")) as store:
        store.check()
        first = store.study("first")
        assert first.record.spec == {"budget": 4, "objectives": ["error", "size"]}
        assert (first.record.digest, first.record.model_digest) == ("d" * 64, "m" * 64)
        assert first.record.created_at == 1700000000.25
        trials = first.trials()
        assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.FAILED, TrialState.INFEASIBLE]
        assert trials[1].config == BitConfig((2, 4), (8, 8))
        assert trials[0].costs == {"latency@x": 0.001, "size": 0.1 + 0.2}
        assert [trial.attempts for trial in trials] == [1, 2, 0]
        assert first.evaluations() == [
            Evaluation(
                "a" * 64,
                BitConfig((2, 3), (8, 8)),
                "ptq",
                "validation",
                Score(91.25, 0.1 + 0.2, 73, 80),
                0.5,
                "w",
                1700000001.5,
                {"x": [1, None]},
            ),
            Evaluation(
                "b" * 64,
                BitConfig((2, 3), (8, 8)),
                "qat",
                "test",
                Score(10.0, float("inf"), 8, 80),
                0.5,
                "w",
                1700000002.5,
            ),
        ]
        assert first.failures() == [Failure(1, "c" * 64, 1, "exception", "boom 'é'", "a\nb", 1700000003.5)]
        assert [(event.seq, event.kind, event.payload) for event in first.events()] == [
            (0, "asked", {"trials": [0, 1]}),
            (1, "told", {}),
        ]
        assert [study.name for study in store.studies()] == ["first", "second"]
        assert store.study("second").evaluations() == first.evaluations()[:1]
        assert first.add_event("more") == 2


def test_newer_schema_is_refused_and_kept(tmp_path: Path) -> None:
    path = load_asset(1, tmp_path / "a.db")
    set_version(path, str(SCHEMA_VERSION + 1))
    before = path.read_bytes()
    for read_only in (True, False):
        with pytest.raises(StoreError, match=f"schema version {SCHEMA_VERSION + 1}") as caught:
            Store.open(path, read_only=read_only)
        assert "update qsearch" in caught.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", ["", "x", "-1"])
def test_unreadable_version(tmp_path: Path, version: str) -> None:
    set_version(load_asset(1, tmp_path / "a.db"), version)
    with pytest.raises(StoreError, match="something else"):
        Store.open(tmp_path / "a.db")


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that qsearch is two schema versions ahead; version 2 adds a column, version 3 fills it."""
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 3)

    def to_2(connection: sa.Connection) -> None:
        connection.execute(sa.text("ALTER TABLE studies ADD COLUMN note VARCHAR(10)"))

    def to_3(connection: sa.Connection) -> None:
        connection.execute(sa.text("UPDATE studies SET note = name"))

    monkeypatch.setitem(schema.MIGRATIONS, 1, to_2)
    monkeypatch.setitem(schema.MIGRATIONS, 2, to_3)


@pytest.mark.usefixtures("next_version")
def test_older_schema_is_migrated_step_by_step(tmp_path: Path) -> None:
    path = load_asset(1, tmp_path / "a.db")
    with Store.open(path) as store:
        assert len(store.study("first").trials()) == 3
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT note FROM studies ORDER BY id").fetchall() == [("first",), ("second",)]
    assert connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchall() == [("3",)]
    connection.close()
    Store.open(path).close()  # and not a second time


@pytest.mark.usefixtures("next_version")
def test_older_schema_is_not_migrated_by_a_reader(tmp_path: Path) -> None:
    path = load_asset(1, tmp_path / "a.db")
    before = definitions(path)
    with pytest.raises(StoreError, match="older schema version 1"):
        Store.open(path, read_only=True)
    assert definitions(path) == before


@pytest.mark.usefixtures("next_version")
def test_failed_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = load_asset(1, tmp_path / "a.db")
    before = definitions(path)

    def broken(connection: sa.Connection) -> None:
        connection.execute(sa.text("UPDATE nowhere SET note = name"))

    monkeypatch.setitem(schema.MIGRATIONS, 2, broken)
    with pytest.raises(StoreError, match="nowhere"):
        Store.open(path)
    assert definitions(path) == before
    monkeypatch.undo()
    with Store.open(path) as store:
        assert len(store.study("first").trials()) == 3


@pytest.mark.usefixtures("next_version")
def test_missing_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = load_asset(1, tmp_path / "a.db")
    before = definitions(path)
    monkeypatch.delitem(schema.MIGRATIONS, 2)
    with pytest.raises(StoreError, match="nothing leads from 2 to 3"):
        Store.open(path)
    assert definitions(path) == before


def test_tables_and_inserts_are_valid_for_postgresql() -> None:
    """Compiled only: the SQL must not rule PostgreSQL out."""
    dialect = postgresql.dialect()
    for table in schema.metadata.sorted_tables:
        text = str(CreateTable(table).compile(dialect=dialect))
        assert f"CREATE TABLE {table.name}" in text
        for index in table.indexes:
            assert str(CreateIndex(index).compile(dialect=dialect))
    assert "DOUBLE PRECISION" in str(CreateTable(schema.evaluations).compile(dialect=dialect))
    for statement in (study.insert_ignoring(schema.evaluations, "postgresql"), study._append_use("postgresql")):
        assert str(statement.compile(dialect=dialect)).endswith("ON CONFLICT DO NOTHING")
