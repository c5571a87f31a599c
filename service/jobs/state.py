"""The life of a job as a pure table: which state may follow which, and nothing else."""

from __future__ import annotations

from enum import StrEnum

from service.errors import IllegalTransition


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FOLLOWERS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLING, JobState.CANCELLED, JobState.QUEUED}
    ),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}
"""RUNNING → QUEUED when a lease ran out or a worker gave the job back; FAILED, CANCELLED → QUEUED on retry."""

OWNED = frozenset({JobState.RUNNING, JobState.CANCELLING})
FINISHED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


def check_transition(job_id: str, present: JobState, wanted: JobState) -> None:
    """Raises IllegalTransition where the table has no such step."""
    if wanted not in FOLLOWERS[present]:
        raise IllegalTransition(f"Job {job_id} is {present}; it cannot become {wanted}.")
