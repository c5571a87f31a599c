"""A phase of a job as steps that any worker takes. The job's own takes them too: alone, it does them all by itself."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import structlog

from models.training import Watch
from service.errors import NotFound, WinnowError
from service.jobs import calling, steps
from service.jobs.steps import PhaseState, Standing, StepClaim
from service.jobs.tables import Step
from worker.context import Context
from worker.stepping import Work, attempt

LOOK_EVERY_S = 0.1

log = structlog.get_logger()


def worth_sharing(context: Context, images: int) -> bool:
    """Fewer than two steps' worth of images is not worth what it takes to tell others of them."""
    return images > 2 * context.settings.step_images


def fan_out(
    context: Context, phase: str, images: int, given: dict[str, Any], work: Work, watch: Watch
) -> Iterator[bytes]:
    """The results of the steps in order, once all are there. given: what other workers need to compute the same.

    Raises Stopped, LeaseLost, and the error of a step that is out of attempts.
    """
    size = context.settings.step_images
    bounds = [(start, min(start + size, images)) for start in range(0, images, size)]
    most = context.settings.max_attempts
    owner, database = context.claim, context.database
    context.patiently(partial(steps.open_phase, database, owner, phase, bounds, given, max_attempts=most))
    while True:
        context.patiently(partial(calling.call, database, context.runtime.doorbell, owner.job_id, phase))
        _work_until_done(context, phase, images, work, watch)
        done = context.patiently(partial(_results, context, phase))
        gone = [step.number for step in done if not _is_whole(context, step)]
        if not gone:
            return (context.storage.read(step.key or "") for step in done)
        log.warning("results of steps are gone, they are computed again", steps=gone)
        context.patiently(partial(steps.reopen, database, owner, phase, gone))


def _work_until_done(context: Context, phase: str, images: int, work: Work, watch: Watch) -> None:
    while True:
        context.progress.check()
        stands = context.patiently(partial(_standing, context, phase))
        watch.advance(stands.done, images)
        if stands.state == PhaseState.DONE:
            return
        if stands.state == PhaseState.FAILED:
            raise _failure(phase, stands)
        claim = context.patiently(partial(_claim, context, phase))
        if claim is None:
            time.sleep(LOOK_EVERY_S)  # others have the rest
        else:
            attempt(context.runtime, claim, work, context.progress.stopping)


def _claim(context: Context, phase: str) -> StepClaim | None:
    runtime = context.runtime
    lease_seconds = runtime.settings.lease_seconds
    return steps.claim(
        context.database, context.claim.job_id, phase, worker=runtime.worker, lease_seconds=lease_seconds
    )


def _standing(context: Context, phase: str) -> Standing:
    with context.database.session() as session:
        return steps.standing(session, context.claim.job_id, phase)


def _results(context: Context, phase: str) -> Sequence[Step]:
    with context.database.session() as session:
        return steps.results(session, context.claim.job_id, phase)


def _is_whole(context: Context, step: Step) -> bool:
    """Whether the result is there, and what was written: a restored backup has none, a disk may have lost some."""
    try:
        return hashlib.sha256(context.storage.read(step.key or "")).hexdigest() == step.digest
    except NotFound:
        return False


def _failure(phase: str, stands: Standing) -> WinnowError:
    error = stands.error or {"code": "internal", "message": "no reason was kept"}
    message = f"A step of {phase} failed in each of its attempts, the last time so: {error['message']}"
    return WinnowError(message, code=error["code"])
