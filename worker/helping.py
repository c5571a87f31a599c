"""A worker that was called to another's job: takes its steps for a while, then lets others have a turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module

import structlog

from service.allocator import give_back
from service.jobs import calling, steps
from service.jobs.repository import Claim
from service.jobs.steps import StepClaim
from worker.context import Context
from worker.heartbeat import Flag
from worker.progress import LONG_S, Progress
from worker.runtime import Runtime
from worker.stepping import Work, attempt

PHASES = {"decoding": "worker.decode_steps", "scoring": "worker.score_steps"}
"""Each module has `helper(context)`: in it, the Work of a worker that has nothing but what the phase was given."""

TURN_SECONDS = 30.0
"""Long enough for what is loaded at its beginning not to count, short enough for small jobs that wait meanwhile."""

log = structlog.get_logger()


def help_with(runtime: Runtime, job_id: str, phase: str, shutting_down: Flag) -> None:
    """Does nothing where no step is left: a call may come late, or twice."""
    claim = _claim(runtime, job_id, phase)
    if claim is None:
        return
    ids = {"job_id": job_id, "attempt": claim.job.attempt, "request_id": claim.job.request_id}
    began = time.monotonic()
    with structlog.contextvars.bound_contextvars(**ids):
        log.info("helping", phase=phase)
        _take_a_turn(runtime, claim, shutting_down)
    if time.monotonic() - began > LONG_S:
        give_back()


def _take_a_turn(runtime: Runtime, first: StepClaim, shutting_down: Flag) -> None:
    began, claim = time.monotonic(), first
    with _worker_of(runtime, first.job, first.phase) as work:
        while True:
            able = attempt(runtime, claim, work, shutting_down)
            if shutting_down.is_set() or not able:
                return
            if time.monotonic() - began > TURN_SECONDS:
                calling.call(runtime.database, runtime.doorbell, first.job.job_id, first.phase)
                return
            following = _claim(runtime, first.job.job_id, first.phase)
            if following is None:
                return
            claim = following


def _worker_of(runtime: Runtime, job: Claim, phase: str) -> AbstractContextManager[Work]:
    helper: Callable[[Context], AbstractContextManager[Work]] = import_module(PHASES[phase]).helper
    return helper(Context(runtime, job, Progress()))


def _claim(runtime: Runtime, job_id: str, phase: str) -> StepClaim | None:
    lease_seconds = runtime.settings.lease_seconds
    return steps.claim(runtime.database, job_id, phase, worker=runtime.worker, lease_seconds=lease_seconds)
