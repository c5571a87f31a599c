"""What becomes of an upload's bytes where the database answers, refuses, or is lost before it can answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.audit import STACK
from service.datasets.receive import Received
from service.db import Database
from service.settings import Settings
from service.storage import LocalStorage
from service.tables import Job
from service.uploads import blobs
from service.uploads.accept import Arrived, accept

BYTES = b"an archive"


class AnswerLost(Database):
    """Commits, and is gone before it can say so."""

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with super().transaction() as session:
            yield session
        raise OperationalError("COMMIT", {}, ConnectionError("the server closed the connection"))


def arrived(storage: LocalStorage) -> Arrived:
    key = blobs.new_key()
    storage.write(key, BYTES)
    return Arrived("signs", {}, key, Received(hashlib.sha256(BYTES).hexdigest(), len(BYTES)), STACK)


def test_bytes_whose_job_was_made_outlast_a_lost_answer(
    database: Database, storage: LocalStorage, settings: Settings
) -> None:
    with pytest.raises(OperationalError):
        accept(AnswerLost(database.engine), storage, settings, arrived(storage))
    with database.session() as session:
        (job,) = session.scalars(select(Job))
    assert storage.read(job.inputs["upload"]) == BYTES


def test_bytes_that_are_refused_are_gone(database: Database, storage: LocalStorage, settings: Settings) -> None:
    upload = arrived(storage)
    wrong = Arrived(upload.name, {"size": {1, 2}}, upload.key, upload.received, upload.actor)  # no JSON
    with pytest.raises(Exception, match="JSON"):
        accept(database, storage, settings, wrong)
    assert not storage.exists(upload.key)
