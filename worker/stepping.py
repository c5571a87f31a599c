"""One attempt at one step: its lease is kept, its result published once, and what goes wrong costs this step alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial

import structlog
from sqlalchemy.exc import SQLAlchemyError

from models.training import Stopped, Watch
from service.errors import LeaseLost
from service.jobs import artifacts, steps
from service.jobs.steps import StepClaim
from service.tenancy import TenantStorage
from worker.failures import UNFORESEEN, told
from worker.heartbeat import Flag, Heartbeat
from worker.progress import PhaseWatch, Progress
from worker.runtime import Runtime
from worker.waiting import patiently

Work = Callable[[StepClaim, Watch], bytes]
"""Computes a step's result, which is the same whoever computes it; the watch is told how many images are done."""

log = structlog.get_logger()


CANNOT = "cannot help"


class CannotHelp(Exception):
    """This worker lacks what the step takes; another may have it, and who owns the job has."""


class StepWatch:
    """The watch of a step. It also stops where what the step is part of is to stop, without waiting for a beat."""

    def __init__(self, watch: PhaseWatch, stopping: Flag) -> None:
        self._watch, self._stopping = watch, stopping

    def advance(self, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise Stopped
        self._watch.advance(done, total)


def attempt(runtime: Runtime, claim: StepClaim, work: Work, stopping: Flag) -> bool:
    """Raises nothing: afterwards the step has succeeded, failed, been given back, or belongs to another.

    False where this worker cannot do such steps.

    stopping: raised where this process is to end, or the job.
    """
    began = time.monotonic()
    with structlog.contextvars.bound_contextvars(phase=claim.phase, step=claim.number, step_attempt=claim.attempt):
        try:
            ended = _run(runtime, claim, work, stopping)
        except LeaseLost as error:
            ended = "superseded"
            log.warning("step superseded, nothing published", reason=error.message)
        except SQLAlchemyError as error:
            ended = "left"  # its lease runs out, and it is another's
            log.warning("how the step ended could not be said", reason=str(error))
        took_s = time.monotonic() - began
        runtime.metrics.step_ended(claim.phase, ended, took_s)
        log.info("step ended", state=ended, took_s=round(took_s, 3))
    return ended != CANNOT


def _run(runtime: Runtime, claim: StepClaim, work: Work, stopping: Flag) -> str:
    progress = Progress()
    progress.plan({claim.phase: 1.0})
    watch = StepWatch(progress.enter(claim.phase, unit="images"), stopping)
    renew = partial(steps.renew, runtime.database, claim, lease_seconds=runtime.settings.lease_seconds)
    try:
        with Heartbeat(runtime, renew, progress, stopping):
            result = work(claim, watch)
            key, digest = _keep(runtime, claim, result)
            publish = partial(steps.finish, runtime.database, claim, key=key, digest=digest)
            if patiently(publish, progress.check):
                log.info("the last step of its phase")
        return "succeeded"
    except Stopped:
        steps.give_back(runtime.database, claim)
        return "given back"
    except CannotHelp as error:
        steps.give_back(runtime.database, claim)
        log.warning("cannot help", reason=str(error))
        return CANNOT
    except (LeaseLost, SQLAlchemyError):
        raise
    except Exception as error:  # noqa: BLE001 (a step may fail in any way; the job must say so whatever it was)
        failure = told(error, f"The {claim}")
        if failure["code"] in UNFORESEEN:
            runtime.doubted.set()
        steps.fail(runtime.database, claim, failure)
        return "failed"


def _keep(runtime: Runtime, claim: StepClaim, result: bytes) -> tuple[str, str]:
    """The key and digest of the result. Two attempts write to two keys; the database says which one counts."""
    storage = TenantStorage(runtime.storage, claim.job.tenant)
    key = f"{artifacts.steps_prefix(claim.job.job_id, claim.phase)}/{claim.number:06d}-{claim.attempt}"
    storage.write(key, result)
    return key, hashlib.sha256(result).hexdigest()
