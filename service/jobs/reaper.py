"""Puts lost jobs and steps back and rings for those nobody came for. Any worker runs it, as often as it likes."""

from __future__ import annotations

import structlog
from sqlalchemy.orm import Session

from service.db import Database, now
from service.jobs import calling, harden, repository, steps
from service.jobs.queue import Doorbell
from service.jobs.ringing import ring_waiting
from service.jobs.state import JobState
from service.tables import Job

log = structlog.get_logger()


def reap(database: Database, doorbell: Doorbell) -> None:
    """One round."""
    with database.session() as session:
        any_lost = bool(repository.lost(session))
    if any_lost:
        with database.transaction() as session:
            for job in repository.lost(session):
                _recover(session, job)
    _reap_steps(database)
    ring_waiting(database, doorbell)
    calling.call_again(database, doorbell)


def _reap_steps(database: Database) -> None:
    with database.session() as session:
        any_lost = bool(steps.lost(session))
    if any_lost:
        with database.transaction() as session:
            for step in steps.lost(session):
                log.warning("lease of a step ran out", job_id=step.job_id, step=step.number, worker=step.worker)
                steps.recover(session, step)


def _recover(session: Session, job: Job) -> None:
    log.warning("lease ran out", job_id=job.id, attempt=job.attempt, worker=job.worker)
    if job.state == JobState.CANCELLING:
        repository.move(session, job, JobState.CANCELLED, "cancelled; its worker was lost", finished_at=now())
        harden.advance(session, job)
    elif job.attempt >= job.max_attempts:
        error = {
            "code": "worker_lost",
            "message": f"The worker died in each of {job.attempt} attempts. It may be short of memory: "
            "try a smaller image size or fewer images, or give it more; then retry the job.",
        }
        repository.move(session, job, JobState.FAILED, "out of attempts", error=error, finished_at=now())
        harden.advance(session, job)
    else:
        repository.move(
            session, job, JobState.QUEUED, "its worker was lost; queued again", rung_at=None, lease_expires_at=None
        )
