"""A database that goes away in the middle of a job and comes back: the job waits for it, and publishes once."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from models.specs import IngestSpec
from models.training import Stopped
from service.db import Database
from service.errors import NotFound
from service.jobs import repository
from service.jobs.create import add_job
from service.jobs.queue import Doorbell, celery_app
from service.quotas import Quota
from service.settings import Settings
from service.storage import LocalStorage
from service.tables import DatasetVersion
from worker import ingest, lineage
from worker.context import Context
from worker.datasets import open_version
from worker.execute import execute
from worker.progress import Progress
from worker.runtime import Runtime

AWAY_S = 0.4


@contextmanager
def away(folder: Path) -> Iterator[None]:
    """The database's folder is gone, and comes back a little later."""
    elsewhere = folder.with_name("elsewhere")

    def come_back() -> None:
        time.sleep(AWAY_S)
        elsewhere.rename(folder)

    folder.rename(elsewhere)
    thread = threading.Thread(target=come_back)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def npz() -> bytes:
    buffer = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez(buffer, images=images, labels=np.arange(20) % 2)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "database").mkdir()
    return tmp_path / "database"


@pytest.fixture
def runtime(folder: Path, tmp_path: Path) -> Runtime:
    """Its every session opens the database anew."""
    database = Database.open(f"sqlite:///{folder / 'winnow.db'}", pooled=False)
    database.create_all()
    given: dict[str, Any] = {"redis_url": "redis://127.0.0.1:1/0", "decoding_processes": 0, "heartbeat_seconds": 0.1}
    settings = Settings(home=tmp_path, **given).resolved()
    storage = LocalStorage(tmp_path / "storage")
    storage.write("uploads/one", npz())
    return Runtime(settings, database, storage, Doorbell(celery_app(settings), database), "here:1")


@pytest.fixture
def job_id(runtime: Runtime) -> str:
    inputs = {"name": "signs", "upload": "uploads/one", "sha256": "0" * 64, "bytes": len(npz())}
    with runtime.database.transaction() as session:
        spec = IngestSpec().model_dump(mode="json")
        return add_job(session, "ingest", inputs=inputs, params=spec, max_attempts=3).id


@pytest.fixture
def context(runtime: Runtime, job_id: str) -> Context:
    claim = repository.claim(runtime.database, job_id, worker="w", lease_seconds=60)
    assert claim is not None
    return Context(runtime, claim, Progress())


def version_of(runtime: Runtime, job_id: str) -> DatasetVersion:
    with runtime.database.session() as session:
        return session.scalars(select(DatasetVersion).where(DatasetVersion.job_id == job_id)).one()


def test_what_a_job_asks_the_database_waits_for_it(folder: Path, context: Context) -> None:
    outcome = ingest.run(context)
    with context.database.transaction() as session:
        reference = outcome.publish(session)["dataset"]
    with away(folder):
        row, reader = open_version(context, reference)
    assert reader.num_samples == 20
    with away(folder):
        ingest._check_quota(context, Quota.IMAGES, 1)
    with away(folder):
        assert lineage.made_by(context, row).id == context.claim.job_id
    with pytest.raises(NotFound):  # what the database says is not waited for
        open_version(context, "other@1")


def test_nobody_waits_for_a_job_that_is_to_end(folder: Path, context: Context) -> None:
    context.progress.stopping.set()
    with away(folder), pytest.raises(Stopped):
        ingest._check_quota(context, Quota.IMAGES, 1)


def test_a_job_that_ends_without_the_database_waits_and_publishes_once(
    folder: Path, runtime: Runtime, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, under_way = ingest._write_report, []

    def then_away(*arguments: Any) -> None:
        report(*arguments)
        under_way.append(away(folder))
        under_way[0].__enter__()

    monkeypatch.setattr(ingest, "_write_report", then_away)
    execute(runtime, job_id, threading.Event())
    under_way[0].__exit__(None, None, None)
    with runtime.database.session() as session:
        job = repository.find(session, job_id)
    assert (job.state, job.attempt, job.error) == ("succeeded", 1, None)
    assert runtime.storage.exists(f"{version_of(runtime, job_id).prefix}/shards.json")


class HardOfHearing(Database):
    """A database whose answer to the commit that publishes is lost on the way."""

    lost = 0

    def of(self, tenant: str) -> Database:
        assert tenant == "default"
        return self

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with super().transaction() as session:
            yield session
        with self.session() as session:
            published = session.scalars(select(DatasetVersion)).first() is not None
        if published and not self.lost:
            self.lost += 1
            raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))


def test_what_was_published_stays_where_the_answer_to_the_commit_was_lost(runtime: Runtime, job_id: str) -> None:
    deaf = HardOfHearing(runtime.database.engine)
    execute(replace(runtime, database=deaf), job_id, threading.Event())
    with runtime.database.session() as session:
        job = repository.find(session, job_id)
    assert (deaf.lost, job.state, job.attempt) == (1, "succeeded", 1)
    assert runtime.storage.exists(f"{version_of(runtime, job_id).prefix}/shards.json")
