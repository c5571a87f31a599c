"""`python -m service`: the gateway under uvicorn, settings from the environment."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import uvicorn

from service.api import tracing
from service.app import create_app
from service.logs import configure_logs
from service.server import GRACE_SECONDS, Server
from service.settings import Settings

NOT_STARTED = 3  # as uvicorn's own command exits


def main() -> None:
    settings = Settings.from_env()
    configure_logs(settings.log_level, part="gateway")
    app = create_app(settings)
    tracing.install(app, os.environ)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=settings.forwarded_allow_ips or None,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = Server(config, on_stop=app.state.feeds.close)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(NOT_STARTED)


if __name__ == "__main__":
    main()
