"""Steps of jobs in the database: taken, kept, ended and counted by compare-and-set, by however many workers.

A phase's row is locked by whatever ends one of its steps, so that exactly one of them is the last and closes the phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import CursorResult, Select, delete, exists, func, select, update
from sqlalchemy.orm import Session

from service.db import Database, now
from service.errors import LeaseLost
from service.jobs import repository
from service.jobs.repository import Claim
from service.jobs.state import FINISHED, JobState
from service.jobs.tables import Phase, Step
from service.tables import Job


class PhaseState(StrEnum):
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"


class StepState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True)
class StepClaim:
    """The right to work on a step: valid while no other attempt has taken it."""

    job: Claim  # whose step it is; this claim may be another worker's
    phase: str
    number: int
    attempt: int
    start: int
    stop: int
    given: dict[str, Any]

    def __str__(self) -> str:
        return f"step {self.number} of {self.phase} (images {self.start} to {self.stop - 1})"


@dataclass(frozen=True)
class Standing:
    """How far a phase is. done: images."""

    state: PhaseState
    done: int
    error: dict[str, Any] | None  # why it failed


Bounds = Sequence[tuple[int, int]]


def open_phase(
    database: Database, owner: Claim, name: str, bounds: Bounds, given: dict[str, Any], *, max_attempts: int
) -> None:
    """Make the phase's steps, or find those that an earlier attempt at the job made of the same. Raises LeaseLost.

    Steps that had failed are tried again. Where `given` or the bounds are others, all of them begin anew.
    """
    with database.transaction() as session:
        repository.owned(session, owner)
        phase = _locked(session, owner.job_id, name)
        if phase is None:
            phase = Phase(job_id=owner.job_id, name=name, state=PhaseState.OPEN, given=given)
            session.add(phase)
            session.flush()
        there = list(session.scalars(_steps(owner.job_id, name)))
        if phase.given != given or [(step.start, step.stop) for step in there] != list(bounds):
            _begin_anew(session, phase, there, bounds, max_attempts)
            phase.given, phase.state, phase.rung_at = given, PhaseState.OPEN, None
        elif phase.state == PhaseState.FAILED:
            for step in there:
                if step.state == StepState.FAILED:
                    step.state, step.max_attempts = StepState.QUEUED, step.attempt + max_attempts
            phase.state, phase.rung_at = PhaseState.OPEN, None


def _begin_anew(session: Session, phase: Phase, there: list[Step], bounds: Bounds, max_attempts: int) -> None:
    """Attempts are counted on from the old steps', so that whoever works on one of these is fenced off."""
    attempt = max((step.attempt for step in there), default=0)
    session.execute(delete(Step).where(Step.job_id == phase.job_id, Step.phase == phase.name))
    for number, (start, stop) in enumerate(bounds):
        step = Step(job_id=phase.job_id, phase=phase.name, number=number, start=start, stop=stop, done=0)
        step.state, step.attempt, step.max_attempts = StepState.QUEUED, attempt, attempt + max_attempts
        session.add(step)


def claim(database: Database, job_id: str, name: str, *, worker: str, lease_seconds: float) -> StepClaim | None:
    """Take the first step that nobody has. None where there is none, or the job is not at work."""
    with database.transaction() as session:
        phase = session.get(Phase, (job_id, name), with_for_update={"read": True})  # its steps stay what they are
        job = session.get(Job, job_id)
        if phase is None or job is None or phase.state != PhaseState.OPEN or job.state != JobState.RUNNING:
            return None
        waiting = _steps(job_id, name).where(Step.state == StepState.QUEUED).limit(1)
        step = session.scalar(waiting.with_for_update(skip_locked=True))
        if step is None:
            return None
        step.state, step.attempt, step.worker, step.done = StepState.RUNNING, step.attempt + 1, worker, 0
        step.lease_expires_at = now() + timedelta(seconds=lease_seconds)
        whose = Claim(job.id, job.attempt, job.type, job.inputs, job.params, job.request_id, job.tenant)
        return StepClaim(whose, name, step.number, step.attempt, step.start, step.stop, phase.given)


def renew(database: Database, claim: StepClaim, *, lease_seconds: float, progress: dict[str, Any]) -> JobState:
    """Prolong the lease and store the progress; the state of the job. Raises LeaseLost where the step is another's."""
    with database.transaction() as session:
        changes = {"lease_expires_at": now() + timedelta(seconds=lease_seconds), "done": progress["done"]}
        _change(session, claim, **changes)
        state = session.scalar(select(Job.state).where(Job.id == claim.job.job_id))
    if state is None or state in FINISHED:
        raise LeaseLost(f"Job {claim.job.job_id} has ended.")
    return JobState(state)


def finish(database: Database, claim: StepClaim, *, key: str, digest: str) -> bool:
    """Publish the result, and close the phase if it was the last one: True. Raises LeaseLost."""
    with database.transaction() as session:
        _locked(session, claim.job.job_id, claim.phase)
        changes = {"key": key, "digest": digest, "done": claim.stop - claim.start, "error": None}
        _change(session, claim, state=StepState.SUCCEEDED, lease_expires_at=None, **changes)
        of_phase = Step.job_id == claim.job.job_id, Step.phase == claim.phase
        left = exists().where(*of_phase, Step.state != StepState.SUCCEEDED)
        closing = update(Phase).where(
            Phase.job_id == claim.job.job_id, Phase.name == claim.phase, Phase.state == PhaseState.OPEN, ~left
        )
        return _rows(session, closing.values(state=PhaseState.DONE)) == 1


def give_back(database: Database, claim: StepClaim) -> None:
    """Put a step back without counting the attempt against it. Raises LeaseLost."""
    with database.transaction() as session:
        more = {"max_attempts": Step.max_attempts + 1, "lease_expires_at": None, "done": 0}
        _change(session, claim, state=StepState.QUEUED, **more)


def fail(database: Database, claim: StepClaim, error: dict[str, Any]) -> None:
    """The attempt came to nothing: another one, or, out of attempts, the phase has failed. Raises LeaseLost."""
    with database.transaction() as session:
        _locked(session, claim.job.job_id, claim.phase)
        _change(session, claim, error=error)
        step = session.get_one(Step, (claim.job.job_id, claim.phase, claim.number), populate_existing=True)
        _try_again_or_fail(session, step)


def reopen(database: Database, owner: Claim, name: str, numbers: Sequence[int]) -> None:
    """Steps whose results are gone are done again. Raises LeaseLost."""
    with database.transaction() as session:
        repository.owned(session, owner)
        phase = _locked(session, owner.job_id, name)
        for step in session.scalars(_steps(owner.job_id, name).where(Step.number.in_(numbers))):
            step.state, step.done, step.max_attempts = StepState.QUEUED, 0, step.max_attempts + 1
        if phase is not None:
            phase.state, phase.rung_at = PhaseState.OPEN, None


def standing(session: Session, job_id: str, name: str) -> Standing:
    """Progress adds up: it is that of the steps, and stored nowhere else."""
    state = session.scalar(select(Phase.state).where(Phase.job_id == job_id, Phase.name == name))
    of_phase = Step.job_id == job_id, Step.phase == name
    done = session.scalar(select(func.coalesce(func.sum(Step.done), 0)).where(*of_phase))
    error = session.scalar(select(Step.error).where(*of_phase, Step.state == StepState.FAILED).limit(1))
    return Standing(PhaseState(state or PhaseState.OPEN), int(done or 0), error)


def results(session: Session, job_id: str, name: str) -> list[Step]:
    """The steps in order, each with the key and digest of its result."""
    return list(session.scalars(_steps(job_id, name)))


def forget(session: Session, job_id: str) -> None:
    """Of a job that has succeeded, nothing needs them any more."""
    session.execute(delete(Step).where(Step.job_id == job_id))
    session.execute(delete(Phase).where(Phase.job_id == job_id))


def lost(session: Session) -> list[Step]:
    """Steps of unfinished jobs whose worker has fallen silent."""
    query = select(Step).join(Job, Job.id == Step.job_id)
    silent = Step.state == StepState.RUNNING, Step.lease_expires_at < now(), Job.state.not_in(FINISHED)
    return list(session.scalars(query.where(*silent).order_by(Step.job_id, Step.phase, Step.number)))


def recover(session: Session, step: Step) -> None:
    """Of a lost step; whoever had it can publish nothing any more."""
    _locked(session, step.job_id, step.phase)
    session.refresh(step)
    if step.state != StepState.RUNNING or step.lease_expires_at is None or step.lease_expires_at >= now():
        return
    step.error = {
        "code": "worker_lost",
        "message": "The worker died. It may be short of memory: try a smaller WINNOW_STEP_IMAGES, or give it more.",
    }
    _try_again_or_fail(session, step)


def _try_again_or_fail(session: Session, step: Step) -> None:
    """In a transaction that holds the phase's lock."""
    phase, job = session.get_one(Phase, (step.job_id, step.phase)), session.get_one(Job, step.job_id)
    what = f"step {step.number} of {step.phase}: {(step.error or {}).get('code')}"
    step.lease_expires_at, step.done = None, 0
    if step.attempt < step.max_attempts:
        step.state, phase.rung_at = StepState.QUEUED, None
        repository.record(session, job, f"{what}; it is tried again")
    else:
        step.state = StepState.FAILED
        if phase.state == PhaseState.OPEN:
            phase.state = PhaseState.FAILED
        repository.record(session, job, f"{what}; out of attempts")


def _change(session: Session, claim: StepClaim, **changes: Any) -> None:
    mine = Step.job_id == claim.job.job_id, Step.phase == claim.phase, Step.number == claim.number
    statement = update(Step).where(*mine, Step.attempt == claim.attempt, Step.state == StepState.RUNNING)
    if _rows(session, statement.values(**changes)) != 1:
        raise LeaseLost(f"{claim} of job {claim.job.job_id} is no longer attempt {claim.attempt}'s.")


def _rows(session: Session, statement: Any) -> int:
    result = session.execute(statement.execution_options(synchronize_session=False))
    return result.rowcount if isinstance(result, CursorResult) else 0


def _locked(session: Session, job_id: str, name: str) -> Phase | None:
    """The job first, as whoever owns it does: an event of it locks its row too, and two orders are a deadlock."""
    session.execute(select(Job.id).where(Job.id == job_id).with_for_update(read=True, key_share=True))
    return session.get(Phase, (job_id, name), with_for_update=True)


def _steps(job_id: str, name: str) -> Select[Step]:
    return select(Step).where(Step.job_id == job_id, Step.phase == name).order_by(Step.number)
