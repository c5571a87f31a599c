"""Backup and restore: from SQLite and a folder, from PostgreSQL and a bucket, into either, in a folder or a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import orjson
import pytest
from sqlalchemy import select

from service.audit import verify
from service.auth import authenticate
from service.datasets import repository as datasets
from service.db import Database
from service.errors import Conflict, Corrupt, NotFound
from service.jobs import overrides
from service.jobs.create import add_job
from service.settings import Settings
from service.storage import LocalStorage, Storage, open_storage
from service.tables import DatasetVersion, JobEvent, Override
from service.upkeep.backup import back_up, restore
from tests.service.conftest import MakeDataset
from tests.service.installations import bucket, empty, rows
from tests.service.installations import lived_in as lived_in


@pytest.fixture
def settings(settings: Settings, database_url: str, request: pytest.FixtureRequest) -> Settings:
    """PostgreSQL comes with a bucket."""
    return settings.model_copy(update=bucket(request)) if database_url else settings


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return open_storage(settings)


@pytest.fixture
def place(settings: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Storage:
    """Where the backup goes: a folder, or a bucket of its own."""
    if settings.storage_url:
        return open_storage(settings.model_copy(update=bucket(request)))
    return LocalStorage(tmp_path / "backup")


@pytest.fixture(params=["sqlite", "postgresql"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    with empty(request.param, tmp_path / "elsewhere", request) as settings:
        yield settings


def test_a_backup_restores_every_row_and_value_into_either_kind(
    database: Database, storage: Storage, lived_in: str, elsewhere: Settings, place: Storage
) -> None:
    done = back_up(database, storage, place, print)
    assert (done.values, done.kept) == (3, 0)  # a shard, the index of shards, the manifest
    restored = restore(elsewhere, open_storage(elsewhere), place, print)
    assert (restored.rows, restored.values, restored.size) == (done.rows, done.values, done.size)
    other = Database.open(elsewhere.database_url)
    assert rows(other) == rows(database)
    with other.session() as session:
        assert verify(session).fault is None
        row = session.scalars(select(DatasetVersion)).one()
        assert overrides.unpacked(session.scalars(select(Override)).one().indices).tolist() == [1, 3]
    assert authenticate(other, lived_in).scopes == ["admin"]
    theirs, ours = (datasets.reader(each, row) for each in (open_storage(elsewhere), storage))
    assert (theirs.shard(0) == ours.shard(0)).all() and theirs.manifest() == ours.manifest()
    with other.transaction() as session:  # it counts on from where the other was
        job = add_job(session, "ingest", inputs={}, params={}, max_attempts=1)
        assert session.scalars(select(JobEvent).where(JobEvent.job_id == job.id)).one().id > 1
    other.close()


def test_a_second_backup_copies_what_is_new(
    database: Database, storage: Storage, lived_in: str, make_dataset: MakeDataset, place: Storage
) -> None:
    back_up(database, storage, place, print)
    make_dataset("more", {"a": 2, "b": 2})
    done = back_up(database, storage, place, print)
    assert (done.values, done.kept) == (6, 3)


def test_a_backup_that_was_not_finished_or_was_changed_restores_nothing(
    database: Database, storage: Storage, lived_in: str, place: Storage, tmp_path: Path
) -> None:
    other = Settings(home=tmp_path / "other").resolved()
    with pytest.raises(NotFound, match=r"backup\.json"):
        restore(other, open_storage(other), place, print)
    back_up(database, storage, place, print)
    place.write("database/jobs.jsonl", place.read("database/jobs.jsonl").replace(b"succeeded", b"cancelled"))
    with pytest.raises(Corrupt, match="jobs"):
        restore(other, open_storage(other), place, print)
    opened = Database.open(other.database_url)
    assert rows(opened)["jobs"] == [] and list(open_storage(other).list()) == []
    opened.close()


def test_nothing_is_restored_over_what_is_there(
    database: Database, storage: Storage, settings: Settings, lived_in: str, place: Storage
) -> None:
    back_up(database, storage, place, print)
    with pytest.raises(Conflict, match="empty"):
        restore(settings, storage, place, print)


class Busy(LocalStorage):
    """A place for a backup during which a job is submitted before each table."""

    def __init__(self, root: Path, database: Database) -> None:
        super().__init__(root)
        self._database = database

    def writing(self, key: str) -> AbstractContextManager[BinaryIO]:
        with self._database.transaction() as session:
            add_job(session, "ingest", inputs={}, params={}, max_attempts=1)
        return super().writing(key)


@pytest.mark.usefixtures("lived_in")
def test_all_rows_are_of_one_moment_whatever_is_written_meanwhile(
    database: Database, storage: Storage, tmp_path: Path
) -> None:
    before = {name: len(found) for name, found in rows(database).items()}
    back_up(database, storage, busy := Busy(tmp_path / "busy", database), print)
    told = orjson.loads(busy.read("backup.json"))
    assert {name: table["rows"] for name, table in told["tables"].items()} == before
    assert len(rows(database)["jobs"]) > before["jobs"]
