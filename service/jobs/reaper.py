"""Puts lost jobs and steps back and rings for those nobody came for. Any worker runs it, as often as it likes."""

from __future__ import annotations

import structlog
from kombu.exceptions import OperationalError
from sqlalchemy.orm import Session

from service.db import Database, now
from service.jobs import calling, harden, repository, steps
from service.jobs.queue import GPU, QUEUE_OF, Doorbell
from service.jobs.state import JobState
from service.tables import Job

PATIENCE_SECONDS = 4.0

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
    with database.session() as session:
        unclaimed = repository.unclaimed(session, patience_seconds=PATIENCE_SECONDS)
        never_rung = [job.id for job in unclaimed if job.rung_at is None]
        stale = [job for job in unclaimed if job.rung_at is not None]
    doorbell.ring(never_rung + _to_ring_again(doorbell, stale))
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


def _to_ring_again(doorbell: Doorbell, stale: list[Job]) -> list[str]:
    """A queue that still holds messages needs no second ring; one that cannot be asked gets none either."""
    if not stale:
        return []
    try:
        waiting = doorbell.waiting()
    except (OperationalError, OSError) as error:
        log.warning("broker cannot be asked", error=str(error))
        return []
    return [job.id for job in stale if not waiting[QUEUE_OF.get(job.type, GPU)]]
