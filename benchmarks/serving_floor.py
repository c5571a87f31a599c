"""What HTTP alone costs here: an application that does nothing, under the server that Winnow runs under."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import Receive, Scope, Send

from benchmarks.serving_client import Blocking
from benchmarks.serving_gateway import free_port

PATIENCE_S = 30.0


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads a body that comes in one piece, and answers two bytes."""
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def empty_server() -> Iterator[int]:
    """Its port."""
    port = free_port()
    options = [
        "--loop",
        "uvloop",
        "--http",
        "httptools",
        "--lifespan",
        "off",
        "--no-access-log",
        "--log-level",
        "error",
    ]
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), *options, "benchmarks.serving_floor:app"]
    process = subprocess.Popen(command)
    try:
        _wait(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"uvicorn ended with {process.returncode}")
        try:
            Blocking(port).close()
        except OSError:
            time.sleep(0.1)
            continue
        return
    raise TimeoutError("uvicorn did not come up")
