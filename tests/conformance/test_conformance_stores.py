"""The built-in stores keep the contract that is shipped for everybody's."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsearch.store import Store
from qsearch.testing.stores import StoreSuite


class TestSqliteFile(StoreSuite):
    def make_store(self, tmp_path: Path) -> Store:
        return Store.open(tmp_path / "study.db")

    def make_reader(self, tmp_path: Path) -> Store:
        return Store.open(tmp_path / "study.db", read_only=True)


class TestSqliteUrl(StoreSuite):
    def make_store(self, tmp_path: Path) -> Store:
        return Store.open(f"sqlite:///{tmp_path}/with space #1/50%.db")

    def make_reader(self, tmp_path: Path) -> Store:
        return Store.open(f"sqlite:///{tmp_path}/with space #1/50%.db", read_only=True)


class TestSqliteMemory(StoreSuite):
    durable = False

    def make_store(self, tmp_path: Path) -> Store:
        return Store.open(":memory:")


class TestSqliteRollbackJournal(StoreSuite):
    """As on a network file system, where there is no write-ahead log."""

    views = False

    @pytest.fixture(autouse=True)
    def on_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("qsearch.store.engine.filesystem_of", lambda path: "nfs4")

    def make_store(self, tmp_path: Path) -> Store:
        return Store.open(tmp_path / "study.db")

    def make_reader(self, tmp_path: Path) -> Store:
        return Store.open(tmp_path / "study.db", read_only=True)

    def test_no_write_ahead_log(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path) as store:
            self.fill(self.new_study(store))
            assert [path.name for path in tmp_path.iterdir()] == ["study.db"]
