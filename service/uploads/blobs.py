"""The bytes of uploads: kept once for each tenant, however often they are sent, for as long as something reads them."""

from __future__ import annotations

import secrets

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service import quotas
from service.datasets.receive import Received
from service.db import now
from service.quotas import Quota
from service.settings import Settings
from service.storage import Storage
from service.tables import Blob, BlobUse, Job
from service.tenancy import tenant_of


def new_key() -> str:
    """Of bytes to come. A key is used once: whoever deletes the bytes behind one deletes nobody else's."""
    return f"uploads/{secrets.token_hex(16)}"


def keep(session: Session, settings: Settings, storage: Storage, received: Received, key: str) -> Blob:
    """The blob of these bytes: the one there is, or a new one at `key`. Its `key` says which; the other is not needed.

    The row is locked until the transaction ends, so that it is not deleted before it is used.
    """
    same = Blob.tenant == tenant_of(session), Blob.sha256 == received.sha256
    blob = session.scalar(select(Blob).where(*same).with_for_update())
    if blob is None:
        quotas.check(session, settings, Quota.BYTES, received.size)
        blob = Blob(
            tenant=tenant_of(session),
            id=secrets.token_hex(16),
            sha256=received.sha256,
            size_bytes=received.size,
            key=key,
            created_at=now(),
        )
        session.add(blob)
        session.flush()
    elif not storage.exists(blob.key):
        blob.key = key  # what was lost is there again
    return blob


def use(session: Session, blob: Blob, job: Job) -> None:
    session.add(BlobUse(job_id=job.id, blob_id=blob.id))
    session.flush()


def release(session: Session, job_id: str) -> str | None:
    """The job reads its upload no more. The key of bytes that nothing reads now: delete them after the commit."""
    used = session.get(BlobUse, job_id)
    if used is None:
        return None
    blob = session.scalars(select(Blob).where(Blob.id == used.blob_id).with_for_update()).one()
    session.delete(used)
    session.flush()
    if session.scalar(select(func.count()).select_from(BlobUse).where(BlobUse.blob_id == blob.id)):
        return None
    session.delete(blob)
    session.flush()
    return blob.key
