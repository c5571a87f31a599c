"""What a worker does while the database is away: it waits, and looks whether there is still sense in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.db import is_away

DATABASE_AGAIN_S = 0.5

log = structlog.get_logger()
T = TypeVar("T")


def patiently(call: Callable[[], T], check: Callable[[], None]) -> T:
    """What `call` gives, once the database is there. check: raises where there is no sense in waiting any longer."""
    while True:
        try:
            return call()
        except SQLAlchemyError as error:
            if not is_away(error):
                raise
            log.warning("waiting for the database", error=str(error))
            check()
            time.sleep(DATABASE_AGAIN_S)
