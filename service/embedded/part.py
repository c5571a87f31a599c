"""One supervised process: start it, see how it ended, decide when it starts again, end it with all its children."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LOG_CAP_BYTES = 10 * 1024 * 1024
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0  # whatever is killed again and again, the work goes on within a lease and this
STEADY_AFTER_S = 30.0  # a part up this long starts its back-off anew


@dataclass(frozen=True)
class PartSpec:
    """What to run. `grace_s`: from SIGTERM to SIGKILL."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    grace_s: float


class Part:
    """A process in its own session, so that a Ctrl-C in the terminal reaches the supervisor alone."""

    def __init__(self, spec: PartSpec, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.quick_failures = 0  # ends in a row, each before STEADY_AFTER_S
        self.start_at: float | None = None  # monotonic; when to start again
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> int:
        """Start the process; gives its pid, which is its process group too."""
        cap_log(self.log)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - what the supervisor was built to run
                self.spec.argv,
                env=dict(self.spec.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started = time.monotonic()
        self.start_at = None
        return self._process.pid

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def collect_end(self) -> tuple[int, str] | None:
        """The process group and a description of how the process ended, once it has; else None.

        Whatever the process left behind in its group is killed.
        """
        if self._process is None or (status := self._process.poll()) is None:
            return None
        group, lived_s = self._process.pid, time.monotonic() - self._started
        _signal_group(group, signal.SIGKILL)
        self._process = None
        self.quick_failures = 0 if lived_s > STEADY_AFTER_S else self.quick_failures + 1
        return group, f"{describe_exit(status)} after {lived_s:.0f} s"

    def plan_restart(self) -> float:
        """Decide when it starts again; gives the delay in seconds."""
        delay_s = min(FIRST_DELAY_S * 2.0 ** max(self.quick_failures - 1, 0), LONGEST_DELAY_S)
        self.start_at = time.monotonic() + delay_s
        return delay_s

    def ask_to_end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)


def describe_exit(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def cap_log(path: Path, cap_bytes: int = LOG_CAP_BYTES) -> None:
    """Move what `path` holds to `path.1` once it is over the cap; safe while a process appends to it."""
    if path.exists() and path.stat().st_size > cap_bytes:
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)


def last_line(path: Path, longest: int = 300) -> str:
    """The last line of a log that says something."""
    with path.open("rb") as log:
        log.seek(max(path.stat().st_size - 8192, 0))
        lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip()[:longest] for line in reversed(lines) if line.strip()), "(nothing logged)")


def _signal_group(group: int, signum: int) -> None:
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):  # gone, or (macOS) only zombies left
        return
