"""The tables of a store, and what to do with one of another version.

Only column types that every SQL database has. JSON values are kept as canonical text, so that equal values are equal
rows; a loss that is not finite is NULL.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from qsearch.errors import StoreError

#: Version of the tables below. Raise it with every change to them, and register the step in :data:`MIGRATIONS`.
SCHEMA_VERSION = 1

#: ``MIGRATIONS[v]`` turns a store of version v into one of version v + 1, inside the transaction it is given.
MIGRATIONS: dict[int, Callable[[sa.Connection], None]] = {}

metadata = sa.MetaData()

_KEY = sa.String(64)  # a sha256 in hex

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("digest", _KEY, nullable=False),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("model_digest", _KEY),
)

trials = sa.Table(
    "trials",
    metadata,
    sa.Column("study_id", sa.ForeignKey("studies.id"), primary_key=True),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("config_digest", _KEY, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("costs", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("asked_at", sa.Double, nullable=False),
    sa.UniqueConstraint("study_id", "config_digest", name="one_trial_per_config"),
    sa.Index("trials_by_state", "study_id", "state"),
)

# Shared by all studies of the store; study_id is the one that paid for it.
evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("key", _KEY, primary_key=True),
    sa.Column("study_id", sa.ForeignKey("studies.id"), nullable=False),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("fidelity", sa.String(64), nullable=False),
    sa.Column("split", sa.String(64), nullable=False),
    sa.Column("accuracy", sa.Double, nullable=False),
    sa.Column("loss", sa.Double),
    sa.Column("correct", sa.Integer, nullable=False),
    sa.Column("samples", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("finished_at", sa.Double, nullable=False),
    sa.Column("provenance", sa.Text, nullable=False),
)

# Which evaluations a study used, in the order it got them.
study_evaluations = sa.Table(
    "study_evaluations",
    metadata,
    sa.Column("study_id", sa.ForeignKey("studies.id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.ForeignKey("evaluations.key"), nullable=False),
    sa.UniqueConstraint("study_id", "key", name="one_use_per_study"),
)

failures = sa.Table(
    "failures",
    metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("trial_id", sa.Integer, nullable=False),
    sa.Column("key", _KEY, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("traceback", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.ForeignKeyConstraint(["study_id", "trial_id"], ["trials.study_id", "trials.id"]),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("study_id", sa.ForeignKey("studies.id"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)


def stored_version(connection: sa.Connection, label: str) -> int | None:
    """Returns the schema version of a database, None if it has no table at all.

    Args:
        connection: Inside a transaction.
        label: What to call the store in an error.

    Raises:
        StoreError: The database holds something else.
    """
    tables = set(sa.inspect(connection).get_table_names())
    if not tables:
        return None
    value = None
    if {"meta", "studies", "trials"} <= tables:
        value = connection.execute(sa.select(meta.c.value).where(meta.c.name == "schema_version")).scalar()
    if value is None or not value.isdecimal():
        raise StoreError(
            f"{label} is a database of something else (its tables: {', '.join(sorted(tables)[:5])})",
            "give qsearch a file or a database of its own",
        )
    return int(value)


def ensure_schema(connection: sa.Connection, label: str, *, read_only: bool) -> bool:
    """Creates the tables in an empty database, migrates an older one, refuses a newer one.

    Args:
        connection: Inside a transaction, which the caller commits: all of it happens, or nothing.
        label: What to call the store in an error.
        read_only: Nothing may be written.

    Returns:
        True if anything was written.

    Raises:
        StoreError: Empty or older and ``read_only``; newer than this qsearch; older with no way up; not a store.
    """
    found = stored_version(connection, label)
    if found is None:
        if read_only:
            raise StoreError(f"{label} is empty: no study was ever started in it", "start one with `qsearch launch`")
        metadata.create_all(connection)
        connection.execute(meta.insert().values(name="schema_version", value=str(SCHEMA_VERSION)))
        return True
    if found > SCHEMA_VERSION:
        raise StoreError(
            f"{label} has schema version {found}, this qsearch knows versions up to {SCHEMA_VERSION}",
            "update qsearch to the version that wrote it",
        )
    if found == SCHEMA_VERSION:
        return False
    if read_only:
        raise StoreError(
            f"{label} has the older schema version {found} and is open for reading only",
            "copy it as a backup, then `qsearch resume` its study once: that brings it up to date",
        )
    for version in range(found, SCHEMA_VERSION):
        if version not in MIGRATIONS:
            raise StoreError(
                f"{label} has schema version {found}, and nothing leads from {version} to {version + 1}",
                "finish the study with the qsearch version that started it",
            )
        MIGRATIONS[version](connection)
    connection.execute(meta.update().where(meta.c.name == "schema_version").values(value=str(SCHEMA_VERSION)))
    return True
