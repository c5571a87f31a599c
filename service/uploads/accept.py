"""An upload that is whole becomes an ingest job; how it came makes no difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from service import quotas
from service.audit import Action, Actor, append
from service.datasets.receive import Received
from service.db import Database, is_away
from service.jobs.create import add_job
from service.quotas import Quota
from service.settings import Settings
from service.storage import Storage
from service.tables import Job, Upload
from service.uploads import blobs

log = structlog.get_logger()


@dataclass(frozen=True)
class Arrived:
    """Bytes on storage, and what they are to become."""

    name: str  # of the data set
    params: dict[str, Any]  # of the ingest job, complete
    key: str
    received: Received
    actor: Actor


def accept(
    database: Database, storage: Storage, settings: Settings, arrived: Arrived, *, upload_id: str | None = None
) -> Job:
    """Queue the ingest job. Raises QuotaExceeded, and then nothing of the upload is left, nor where it was refused."""
    try:
        try:
            job = _accepted(database, storage, settings, arrived, upload_id)
        except IntegrityError:  # the same bytes at the same moment: the other one made the blob
            job = _accepted(database, storage, settings, arrived, upload_id)
    except BaseException as error:
        if not (isinstance(error, SQLAlchemyError) and is_away(error)):  # a lost commit may have been made: `winnow gc`
            storage.delete_prefix(arrived.key)
        raise
    if job.inputs["upload"] != arrived.key:
        storage.delete_prefix(arrived.key)
    log.info("job accepted", type=job.type, job_id=job.id, attempt=job.attempt, request_id=job.request_id)
    return job


def _accepted(database: Database, storage: Storage, settings: Settings, arrived: Arrived, upload_id: str | None) -> Job:
    with database.transaction() as session:
        if upload_id is not None:
            _no_longer_under_way(session, upload_id)
        quotas.check(session, settings, Quota.QUEUED_JOBS)
        blob = blobs.keep(session, settings, storage, arrived.received, arrived.key)
        sha256, size = arrived.received.sha256, arrived.received.size
        job = add_job(
            session,
            "ingest",
            inputs={"name": arrived.name, "upload": blob.key, "sha256": sha256, "bytes": size},
            params=arrived.params,
            max_attempts=settings.max_attempts,
            request_id=arrived.actor.request_id,
        )
        blobs.use(session, blob, job)
        if upload_id is not None:
            upload = session.get_one(Upload, upload_id)
            upload.job_id, upload.writer, upload.writer_until = job.id, None, None
        told = {"job": job.id, "sha256": sha256, "bytes": size}
        append(session, arrived.actor, Action.UPLOAD_ACCEPTED, f"dataset {arrived.name}", **told)
        return job


def _no_longer_under_way(session: Session, upload_id: str) -> None:
    """So that its bytes are not counted twice."""
    session.get_one(Upload, upload_id, with_for_update=True).state = "finished"
    session.flush()
