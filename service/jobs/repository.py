"""Jobs in the database. Every change of state is one compare-and-set, so that two who try the same cannot both win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CursorResult, Select, func, select, update
from sqlalchemy.orm import Session

from service.db import Database, now
from service.errors import LeaseLost, NotFound
from service.jobs.state import FINISHED, OWNED, JobState, check_transition
from service.quotas import may_start
from service.settings import Settings
from service.tables import DEFAULT, Job, JobEvent
from service.webhooks.outbox import publish_job


@dataclass(frozen=True)
class Claim:
    """The right to work on a job: valid while no other attempt has taken it."""

    job_id: str
    attempt: int
    type: str
    inputs: dict[str, Any]
    params: dict[str, Any]
    request_id: str | None
    tenant: str = DEFAULT


def find(session: Session, job_id: str) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"There is no job {job_id}.", code="job_not_found")
    return job


def move(session: Session, job: Job, state: JobState, message: str, **changes: Any) -> bool:
    """Compare-and-set from the state and attempt that `job` was read with; False where another was faster."""
    check_transition(job.id, JobState(job.state), state)
    statement = update(Job).where(Job.id == job.id, Job.state == job.state, Job.attempt == job.attempt)
    result = session.execute(statement.values(state=state, **changes).execution_options(synchronize_session=False))
    if not isinstance(result, CursorResult) or result.rowcount != 1:
        return False
    session.refresh(job)
    record(session, job, message)
    if state in FINISHED:
        publish_job(session, job)
    return True


def record(session: Session, job: Job, message: str) -> None:
    session.add(JobEvent(job_id=job.id, at=now(), state=job.state, attempt=job.attempt, message=message[:500]))


def claim(
    database: Database, job_id: str, *, worker: str, lease_seconds: float, settings: Settings | None = None
) -> Claim | None:
    """Take a queued job. None where it is not queued any more (the doorbell may ring twice), or where its tenant has as
    many at work as it may: the reaper rings again.
    """
    with database.transaction() as session:
        job = session.get(Job, job_id)
        if job is None or job.state != JobState.QUEUED:
            return None
        if settings is not None and not may_start(session, settings, job):
            return None
        present = now()
        taken = move(
            session,
            job,
            JobState.RUNNING,
            f"claimed by {worker}",
            attempt=job.attempt + 1,
            worker=worker,
            lease_expires_at=present + timedelta(seconds=lease_seconds),
            started_at=job.started_at or present,
            error=None,
        )
        if not taken:
            return None
        start_parent(session, job)
        return Claim(job.id, job.attempt, job.type, job.inputs, job.params, job.request_id, job.tenant)


def start_parent(session: Session, job: Job) -> None:
    """A harden job runs as soon as its first step does."""
    parent = session.get(Job, job.parent_id) if job.parent_id else None
    if parent is not None and parent.state == JobState.QUEUED:
        move(session, parent, JobState.RUNNING, f"{job.type} started", started_at=parent.started_at or now())


def renew(database: Database, claim: Claim, *, lease_seconds: float, progress: dict[str, Any]) -> JobState:
    """Prolong the lease and store the progress. Raises LeaseLost where the job has a new owner."""
    with database.transaction() as session:
        statement = (
            update(Job)
            .where(Job.id == claim.job_id, Job.attempt == claim.attempt, Job.state.in_(OWNED))
            .values(lease_expires_at=now() + timedelta(seconds=lease_seconds), progress=progress)
            .returning(Job.state)
        )
        state = session.scalar(statement)
    if state is None:
        raise LeaseLost(f"Job {claim.job_id} is no longer attempt {claim.attempt}'s.")
    return JobState(state)


def owned(session: Session, claim: Claim) -> Job:
    """The job, if the claim still holds. Raises LeaseLost."""
    job = session.get(Job, claim.job_id, with_for_update=True)
    if job is None or job.attempt != claim.attempt or job.state not in OWNED:
        raise LeaseLost(f"Job {claim.job_id} is no longer attempt {claim.attempt}'s.")
    return job


def finish(
    session: Session, claim: Claim, state: JobState, message: str, *, result: Any = None, error: Any = None
) -> Job:
    """End an attempt inside the caller's transaction, so that a result and its publication come to be together."""
    job = owned(session, claim)
    changes = {"result": result, "error": error, "finished_at": now(), "lease_expires_at": None}
    if not move(session, job, state, message, **changes):
        raise LeaseLost(f"Job {claim.job_id} was taken from attempt {claim.attempt}.")
    return job


def give_back(database: Database, claim: Claim) -> None:
    """Put a job back in the queue without counting the attempt against it: the worker is shutting down."""
    with database.transaction() as session:
        job = owned(session, claim)
        if job.state == JobState.CANCELLING:
            move(session, job, JobState.CANCELLED, "cancelled", finished_at=now(), lease_expires_at=None)
        else:
            changes = {"lease_expires_at": None, "rung_at": None, "max_attempts": job.max_attempts + 1}
            move(session, job, JobState.QUEUED, "given back by a worker that is shutting down", **changes)


def lost(session: Session) -> list[Job]:
    """Jobs whose worker has fallen silent."""
    return list(session.scalars(select(Job).where(Job.state.in_(OWNED), Job.lease_expires_at < now())))


@dataclass(frozen=True)
class Waiting:
    """Queued jobs of one type that the broker was told of."""

    kind: str
    count: int
    longest_ago: datetime  # that one of them was rung


def never_rung(session: Session, *, most: int | None = None) -> list[str]:
    """Queued jobs that nobody was told of."""
    return list(session.scalars(_queued(Job.id).where(Job.rung_at.is_(None)).order_by(Job.created_at).limit(most)))


def waiting(session: Session) -> list[Waiting]:
    found = _queued(Job.type, func.count(), func.min(Job.rung_at)).where(Job.rung_at.is_not(None))
    return [Waiting(*row) for row in session.execute(found.group_by(Job.type))]


def rung_before(session: Session, moment: datetime, *, kinds: Sequence[str], most: int) -> list[tuple[str, datetime]]:
    """Queued jobs, and when they were rung: those that were rung longest ago."""
    found = _queued(Job.id, Job.rung_at).where(Job.rung_at < moment, Job.type.in_(kinds))
    return [(job_id, at) for job_id, at in session.execute(found.order_by(Job.rung_at, Job.created_at).limit(most))]


def take_ringing(database: Database, job_ids: Sequence[str], *, before: datetime) -> list[str]:
    """Those of the jobs that nobody else has rung meanwhile: of many who look at once, one rings."""
    if not job_ids:
        return []
    with database.transaction() as session:
        mine = Job.id.in_(job_ids), Job.state == JobState.QUEUED, Job.rung_at < before
        return list(session.scalars(update(Job).where(*mine).values(rung_at=now()).returning(Job.id)))


def mark_rung(database: Database, job_ids: list[str]) -> None:
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id.in_(job_ids)).values(rung_at=now()))


def _queued(*columns: Any) -> Select[Any]:
    """Of jobs that are rung for: a harden job is done by its steps."""
    return select(*columns).where(Job.state == JobState.QUEUED, Job.type != "harden")
