"""`python -m service`: the gateway under uvicorn, settings from the environment."""

from __future__ import annotations

import uvicorn

from service.app import create_app
from service.logs import configure_logs
from service.settings import Settings

GRACE_SECONDS = 5


def main() -> None:
    settings = Settings.from_env()
    configure_logs(settings.log_level, part="gateway")
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    main()
