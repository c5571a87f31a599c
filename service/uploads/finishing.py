"""A resumable upload that is whole becomes one value on storage, and an ingest job."""

from __future__ import annotations

import hashlib
import time

from service.audit import Actor
from service.datasets.readers import SNIFF_BYTES, format_of, refuse_unknown
from service.datasets.receive import Received
from service.db import Database
from service.errors import UnsupportedMedia
from service.jobs import repository as jobs
from service.settings import Settings
from service.storage import Storage
from service.tables import Job, Upload, UploadPart
from service.uploads import blobs, resumable
from service.uploads.accept import Arrived, accept
from service.uploads.resumable import Hold
from service.uploads.writing import RENEW_SECONDS, prefix_of

BLOCK_BYTES = 4 * 1024 * 1024


def finish(database: Database, storage: Storage, settings: Settings, hold: Hold) -> Job:
    """The ingest job of an upload whose every byte is there. Asked again, it gives the same job.

    Raises UnsupportedMedia for what is no data set, and then the upload is over; QuotaExceeded, and then it waits.
    """
    with database.session() as session:
        upload = resumable.find(session, hold.upload_id)
        if upload.job_id is not None:
            return jobs.find(session, upload.job_id)
        parts = resumable.parts_of(session, hold.upload_id)
    key = blobs.new_key()
    actor = Actor(upload.actor_id, upload.actor, upload.request_id)
    try:
        arrived = Arrived(upload.name, upload.params, key, _assembled(database, storage, hold, parts, key), actor)
        job = accept(database, storage, settings, arrived, upload_id=upload.id)
    except UnsupportedMedia:
        end(database, storage, upload.id)
        raise
    storage.delete_prefix(prefix_of(upload.id))
    return job


def _assembled(database: Database, storage: Storage, hold: Hold, parts: list[UploadPart], key: str) -> Received:
    """The parts one after the other, as one value; a writer shows that it lives meanwhile."""
    digest, size, renewed = hashlib.sha256(), 0, time.monotonic()
    with storage.writing(key) as target:
        for part in parts:
            with storage.open(part.key) as source:
                while block := source.read(BLOCK_BYTES):
                    if size == 0 and format_of(block[:SNIFF_BYTES]) is None:
                        raise refuse_unknown(block[:4])
                    digest.update(block)
                    target.write(block)
                    size += len(block)
                    if time.monotonic() - renewed > RENEW_SECONDS:
                        resumable.renew(database, hold)
                        renewed = time.monotonic()
    return Received(digest.hexdigest(), size)


def end(database: Database, storage: Storage, upload_id: str) -> None:
    """Refused, or left alone: its bytes go, and the row says for a while that it was there."""
    with database.transaction() as session:
        upload = session.get(Upload, upload_id, with_for_update=True)
        if upload is None or upload.state == "finished":
            return
        upload.state, upload.writer, upload.writer_until = "expired", None, None
    storage.delete_prefix(prefix_of(upload_id))
