"""How far a job is, and how long it may take: of a harden job, from its steps."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from service.db import now
from service.jobs import harden
from service.jobs.state import JobState
from service.tables import Job

TOO_LITTLE = 0.02  # of a job, to tell from it how long the rest takes


def progress_of(session: Session, job: Job) -> dict[str, Any]:
    return harden.progress(harden.steps_of(session, job.id)) if job.type == "harden" else job.progress


def eta_seconds(job: Job, fraction: float) -> float | None:
    """From the share that is done and the time it took; None while that says nothing yet."""
    if job.state != JobState.RUNNING or job.started_at is None or fraction < TOO_LITTLE:
        return None
    elapsed = (now() - job.started_at).total_seconds()
    return round(elapsed * (1 - fraction) / fraction, 1)
