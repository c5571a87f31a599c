"""An embedded stack as a child of this process: for the demo, benchmarks and tests, which need one for a while."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.auth import admin_key_path
from service.embedded.part import last_line
from service.embedded.stack import what_is_missing
from service.embedded.state import read_state
from service.errors import Unavailable

READY_TIMEOUT_S = 60.0
END_TIMEOUT_S = 30.0
LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class RunningStack:
    """A stack that is ready for work."""

    home: Path
    url: str
    process: subprocess.Popen[bytes]
    ready_after_s: float

    @property
    def key_path(self) -> Path:
        return admin_key_path(self.home)

    @property
    def key(self) -> str:
        return self.key_path.read_text().strip()


@contextmanager
def running_stack(
    home: Path, *, port: int = 0, environment: Mapping[str, str] | None = None, timeout_s: float = READY_TIMEOUT_S
) -> Iterator[RunningStack]:
    """`winnow up` in `home` until the end of the block; it ends too if this process is killed.

    Raises Unavailable (`stack_not_ready`) where it does not get ready. What it says goes to logs/up.log in the home.
    """
    home = home.resolve()
    log = home / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [
                sys.executable,
                "-P",
                "-m",
                "service.cli",
                "up",
                f"--home={home}",
                f"--port={port}",
                f"--bound-to={os.getpid()}",
            ],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for us; we end it ourselves
        )
    try:
        url = _wait_until_ready(home, process, log, deadline=began + timeout_s)
        yield RunningStack(home, url, process, time.monotonic() - began)
    finally:
        _end(process)


def _wait_until_ready(home: Path, process: subprocess.Popen[bytes], log: Path, *, deadline: float) -> str:
    missing: str | None = "the supervisor"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Unavailable(f"'winnow up' in {home} ended at once: {last_line(log)}", code="stack_not_ready")
        state = read_state(home)
        if state is not None and state.pid == process.pid:
            host = state.url.removeprefix("http://").rpartition(":")[0].strip("[]")
            missing = what_is_missing(host, state.port)
            if missing is None:
                return state.url
        time.sleep(LOOK_EVERY_S)
    raise Unavailable(f"The stack in {home} did not get ready: {missing}. Logs: {log.parent}", code="stack_not_ready")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its guard ends the parts
        process.wait()
