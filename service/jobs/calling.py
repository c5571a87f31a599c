"""Calls other workers to an open phase. A call carries no step: whoever comes takes the first that nobody has."""

from __future__ import annotations

from datetime import timedelta

import structlog
from kombu.exceptions import OperationalError
from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from service.db import Database, now
from service.jobs.queue import GPU, QUEUE_OF, Doorbell
from service.jobs.state import JobState
from service.jobs.steps import PhaseState, StepState
from service.jobs.tables import Phase, Step
from service.tables import Job, Worker

ALIVE_SECONDS = 15.0
PATIENCE_SECONDS = 4.0

log = structlog.get_logger()


def call(database: Database, doorbell: Doorbell, job_id: str, name: str) -> None:
    """Ask for as many more workers as there are, and steps to take. The reaper makes up for a call that is lost."""
    with database.session() as session:
        kind = session.scalar(select(Job.type).where(Job.id == job_id))
        count = _wanted(session, job_id, name)
    if kind is not None and doorbell.call_for_help(job_id, kind, name, count):
        _mark(database, job_id, name)


def call_again(database: Database, doorbell: Doorbell) -> None:
    """A reaper's round: for phases that nobody was called to, or too few came to and no call is left in the queue."""
    with database.session() as session:
        wanting = [(phase, kind) for phase, kind in _wanting(session) if _wanted(session, phase.job_id, phase.name)]
    if not wanting:
        return
    try:
        waiting = doorbell.waiting()
    except (OperationalError, OSError) as error:
        log.warning("broker cannot be asked", error=str(error))
        return
    for phase, kind in wanting:
        if phase.rung_at is None or not waiting[QUEUE_OF.get(kind, GPU)]:
            call(database, doorbell, phase.job_id, phase.name)


def _wanting(session: Session) -> list[tuple[Phase, str]]:
    """Each with the type of its job."""
    unheard = or_(Phase.rung_at.is_(None), Phase.rung_at < now() - timedelta(seconds=PATIENCE_SECONDS))
    query = select(Phase, Job.type).join(Job, Job.id == Phase.job_id)
    query = query.where(Phase.state == PhaseState.OPEN, Job.state == JobState.RUNNING, unheard)
    return [(phase, kind) for phase, kind in session.execute(query)]


def _wanted(session: Session, job_id: str, name: str) -> int:
    of_phase = Step.job_id == job_id, Step.phase == name
    left = session.scalar(select(func.count()).select_from(Step).where(*of_phase, Step.state == StepState.QUEUED)) or 0
    at_work = select(func.count(Step.worker.distinct())).where(*of_phase, Step.state == StepState.RUNNING)
    since = now() - timedelta(seconds=ALIVE_SECONDS)
    alive = session.scalar(select(func.count()).select_from(Worker).where(Worker.seen_at > since)) or 0
    return max(0, min(left, alive - max(1, session.scalar(at_work) or 0)))  # the job's own worker needs no call


def _mark(database: Database, job_id: str, name: str) -> None:
    with database.transaction() as session:
        session.execute(update(Phase).where(Phase.job_id == job_id, Phase.name == name).values(rung_at=now()))
