"""`python -m service`: the gateway under uvicorn, settings from the environment."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress

from service.allocator import share_arenas
from service.api import tracing
from service.app import create_app
from service.logs import configure_logs
from service.server import SWITCH_SECONDS, Connection, Server
from service.settings import Settings
from service.siblings.connections import Dealt

NOT_STARTED = 3  # as uvicorn's own command exits


def main() -> None:
    share_arenas()
    settings = Settings.from_env()
    configure_logs(settings.log_level, part="gateway")
    app = create_app(settings)
    tracing.install(app, os.environ)
    several = settings.gateway_processes > 1
    server = Server.of(app, settings, http=Dealt if several else Connection)
    if several:
        app.state.siblings.engage(settings.gateway_processes - 1, server.adopt)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what was imported stays: to go through it again would hold up an answer by tens of milliseconds
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(NOT_STARTED)


if __name__ == "__main__":
    main()
