"""How much a tenant may have: bytes, images, jobs. What counts, and the refusal of what would be too much."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from service.errors import TooManyRequests
from service.jobs.state import OWNED, JobState
from service.settings import Settings
from service.tables import Blob, DatasetVersion, Job, ModelVersion, Tenant, Upload
from service.tenancy import tenant_of


class Quota(StrEnum):
    """What is counted. The settings have one of each for every tenant, which a tenant's own takes the place of."""

    BYTES = "bytes"
    IMAGES = "images"
    QUEUED_JOBS = "queued_jobs"
    RUNNING_JOBS = "running_jobs"


class QuotaExceeded(TooManyRequests):
    """More than the tenant may have; `quota`, `limit` and `used` say of what, and how much there is."""

    code = "quota_exceeded"


RETRY_SECONDS = {Quota.BYTES: 60, Quota.IMAGES: 60, Quota.QUEUED_JOBS: 10, Quota.RUNNING_JOBS: 10}
REMEDY = {
    Quota.BYTES: "Delete versions that are not needed (DELETE /v1/datasets/{name}@{n}), or ask for a larger quota.",
    Quota.IMAGES: "Delete versions that are not needed (DELETE /v1/datasets/{name}@{n}), or ask for a larger quota.",
    Quota.QUEUED_JOBS: "Wait until some have started, or cancel some.",
    Quota.RUNNING_JOBS: "Wait until some have ended, or cancel some.",
}


def limits_of(settings: Settings, tenant: Tenant | None) -> dict[Quota, int | None]:
    """None: no limit."""
    given = {} if tenant is None else tenant.quotas
    return {quota: given.get(quota.value, getattr(settings, f"quota_{quota.value}")) for quota in Quota}


def used(session: Session, quota: Quota, tenant: str | None = None) -> int:
    """By that tenant, else the session's, now."""
    tenant = tenant or tenant_of(session)
    if quota is Quota.BYTES:
        return _bytes(session, tenant)
    if quota is Quota.IMAGES:
        return _sum(session, DatasetVersion.num_samples, *_there(tenant))
    # A harden job is one job, whichever of its steps is at work.
    states = [JobState.QUEUED] if quota is Quota.QUEUED_JOBS else sorted(OWNED)
    counted = Job.tenant == tenant, Job.state.in_(states), Job.parent_id.is_(None)
    return session.scalar(select(func.count()).select_from(Job).where(*counted)) or 0


def check(session: Session, settings: Settings, quota: Quota, adding: int = 1) -> None:
    """Raises QuotaExceeded where `adding` would be too much. In the transaction that adds, so that none slips by."""
    name = tenant_of(session)
    limit = limits_of(settings, session.get(Tenant, name, with_for_update=True))[quota]
    if limit is None:
        return
    there = used(session, quota)
    if there + adding > limit:
        what = quota.value.replace("_", " ")
        raise QuotaExceeded(
            f"The tenant {name} may have {limit} {what}; it has {there}, and this would be {adding} more. "
            f"{REMEDY[quota]}",
            code=f"quota_{quota.value}",
            retry_after_seconds=RETRY_SECONDS[quota],
            quota=quota.value,
            limit=limit,
            used=there,
        )


def may_start(session: Session, settings: Settings, job: Job) -> bool:
    """Whether the job's tenant may have one more at work. A step of a job that is at work already is none more."""
    parent = session.get(Job, job.parent_id) if job.parent_id else None
    if parent is not None and parent.state != JobState.QUEUED:
        return True
    limit = limits_of(settings, session.get(Tenant, job.tenant, with_for_update=True))[Quota.RUNNING_JOBS]
    return limit is None or used(session, Quota.RUNNING_JOBS, job.tenant) < limit


def left(session: Session, settings: Settings, quota: Quota) -> int | None:
    """How much more there may be; None for no limit."""
    limit = limits_of(settings, session.get(Tenant, tenant_of(session)))[quota]
    return None if limit is None else max(0, limit - used(session, quota))


def _bytes(session: Session, tenant: str) -> int:
    """Uploads as they were sent, versions as they are decoded, bundles of models, and what uploads under way may be."""
    return (
        _sum(session, Blob.size_bytes, Blob.tenant == tenant)
        + _sum(session, DatasetVersion.size_bytes, *_there(tenant))
        + _sum(session, ModelVersion.size_bytes, ModelVersion.tenant == tenant)
        + _sum(session, Upload.length, Upload.tenant == tenant, Upload.state == "open")
    )


def _there(tenant: str) -> tuple[ColumnElement[bool], ...]:
    return DatasetVersion.tenant == tenant, DatasetVersion.deleted_at.is_(None)


def _sum(session: Session, column: Any, *where: ColumnElement[bool]) -> int:
    return int(session.scalar(select(func.coalesce(func.sum(column), 0)).where(*where)) or 0)
