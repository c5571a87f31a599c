"""The tables of the database: the only truth about data sets, jobs, models and keys."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DEFAULT = "default"
"""The tenant that is there from the beginning; its administrators run the service."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets the zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON(none_as_null=True), list[Any]: JSON, datetime: UtcDateTime}  # noqa: RUF012 (SQLAlchemy's form)


class Owned:
    """What belongs to a tenant. A session of a tenant (`service.db`) sees its rows only, whatever a query says."""

    tenant: Mapped[str] = mapped_column(String(32), default=DEFAULT, server_default=DEFAULT, sort_order=-1)


class OwnedByName(Owned):
    """The same where names are the tenant's own: the key begins with it."""

    tenant: Mapped[str] = mapped_column(
        String(32), primary_key=True, default=DEFAULT, server_default=DEFAULT, sort_order=-1
    )


class Tenant(Table):
    """Who has data sets, jobs, models and keys of his own. `quotas`: what was set for it, by name."""

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    created_at: Mapped[datetime]
    quotas: Mapped[dict[str, Any]]


class Job(Owned, Table):
    """One piece of work. `attempt` fences: a result is written only by the attempt that owns the row."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    type: Mapped[str] = mapped_column(String(16), index=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    inputs: Mapped[dict[str, Any]]  # references: dataset, reference, model, upload
    params: Mapped[dict[str, Any]]  # a complete spec, defaults filled in
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)  # the harden job of a step
    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int] = mapped_column(default=3)
    worker: Mapped[str | None] = mapped_column(String(128))
    lease_expires_at: Mapped[datetime | None]
    rung_at: Mapped[datetime | None]  # when the broker was last told
    progress: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    request_id: Mapped[str | None] = mapped_column(String(64))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))  # of its tenant
    payload_digest: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_jobs_state_lease", "state", "lease_expires_at"),
        Index("ix_jobs_tenant_id", "tenant", "id"),
        Index("ix_jobs_tenant_state", "tenant", "state"),
        UniqueConstraint("tenant", "idempotency_key", name="uq_jobs_tenant_idempotency_key"),
    )


class JobEvent(Table):
    """What happened to a job, in order."""

    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    at: Mapped[datetime]
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    message: Mapped[str] = mapped_column(String(500))


class DatasetVersion(OwnedByName, Table):
    """An immutable version of a data set. `job_id` is unique: a job publishes once, whatever is delivered twice."""

    __tablename__ = "dataset_versions"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    prefix: Mapped[str] = mapped_column(String(255))
    digest: Mapped[str] = mapped_column(String(64))
    num_samples: Mapped[int]
    classes: Mapped[list[Any]]
    class_counts: Mapped[list[Any]]  # images of each class, in the order of `classes`
    image_shape: Mapped[list[Any]]  # height, width, channels
    num_groups: Mapped[int | None]  # None where not every image names one, or nobody counted: before 0007
    source_format: Mapped[str] = mapped_column(String(32))
    parent: Mapped[str | None] = mapped_column(String(80))
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # of its images, decoded
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]  # its bytes are gone; the row stays, for lineage


class Override(Table):
    """One decision of a person about some of a sanitise job's images. Rows are only ever added: the latest that holds
    an image stands, and one without a verdict takes the earlier ones back. `seq` counts within the job, gapless."""

    __tablename__ = "overrides"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    verdict: Mapped[str | None] = mapped_column(String(16))
    note: Mapped[str | None] = mapped_column(String(1000))
    by: Mapped[str] = mapped_column(String(64))  # the key's name
    at: Mapped[datetime]
    count: Mapped[int]
    first: Mapped[int]  # least and greatest index that it is about
    last: Mapped[int]
    indices: Mapped[bytes]  # packed by service.jobs.overrides


class ModelVersion(OwnedByName, Table):
    """An immutable bundle. `files` holds the sha256 of each of its files."""

    __tablename__ = "model_versions"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    prefix: Mapped[str] = mapped_column(String(255))
    files: Mapped[dict[str, Any]]
    card: Mapped[dict[str, Any]]
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    created_at: Mapped[datetime]


class ModelAlias(OwnedByName, Table):
    """A movable name for a model version, such as `champion`."""

    __tablename__ = "model_aliases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int]
    updated_at: Mapped[datetime]


class ApiKey(Owned, Table):
    """A key is kept as the sha256 of its text; the text is shown once. A rotated key has an old text for a while."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    prefix: Mapped[str] = mapped_column(String(16))  # of its text: enough to tell which key it is, and no more
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    old_digest: Mapped[str | None] = mapped_column(String(64), unique=True)
    old_until: Mapped[datetime | None]
    requests_per_second: Mapped[int | None]  # None: as the settings say

    __table_args__ = (Index("ix_api_keys_tenant_id", "tenant", "id"),)


class Blob(Owned, Table):
    """The bytes of an upload, kept once for each tenant however often they were sent. `key` is never used again."""

    __tablename__ = "blobs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    key: Mapped[str] = mapped_column(String(255))  # on storage
    created_at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("tenant", "sha256", name="uq_blobs_tenant_sha256"),)


class BlobUse(Table):
    """An ingest job that reads a blob, or may yet: without a use, a blob is deleted."""

    __tablename__ = "blob_uses"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id"), index=True)


class Upload(Owned, Table):
    """A resumable upload. `writer` fences: a part counts only if the writer that received it still holds the row."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), index=True)  # open, finished, expired
    name: Mapped[str] = mapped_column(String(64))  # of the data set that it becomes
    params: Mapped[dict[str, Any]]  # of its ingest job, defaults filled in
    told: Mapped[str] = mapped_column(Text)  # Upload-Metadata, as it was sent
    length: Mapped[int] = mapped_column(BigInteger)
    received: Mapped[int] = mapped_column(BigInteger, default=0)  # bytes that are on storage: the offset to go on at
    writer: Mapped[str | None] = mapped_column(String(32))
    writer_until: Mapped[datetime | None]
    actor_id: Mapped[str] = mapped_column(String(32))  # the key that made it
    actor: Mapped[str] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))  # its ingest job, once it is whole
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)

    __table_args__ = (Index("ix_uploads_tenant_id", "tenant", "id"),)


class UploadPart(Table):
    """A piece of a resumable upload: one value on storage."""

    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), primary_key=True)
    begin: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    size: Mapped[int] = mapped_column(BigInteger)
    key: Mapped[str] = mapped_column(String(255))


class AuditEntry(Table):
    """Who changed what. Texts are kept exactly as they were hashed, so that no byte of them can change unseen."""

    __tablename__ = "audit_log"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)  # gapless from 1
    at: Mapped[str] = mapped_column(String(32))
    actor_id: Mapped[str] = mapped_column(String(32))
    actor: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(160))
    request_id: Mapped[str | None] = mapped_column(String(64))
    details: Mapped[str] = mapped_column(Text)  # JSON
    prev_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))
    tenant: Mapped[str | None] = mapped_column(String(32))  # None: from before there were tenants, and hashed without

    __table_args__ = (Index("ix_audit_log_tenant_seq", "tenant", "seq"),)


class AuditHead(Table):
    """The one row that says where the audit log ends: its lock is the right to add to the log."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # always 1
    seq: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(64))


class Worker(Table):
    """A worker's last sign of life."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    seen_at: Mapped[datetime]
