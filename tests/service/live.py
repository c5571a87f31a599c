"""Serves an app on a real loopback port for as long as a test needs it."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from fastapi import FastAPI

from service.server import Server

NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Loopback speaks no TLS, and to load the authorities anew for each client takes longer than most tests."""


@contextmanager
def serving(app: FastAPI, *, key: str) -> Iterator[httpx.Client]:
    """A client of `app`, which runs under uvicorn in a thread."""
    server = Server.of(app, app.state.settings.model_copy(update={"port": 0}))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started:
            if time.monotonic() > deadline:
                raise TimeoutError("the gateway did not start")
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, verify=NO_AUTHORITIES, timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
