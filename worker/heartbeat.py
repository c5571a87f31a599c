"""Keeps a lease alive beside the work that it is for, and carries orders to stop the other way."""

from __future__ import annotations

import threading
from enum import StrEnum
from types import TracebackType
from typing import Any, Protocol, Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.errors import LeaseLost
from service.jobs.state import JobState
from worker.progress import Progress
from worker.runtime import Runtime

log = structlog.get_logger()


class Flag(Protocol):
    """A flag that another process may raise."""

    def is_set(self) -> bool: ...


class Renew(Protocol):
    """Prolongs the lease and stores the progress; the state of the job. Raises LeaseLost."""

    def __call__(self, *, progress: dict[str, Any]) -> JobState: ...


class StopReason(StrEnum):
    CANCEL = "cancel"
    LEASE_LOST = "lease lost"
    SHUTDOWN = "shutdown"


class Heartbeat:
    """A thread for as long as the `with` block runs; `reason` says why it told the step to stop."""

    def __init__(self, runtime: Runtime, renew: Renew, progress: Progress, shutting_down: Flag) -> None:
        """Log lines carry what is bound where it is made."""
        self._runtime = runtime
        self._renew = renew
        self._bound = structlog.contextvars.get_contextvars()
        self._progress = progress
        self._shutting_down = shutting_down
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.reason: StopReason | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        with structlog.contextvars.bound_contextvars(**self._bound):
            while not self._ended.wait(self._runtime.settings.heartbeat_seconds) and self.reason is None:
                self.reason = self._once()
                if self.reason is not None:
                    self._progress.stopping.set()

    def _once(self) -> StopReason | None:
        if self._shutting_down.is_set():
            return StopReason.SHUTDOWN
        try:
            state = self._renew(progress=self._progress.snapshot())
        except LeaseLost:
            return StopReason.LEASE_LOST
        except SQLAlchemyError as error:  # the lease may outlive a short absence of the database
            log.warning("lease not renewed", error=str(error))
            return None
        return StopReason.CANCEL if state == JobState.CANCELLING else None
