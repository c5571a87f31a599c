"""Where a job's own files lie on storage. They are known by job and attempt, so a stale attempt overwrites nothing."""

from __future__ import annotations

from sqlalchemy.orm import Session

from service.errors import Conflict, InvalidInput
from service.jobs import harden, repository
from service.jobs.state import JobState
from service.tables import Job

SHARED = "shared"


def attempt_prefix(job_id: str, attempt: int) -> str:
    return f"jobs/{job_id}/{attempt}"


def shared_prefix(kind: str, name: str, job_id: str, digest: str) -> str:
    """Where the steps of a job write a version together. It outlasts attempts, as the steps do.

    digest: of what the version follows from, so that whoever writes below it writes the same.
    """
    return f"{kind}/{name}/{job_id}-{SHARED}{digest[:16]}"


def checkpoints_prefix(job_id: str) -> str:
    """Shared by the attempts of a job: a later one goes on where an earlier one ended."""
    return f"jobs/{job_id}/checkpoints"


def steps_prefix(job_id: str, phase: str) -> str:
    """What steps work with, and their results: they outlast attempts as checkpoints do, and are cleared away so."""
    return f"{checkpoints_prefix(job_id)}/steps/{phase}"


def verdicts_key(job: Job) -> str:
    return f"{attempt_prefix(job.id, job.attempt)}/verdicts.parquet"


def report_key(job: Job, extension: str) -> str:
    return f"{attempt_prefix(job.id, job.attempt)}/report.{extension}"


def verdict_job(session: Session, job_id: str) -> Job:
    """The succeeded sanitise job that `job_id` is or contains. Raises InvalidInput or Conflict."""
    job = repository.find(session, job_id)
    if job.type == "harden":
        job = next((step for step in harden.steps_of(session, job_id) if step.type == "sanitise"), job)
    if job.type != "sanitise":
        raise InvalidInput(
            f"Job {job_id} is a {job.type} job; only sanitise and harden jobs give verdicts.", code="no_verdicts"
        )
    return _succeeded(job)


def reported_job(session: Session, job_id: str) -> Job:
    """The job whose report is asked for; of a harden job, its evaluation's. Raises Conflict while there is none."""
    job = repository.find(session, job_id)
    if job.type == "harden":
        steps = harden.steps_of(session, job_id)
        job = next((step for step in reversed(steps) if step.state == JobState.SUCCEEDED), job)
    return _succeeded(job)


def _succeeded(job: Job) -> Job:
    if job.state != JobState.SUCCEEDED:
        raise Conflict(
            f"Job {job.id} is {job.state}: its results can be read once it has succeeded.", code="job_not_finished"
        )
    return job
