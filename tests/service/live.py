"""Serves an app on a real loopback port for as long as a test needs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from service.server import Server


@contextmanager
def serving(app: FastAPI, *, key: str) -> Iterator[httpx.Client]:
    """A client of `app`, which runs under uvicorn in a thread."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error")
    server = Server(config, on_stop=app.state.feeds.close)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started:
            if time.monotonic() > deadline:
                raise TimeoutError("the gateway did not start")
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
