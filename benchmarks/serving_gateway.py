"""The gateway of the serving benchmark: a process of its own, started and stopped as in production."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.serving_client import Blocking, triton_request
from benchmarks.serving_model import NAME, SHAPE, Home


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def infer_request(home: Home, row: int, *, reference: str = NAME, count: int = 1) -> bytes:
    pixels = home.images[row : row + count].tobytes()
    headers = {"Authorization": f"Bearer {home.key}"}
    return triton_request(f"/v2/models/{reference}/infer", pixels, [count, *SHAPE], headers)


def shared_out(cores: int) -> dict[str, str]:
    """A process for each core, one call at a time in each."""
    return {"gateway_processes": str(cores), "serving_threads": "1"}


@contextmanager
def gateway(home: Home, **settings: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Port and process; it is up and the model warm. It ends with the block."""
    port = free_port()
    told = {f"WINNOW_{name.upper()}": value for name, value in settings.items()}
    environment = {
        **os.environ,
        "WINNOW_HOME": str(home.settings.home),
        "WINNOW_PORT": str(port),
        "WINNOW_REDIS_URL": home.settings.redis_url,
        "WINNOW_LOG_LEVEL": "WARNING",
        **told,
    }
    with (Path(home.settings.home) / "gateway.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "service"], env=environment, stdout=log, stderr=log)
    try:
        _wait_until_warm(home, port, process, settings.get("gateway_processes", "1"))
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_until_warm(home: Home, port: int, process: subprocess.Popen[bytes], wanted: str) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the gateway ended with {process.returncode}: see gateway.log in its home")
        try:
            client = Blocking(port)
            status, body = client.ask(infer_request(home, 0))
            client.close()
        except OSError:
            time.sleep(0.1)
            continue
        if status == 200:
            _wait_for_all(home, port, int(wanted), until)
            return
        raise RuntimeError(f"the gateway answers {status}: {body[:300]!r}")
    raise TimeoutError("the gateway did not come up")


def _wait_for_all(home: Home, port: int, processes: int, until: float) -> None:
    """All of them there, and warm."""
    headers, url = {"Authorization": f"Bearer {home.key}"}, f"http://127.0.0.1:{port}"
    while f"winnow_gateway_processes {processes}.0" not in httpx.get(f"{url}/metrics", headers=headers).text:
        if time.monotonic() > until:
            raise TimeoutError(f"the gateway did not come up with {processes} processes")
        time.sleep(0.1)
    httpx.post(f"{url}/v2/repository/models/{NAME}/load", headers=headers, timeout=60).raise_for_status()
