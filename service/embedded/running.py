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
from typing import Any

from service.auth import admin_key_path
from service.embedded.part import last_line
from service.embedded.stack import part_environment, what_is_missing
from service.embedded.state import read_state
from service.errors import Unavailable
from service.settings import Settings

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


@contextmanager
def another_worker(
    stack: RunningStack, log: Path, *, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A further worker of the stack until the end of the block, which begins when it is ready.

    environment: what the stack was given too. Raises Unavailable (`worker_not_ready`).
    """
    given = dict(environment or {})
    settings = settings_of(stack, given)
    url = settings.redis_url or f"redis+socket://{stack.home / 'broker' / 'broker.sock'}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker"],
            env={**part_environment(settings, port=0, redis_url=url), **given},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while b"ready" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"The worker did not get ready: {last_line(log)}", code="worker_not_ready")
            time.sleep(LOOK_EVERY_S)
        yield process
    finally:
        _end(process)


def settings_of(stack: RunningStack, environment: Mapping[str, str]) -> Settings:
    """Those that the stack has, where it was given this environment."""
    known = {name: environment.get(f"WINNOW_{name.upper()}") for name in Settings.model_fields}
    given: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
    return Settings(**{**given, "home": stack.home}).resolved()


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
