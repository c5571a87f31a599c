"""`python -m service.prepare`: waits for the database, brings it to the newest schema, makes the admin key."""

from __future__ import annotations

import sys
import time

import structlog
from sqlalchemy.exc import OperationalError

from service.auth import ensure_admin_key
from service.db import migrate
from service.errors import WinnowError
from service.logs import configure_logs
from service.secrets import refuse_default_secrets
from service.settings import Settings

log = structlog.get_logger()


def prepare(settings: Settings) -> None:
    """Raises OperationalError where the database does not answer in time."""
    deadline = time.monotonic() + settings.start_patience_seconds
    while True:
        try:
            migrate(settings)
            break
        except OperationalError as error:
            if time.monotonic() > deadline:
                raise
            log.warning("waiting for the database", reason=type(error.orig).__name__)
            time.sleep(1)
    ensure_admin_key(settings)


def main() -> None:
    settings = Settings.from_env()
    configure_logs(settings.log_level, part="prepare")
    try:
        refuse_default_secrets(settings)
        prepare(settings)
    except WinnowError as error:
        log.error("not started", code=error.code, reason=error.message)
        sys.exit(1)


if __name__ == "__main__":
    main()
