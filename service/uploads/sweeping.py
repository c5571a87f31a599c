"""Ends uploads that were left alone, and finishes those whose gateway died over it. Every gateway may run it."""

from __future__ import annotations

import threading
from datetime import timedelta

import structlog
from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from service.db import Database, now
from service.errors import WinnowError
from service.jobs.queue import Doorbell
from service.settings import Settings
from service.storage import Storage
from service.tables import Upload, UploadPart
from service.tenancy import TenantStorage
from service.uploads import resumable
from service.uploads.finishing import end, finish

EVERY_SECONDS = 60.0
REMEMBERED = timedelta(days=7)

log = structlog.get_logger()


class Sweeper:
    """A thread from `start` to `close`."""

    def __init__(self, database: Database, storage: Storage, settings: Settings, doorbell: Doorbell) -> None:
        self._parts = (database, storage, settings, doorbell)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upload-sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            try:
                sweep(*self._parts)
            except (SQLAlchemyError, WinnowError, OSError) as error:
                log.warning("uploads not swept", error=str(error))


def sweep(database: Database, storage: Storage, settings: Settings, doorbell: Doorbell) -> None:
    """One round, over all tenants."""
    present = now()
    idle = (Upload.writer.is_(None)) | (Upload.writer_until <= present)
    open_ones = Upload.state == "open", idle
    with database.session() as session:
        stale = session.execute(select(Upload.tenant, Upload.id).where(*open_ones, Upload.expires_at <= present)).all()
        whole = session.execute(select(Upload.tenant, Upload.id).where(*open_ones, Upload.received == Upload.length))
        left = [each for each in whole.all() if each not in stale]
    for tenant, upload_id in stale:
        end(database.of(tenant), TenantStorage(storage, tenant), upload_id)
    for tenant, upload_id in left:
        own = database.of(tenant)
        try:
            hold = resumable.take(own, upload_id, None)
            doorbell.ring([finish(own, TenantStorage(storage, tenant), settings, hold).id])
        except WinnowError as error:  # held by another, or over a quota still: the next round looks again
            log.info("upload not finished", upload=upload_id, code=error.code)
    _forget(database)


def _forget(database: Database) -> None:
    with database.transaction() as session:
        old = select(Upload.id).where(Upload.state != "open", Upload.expires_at < now() - REMEMBERED)
        session.execute(delete(UploadPart).where(UploadPart.upload_id.in_(old)))
        session.execute(delete(Upload).where(Upload.id.in_(old)))
