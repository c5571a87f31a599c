"""From a data set version back to the job that made it."""

from __future__ import annotations

from service.jobs import artifacts
from service.jobs import repository as jobs
from service.tables import DatasetVersion, Job
from worker.artifacts import FilterArtifacts, load_filter
from worker.context import Context


def made_by(context: Context, row: DatasetVersion) -> Job:
    def find() -> Job:
        with context.database.session() as session:
            return jobs.find(session, row.job_id)

    return context.patiently(find)


def reviewed_by(context: Context, job_id: str) -> Job:
    """The sanitise job whose verdicts a review of `job_id` is about."""

    def find() -> Job:
        with context.database.session() as session:
            return artifacts.verdict_job(session, job_id)

    return context.patiently(find)


def sanitise_filter(context: Context, row: DatasetVersion) -> FilterArtifacts | None:
    """The filter that sanitised this version, reviewed since or not; None where none did."""
    job = made_by(context, row)
    if job.type == "review":
        job = reviewed_by(context, job.inputs["job"])
    if job.type != "sanitise":
        return None
    return load_filter(context.storage, artifacts.attempt_prefix(job.id, job.attempt))
