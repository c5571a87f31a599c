"""The one task: claim a job, run its step, record the outcome. Everything a worker does passes through here."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from models.training import Stopped
from service.allocator import give_back
from service.errors import LeaseLost
from service.jobs import artifacts, harden, repository, steps
from service.jobs.repository import Claim
from service.jobs.state import JobState
from service.storage import StorageUnavailable
from service.tables import Job
from worker.context import Context, Outcome
from worker.failures import UNFORESEEN, told
from worker.heartbeat import Flag, Heartbeat, StopReason
from worker.progress import LONG_S, Progress
from worker.runtime import Runtime

STEPS = {kind: f"worker.{kind}" for kind in ("ingest", "sanitise", "distill", "evaluate", "review")}

log = structlog.get_logger()


def execute(runtime: Runtime, job_id: str, shutting_down: Flag) -> None:
    """Does nothing where the job is not queued any more: the doorbell may ring twice."""
    settings = runtime.settings
    lease_seconds = settings.lease_seconds
    claim = repository.claim(
        runtime.database, job_id, worker=runtime.worker, lease_seconds=lease_seconds, settings=settings
    )
    if claim is None:
        return
    ids = {"job_id": job_id, "attempt": claim.attempt, "request_id": claim.request_id}
    with structlog.contextvars.bound_contextvars(**ids):
        log.info("job claimed", type=claim.type)
        _attempt(runtime, claim, shutting_down)


def _attempt(runtime: Runtime, claim: Claim, shutting_down: Flag) -> None:
    context = Context(runtime, claim, Progress())
    unwanted = context.written
    began = time.monotonic()
    try:
        renew = partial(repository.renew, runtime.database, claim, lease_seconds=runtime.settings.lease_seconds)
        with Heartbeat(runtime, renew, context.progress, shutting_down) as heartbeat:
            ended = _run(context, heartbeat)
        if ended == JobState.SUCCEEDED:
            unwanted = [artifacts.checkpoints_prefix(claim.job_id)]
        took_s = time.monotonic() - began
        runtime.metrics.ended(claim.type, ended, took_s, context.progress.close())
        log.info("job ended", state=ended, took_s=round(took_s, 3))
    except LeaseLost as error:
        runtime.metrics.lost_lease()
        log.warning("attempt superseded, nothing published", reason=error.message)
    except (Stopped, SQLAlchemyError) as error:
        unwanted = []  # it may have been published: its lease runs out, and whoever comes then sees
        log.warning("how the attempt ended could not be said", exc_info=error)
    finally:
        _clean(context, unwanted)
    if time.monotonic() - began > LONG_S:
        give_back()
    _ring_new(runtime)


def _clean(context: Context, prefixes: list[str]) -> None:
    """What the attempt has no more use for; where the storage is away, `winnow gc` makes up for it."""
    try:
        for prefix in prefixes:
            context.storage.delete_prefix(prefix)
    except StorageUnavailable as error:
        log.warning("not cleaned away", reason=error.message)


def _run(context: Context, heartbeat: Heartbeat) -> JobState:
    try:
        step: Callable[[Context], Outcome] = import_module(STEPS[context.claim.type]).run
        outcome = step(context)
    except Stopped:
        return _stopped(context, heartbeat.reason)
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 (a step may fail in any way; the job must say so whatever it was)
        failure = told(error, f"The {context.claim.type} step")
        if failure["code"] in UNFORESEEN:
            context.runtime.doubted.set()
        return _end(context, JobState.FAILED, f"failed: {failure['code']}", error=failure)
    return _succeeded(context, outcome)


def _stopped(context: Context, reason: StopReason | None) -> JobState:
    if reason == StopReason.CANCEL:
        return _end(context, JobState.CANCELLED, "cancelled by request")
    if reason == StopReason.SHUTDOWN:
        repository.give_back(context.database, context.claim)
        return JobState.QUEUED
    raise LeaseLost(f"Job {context.claim.job_id} has a new owner.")


def _end(context: Context, state: JobState, message: str, *, error: dict[str, Any] | None = None) -> JobState:
    def end() -> None:
        with context.database.transaction() as session:
            ended = repository.finish(session, context.claim, state, message, error=error)
            harden.advance(session, ended)

    context.patiently(end)
    return state


def _succeeded(context: Context, outcome: Outcome) -> JobState:
    return context.patiently(partial(_publish, context, outcome))


def _publish(context: Context, outcome: Outcome) -> JobState:
    """Rows, result, state and the next step of a harden job: one transaction."""
    with context.database.transaction() as session:
        if _is_published(session, context.claim):
            return JobState.SUCCEEDED
        job = repository.owned(session, context.claim)
        if job.state == JobState.CANCELLING:
            ended = repository.finish(session, context.claim, JobState.CANCELLED, "cancelled by request")
        else:
            result = {**outcome.result, **outcome.publish(session)}
            _fill_progress(job, context)
            steps.forget(session, job.id)
            ended = repository.finish(session, context.claim, JobState.SUCCEEDED, "succeeded", result=result)
        harden.advance(session, ended)
        return JobState(ended.state)


def _is_published(session: Session, claim: Claim) -> bool:
    """By this very attempt, where the database was lost before it could say so."""
    mine = select(Job.id).where(Job.id == claim.job_id, Job.attempt == claim.attempt, Job.state == JobState.SUCCEEDED)
    return session.scalar(mine) is not None


def _fill_progress(job: Job, context: Context) -> None:
    snapshot = context.progress.snapshot()
    job.progress = {**snapshot, "done": snapshot["total"], "phase": None, "fraction": 1.0}


def _ring_new(runtime: Runtime) -> None:
    with runtime.database.session() as session:
        new = repository.never_rung(session)
    runtime.doorbell.ring(new)
