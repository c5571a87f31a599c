"""What an exception of a step of work means to the user: a stable code, and what to do."""

from __future__ import annotations

from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from models.calibration import AlphaTooSmall
from models.training import Diverged
from service.db import is_away
from service.disk import is_full, scratch_full
from service.errors import WinnowError

UNFORESEEN = ("out_of_memory", "internal")
"""Codes of failures after which nobody knows what state the process is in."""

log = structlog.get_logger()


def told(error: Exception, what: str) -> dict[str, Any]:
    """The code and message that are kept of it. what: was being done, for one that nobody thought of."""
    if isinstance(error, MemoryError) or _is_memory_of_torch(error):
        message = "The worker ran out of memory. Try a smaller image size or fewer images."
        return {"code": "out_of_memory", "message": message}
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        message = "The worker ran out of memory, or of the threads that its container or user may have (pids limit)."
        return {"code": "out_of_memory", "message": f"{message} Give it more, or try a smaller image size."}
    if isinstance(error, OSError) and is_full(error):
        error = scratch_full(error)
    if isinstance(error, SQLAlchemyError) and is_away(error):
        return {"code": "database_unavailable", "message": _of_database(error)}
    if isinstance(error, WinnowError):
        return {"code": error.code, "message": str(error)}
    if isinstance(error, AlphaTooSmall):
        return {"code": "alpha_too_small", "message": str(error)}
    if isinstance(error, Diverged):
        return {"code": "training_diverged", "message": str(error)}
    log.error("failed unexpectedly", exc_info=error)
    return {"code": "internal", "message": f"{what} broke: {type(error).__name__}: {error}"}


def _of_database(error: SQLAlchemyError) -> str:
    """What the driver says, without the statement."""
    said = str(error.orig if isinstance(error, DBAPIError) else error).strip()
    return (
        f"The database refused or did not answer: {said.splitlines()[0][:300] if said else type(error).__name__}. "
        "Nothing half-written is visible; winnow doctor says what is wrong with it. Mend it, then retry the job."
    )


def _is_memory_of_torch(error: Exception) -> bool:
    """Not every worker has loaded torch, whose error on a CPU is of no type of its own."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
