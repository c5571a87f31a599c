"""Resumable uploads in the database: made, held by one writer at a time, grown part by part, ended."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import CursorResult, delete, select, update
from sqlalchemy.orm import Session

from service import quotas
from service.audit import Actor
from service.db import Database, now
from service.errors import Conflict, Gone, Locked, NotFound
from service.quotas import Quota
from service.settings import Settings
from service.tables import Upload, UploadPart
from service.tenancy import tenant_of

SILENCE = timedelta(seconds=10)
"""A writer that shows no sign of life for so long may be followed by another."""


@dataclass(frozen=True)
class Hold:
    """The right to add to an upload at `offset`, until somebody else has taken it."""

    upload_id: str
    writer: str
    offset: int
    length: int


def create(
    session: Session, settings: Settings, *, name: str, params: dict[str, Any], told: str, length: int, actor: Actor
) -> Upload:
    """Raises QuotaExceeded: its length is counted from now on."""
    quotas.check(session, settings, Quota.BYTES, length)
    present = now()
    upload = Upload(
        tenant=tenant_of(session),
        id=secrets.token_hex(16),
        state="open",
        name=name,
        params=params,
        told=told,
        length=length,
        received=0,
        actor_id=actor.key_id,
        actor=actor.name,
        request_id=actor.request_id,
        created_at=present,
        expires_at=present + timedelta(hours=settings.upload_hours),
    )
    session.add(upload)
    session.flush()
    return upload


def find(session: Session, upload_id: str) -> Upload:
    """Raises NotFound, or Gone where it has expired."""
    upload = session.get(Upload, upload_id)
    if upload is None:
        raise NotFound(f"There is no upload {upload_id}. POST /v1/uploads makes one.", code="upload_not_found")
    if upload.state == "expired" or (upload.state == "open" and upload.expires_at <= now()):
        raise Gone(f"The upload {upload_id} was left alone for too long; begin anew.", code="upload_expired")
    return upload


def take(database: Database, upload_id: str, offset: int | None) -> Hold:
    """Become the upload's writer. offset: where the caller would go on; None for wherever that is.

    Raises Locked while another writes, Conflict for another offset.
    """
    writer = secrets.token_hex(8)
    with database.transaction() as session:
        upload = find(session, upload_id)
        if offset is not None and offset != upload.received:
            raise Conflict(
                f"The upload goes on at byte {upload.received}, not at {offset}.",
                code="wrong_offset",
                offset=upload.received,
            )
        present = now()
        free = (Upload.writer.is_(None)) | (Upload.writer_until <= present)
        held = update(Upload).where(Upload.id == upload_id, Upload.received == upload.received, free)
        if not _changed(session, held.values(writer=writer, writer_until=present + SILENCE)):
            raise Locked(
                f"Another request is writing to the upload {upload_id}. Repeat in a moment.",
                code="upload_locked",
                retry_after_seconds=1,
            )
        return Hold(upload_id, writer, upload.received, upload.length)


def renew(database: Database, hold: Hold) -> None:
    """Raises Locked where another has taken over."""
    with database.transaction() as session:
        _advance(session, hold, writer_until=now() + SILENCE)


def add_parts(database: Database, settings: Settings, hold: Hold, parts: list[UploadPart]) -> Hold:
    """Count bytes that are on storage. Raises Locked where another has taken over: then they do not count."""
    end = hold.offset + sum(part.size for part in parts)
    expires_at = now() + timedelta(hours=settings.upload_hours)
    with database.transaction() as session:
        _advance(session, hold, received=end, writer_until=now() + SILENCE, expires_at=expires_at)
        session.add_all(parts)
    return Hold(hold.upload_id, hold.writer, end, hold.length)


def let_go(database: Database, hold: Hold) -> None:
    with database.transaction() as session:
        mine = update(Upload).where(Upload.id == hold.upload_id, Upload.writer == hold.writer)
        session.execute(mine.values(writer=None, writer_until=None))


def parts_of(session: Session, upload_id: str) -> list[UploadPart]:
    return list(session.scalars(select(UploadPart).where(UploadPart.upload_id == upload_id).order_by(UploadPart.begin)))


def terminate(session: Session, upload_id: str) -> None:
    """Raises Locked while somebody writes, Conflict where it is whole already. Its bytes are deleted after this."""
    upload = find(session, upload_id)
    if upload.state != "open":
        raise Conflict(f"The upload {upload_id} is whole: cancel its job {upload.job_id}.", code="upload_finished")
    session.execute(delete(UploadPart).where(UploadPart.upload_id == upload_id))
    session.delete(upload)


def _advance(session: Session, hold: Hold, **values: Any) -> None:
    mine = update(Upload).where(
        Upload.id == hold.upload_id, Upload.writer == hold.writer, Upload.received == hold.offset
    )
    if not _changed(session, mine.values(**values)):
        raise Locked(
            f"Another request goes on with the upload {hold.upload_id}.", code="upload_locked", retry_after_seconds=1
        )


def _changed(session: Session, statement: Any) -> bool:
    result = session.execute(statement.execution_options(synchronize_session=False))
    return isinstance(result, CursorResult) and result.rowcount == 1
