"""Installations as they are backed up: one with something of everything in it, and others that are yet empty."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from service.audit import STACK, Action, append
from service.auth import ensure_admin_key
from service.db import Database
from service.jobs import overrides
from service.jobs.verdicts import Verdict
from service.settings import Settings
from service.storage import Storage
from service.tables import Job, Table
from tests.parts import PostgresServer, S3Server
from tests.service.conftest import MakeDataset


@pytest.fixture
def lived_in(database: Database, storage: Storage, settings: Settings, make_dataset: MakeDataset) -> str:
    """An installation with something of everything in it; gives its admin key."""
    key = ensure_admin_key(settings)
    make_dataset("signs", {"a": 5, "b": 5})
    with database.transaction() as session:
        append(session, STACK, Action.KEY_CREATED, "kéy")
    with database.transaction() as session:
        job = session.scalars(select(Job)).first()
        assert job is not None
        overrides.decide(session, job, np.array([3, 1]), Verdict.KEEP, note="é", by="ann")
    storage.write("jobs/x/checkpoints/fit", b"passing")
    return key


@contextmanager
def empty(kind: str, home: Path, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """One that nobody has started: on SQLite and a folder, or on PostgreSQL and a bucket."""
    if kind == "sqlite":
        yield Settings(home=home).resolved()
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    name = postgres.make_database()
    yield Settings(home=home, database_url=postgres.url(name), **bucket(request)).resolved()
    postgres.drop_database(name)


def bucket(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of a storage in a bucket of its own."""
    s3: S3Server = request.getfixturevalue("s3")
    return {"storage_url": f"s3://{s3.make_bucket()}/w", "s3_endpoint": s3.endpoint, "s3_region": "x"}


def rows(database: Database) -> dict[str, list[tuple[object, ...]]]:
    with database.engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]
            for table in Table.metadata.sorted_tables
        }
