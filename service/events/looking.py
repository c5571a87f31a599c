"""Reads what happened to a job since it was last looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.jobs.progress import eta_seconds, progress_of
from service.jobs.state import FINISHED
from service.tables import Job, JobEvent


@dataclass(frozen=True)
class Look:
    """A job as it stands, and its events since the last look."""

    events: Sequence[JobEvent]
    progress: dict[str, Any]
    eta_seconds: float | None
    finished: bool


def look(session: Session, job_id: str, *, after: int) -> Look | None:
    """Events after the one numbered `after`; None where there is no such job.

    The job is read before its events: one that is finished has them all. Events of one job are numbered in the order
    of their commits, since whoever adds one holds the job's row.
    """
    job = session.get(Job, job_id)
    if job is None:
        return None
    finished = job.state in FINISHED
    progress = progress_of(session, job)
    events = events_of(session, job_id, after=after)
    return Look(events, progress, eta_seconds(job, progress["fraction"]), finished)


def events_of(session: Session, job_id: str, *, after: int, limit: int | None = None) -> Sequence[JobEvent]:
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > after).order_by(JobEvent.id).limit(limit)
    return session.scalars(query).all()
