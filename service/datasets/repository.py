"""Versions of data sets in the database."""

from __future__ import annotations

import math

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.datasets.shard_writing import Written
from service.datasets.shards import ShardReader
from service.db import now
from service.errors import Conflict, Gone, NotFound
from service.jobs.state import OWNED, JobState
from service.references import DatasetRef, parse_dataset_ref
from service.storage import Storage
from service.tables import DatasetVersion, Job
from service.tenancy import tenant_of
from service.turns import take_turns
from service.uploads import blobs
from service.webhooks import outbox as webhooks


def find(session: Session, reference: str | DatasetRef) -> DatasetVersion:
    """The version that `reference` names. Raises InvalidReference, NotFound, or Gone where it was deleted."""
    found = find_row(session, reference)
    if found.deleted_at is not None:
        raise Gone(f"The images of {reference} were deleted at {found.deleted_at}.", code="dataset_deleted")
    return found


def find_row(session: Session, reference: str | DatasetRef) -> DatasetVersion:
    """The same, deleted or not: what lineage needs."""
    ref = parse_dataset_ref(reference) if isinstance(reference, str) else reference
    found = session.get(DatasetVersion, (tenant_of(session), ref.name, ref.version))
    if found is None:
        latest = _latest(session, ref.name)
        hint = f"its newest version is {ref.name}@{latest}" if latest else "no data set of that name has been uploaded"
        raise NotFound(f"There is no data set {ref}: {hint}.", code="dataset_not_found")
    return found


def publish(
    session: Session,
    name: str,
    *,
    job_id: str,
    prefix: str,
    written: Written,
    classes: list[str],
    image_shape: tuple[int, int, int],
    source_format: str,
    parent: str | None = None,
) -> DatasetVersion:
    """Make the next version of `name`; the caller's transaction decides whether it comes to be."""
    take_turns(session, f"dataset {tenant_of(session)} {name}")
    row = DatasetVersion(
        tenant=tenant_of(session),
        name=name,
        version=(_latest(session, name) or 0) + 1,
        job_id=job_id,
        prefix=prefix,
        digest=written.digest,
        num_samples=written.num_samples,
        classes=classes,
        class_counts=written.class_counts,
        num_groups=written.num_groups,
        image_shape=list(image_shape),
        source_format=source_format,
        parent=parent,
        size_bytes=written.num_samples * math.prod(image_shape),
        created_at=now(),
    )
    session.add(row)
    session.flush()
    told = {"dataset": reference_of(row), "num_samples": row.num_samples, "classes": classes, "parent": parent}
    webhooks.publish(session, row.tenant, webhooks.EventType.DATASET_CREATED, {**told, "job": job_id})
    return row


def delete(session: Session, row: DatasetVersion) -> list[str]:
    """What of storage is to be deleted after the commit. Raises Conflict while a job reads the version."""
    active = select(Job).where(Job.tenant == row.tenant, Job.state.in_([*OWNED, JobState.QUEUED]))
    for job in session.scalars(active):
        if reference_of(row) in job.inputs.values():
            raise Conflict(
                f"Job {job.id} reads {reference_of(row)}. Cancel it, or delete the version once it has ended.",
                code="dataset_in_use",
            )
    row.deleted_at = now()
    upload = blobs.release(session, row.job_id)
    return [row.prefix, *([] if upload is None else [upload])]


def _latest(session: Session, name: str) -> int | None:
    here = DatasetVersion.tenant == tenant_of(session), DatasetVersion.name == name
    return session.scalar(select(func.max(DatasetVersion.version)).where(*here))


def reader(storage: Storage, row: DatasetVersion) -> ShardReader:
    height, width, channels = row.image_shape
    return ShardReader(storage, row.prefix, row.num_samples, (height, width, channels))


def reference_of(row: DatasetVersion) -> str:
    return str(DatasetRef(row.name, row.version))
