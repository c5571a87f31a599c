"""The tables of the database: the only truth about data sets, jobs, models and keys."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, ForeignKey, Index, String, Text, TypeDecorator
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


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


class Job(Table):
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
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    payload_digest: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_jobs_state_lease", "state", "lease_expires_at"),)


class JobEvent(Table):
    """What happened to a job, in order."""

    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    at: Mapped[datetime]
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    message: Mapped[str] = mapped_column(String(500))


class DatasetVersion(Table):
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
    source_format: Mapped[str] = mapped_column(String(32))
    parent: Mapped[str | None] = mapped_column(String(80))
    created_at: Mapped[datetime]


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


class ModelVersion(Table):
    """An immutable bundle. `files` holds the sha256 of each of its files."""

    __tablename__ = "model_versions"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    prefix: Mapped[str] = mapped_column(String(255))
    files: Mapped[dict[str, Any]]
    card: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class ModelAlias(Table):
    """A movable name for a model version, such as `champion`."""

    __tablename__ = "model_aliases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int]
    updated_at: Mapped[datetime]


class ApiKey(Table):
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
