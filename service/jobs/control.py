"""What a person may do to a job that exists: cancel it, or have it tried again."""

from __future__ import annotations

from sqlalchemy.orm import Session

from service.db import now
from service.errors import Conflict, IllegalTransition
from service.jobs import harden, repository
from service.jobs.state import FINISHED, JobState
from service.tables import Job

CANCELLED = "cancelled by request"


def cancel(session: Session, job: Job) -> None:
    """A queued job ends at once; a running one within a batch. Asking twice is fine; a finished job is a conflict."""
    if job.state in FINISHED and job.state != JobState.CANCELLED:
        raise IllegalTransition(
            f"Job {job.id} has {job.state}; there is nothing left to cancel.", code="job_already_finished"
        )
    if job.state in (JobState.CANCELLED, JobState.CANCELLING):
        return
    if job.type == "harden":
        _cancel_harden(session, job)
    elif job.state == JobState.QUEUED:
        _must(repository.move(session, job, JobState.CANCELLED, CANCELLED, finished_at=now()), job)
        harden.advance(session, job)
    else:
        _must(repository.move(session, job, JobState.CANCELLING, "cancel requested"), job)


def _cancel_harden(session: Session, job: Job) -> None:
    running = job.state == JobState.RUNNING
    if running:
        _must(repository.move(session, job, JobState.CANCELLING, "cancel requested"), job)
    active = [step for step in harden.steps_of(session, job.id) if step.state not in FINISHED]
    for step in active:
        cancel(session, step)
    if not active:
        repository.move(session, job, JobState.CANCELLED, CANCELLED, finished_at=now())


def retry(session: Session, job: Job) -> None:
    """Queue a failed or cancelled job again, with its attempts anew. A harden job goes on where it ended."""
    if job.state not in (JobState.FAILED, JobState.CANCELLED):
        raise IllegalTransition(
            f"Job {job.id} is {job.state}; only a failed or cancelled job can be retried.", code="job_not_retryable"
        )
    if job.parent_id:
        raise Conflict(f"Job {job.id} is a step of harden job {job.parent_id}: retry that one.", code="step_of_harden")
    _requeue(session, job)
    if job.type == "harden":
        steps = harden.steps_of(session, job.id)
        if steps and steps[-1].state in (JobState.FAILED, JobState.CANCELLED):
            _requeue(session, steps[-1])


def _requeue(session: Session, job: Job) -> None:
    _must(
        repository.move(
            session,
            job,
            JobState.QUEUED,
            "retried by request",
            max_attempts=job.attempt + job.max_attempts,
            rung_at=None,
            finished_at=None,
            error=None,
        ),
        job,
    )


def _must(moved: bool, job: Job) -> None:
    if not moved:
        raise Conflict(
            f"Job {job.id} changed at the same moment. Look at it again, then repeat the call.", code="job_changed"
        )
