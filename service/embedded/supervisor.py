"""Keeps the parts of a stack running: one loop that starts, restarts and ends them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from service.embedded.guarding import Guard
from service.embedded.part import Part, PartSpec, cap_log, last_line
from service.embedded.state import StackState, write_state
from service.errors import Unavailable

TICK_S = 0.05
FAILURES_BEFORE_READY = 5
LOG_CHECK_EVERY_S = 10.0
WAITING_NOTE_EVERY_S = 10.0

Say = Callable[[str], None]
Missing = Callable[[], str | None]


class Supervisor:
    """Single-threaded. `state` says who we are; with `bound_to` the stack ends when that parent does."""

    def __init__(self, home: Path, state: StackState, guard: Guard, say: Say, bound_to: int | None = None) -> None:
        self.home = home
        self.state = state
        self.say = say
        self.guard = guard
        self.bound_to = bound_to
        self.parts: list[Part] = []
        self.stop_requests = 0
        self.ready = False
        self._began = time.monotonic()

    def catch_signals(self) -> None:
        """SIGINT, SIGTERM and SIGHUP end the stack; a second one ends it at once."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self.stop_requests += 1

    def add(self, spec: PartSpec) -> Part:
        """Start a part and keep it running from here on."""
        logs = self.home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        part = Part(spec, logs / f"{spec.name}.log")
        self.parts.append(part)
        self._start(part)
        return part

    def _start(self, part: Part) -> None:
        self.guard.watch(part.start())
        self._publish()

    def _publish(self) -> None:
        parts = {part.spec.name: part.pid for part in self.parts if part.pid is not None}
        told = self.state
        write_state(self.home, StackState(told.pid, told.port, told.url, told.started_at, parts))

    def run(self, missing: Missing) -> None:
        """Supervise until asked to stop. Raises Unavailable (`part_fails`) where a part cannot even start.

        missing: tells what the stack still waits for, None when it is ready.
        """
        checked_logs = noted = time.monotonic()
        while not self.stop_requests and not self._is_orphaned():
            self.tend()
            now = time.monotonic()
            if not self.ready:
                what = missing()
                if what is None:
                    self.ready = True
                    self.say(f"ready in {time.monotonic() - self._began:.1f} s at {self.state.url}")
                elif now - noted > WAITING_NOTE_EVERY_S:
                    noted = now
                    self.say(f"still waiting for {what}; logs in {self.home / 'logs'}")
            if now - checked_logs > LOG_CHECK_EVERY_S:
                checked_logs = now
                for part in self.parts:
                    cap_log(part.log)
            time.sleep(TICK_S)

    def _is_orphaned(self) -> bool:
        return self.bound_to is not None and os.getppid() != self.bound_to

    def tend(self) -> None:
        """One round: collect the parts that ended, restart those whose time has come."""
        if self.guard.replace_if_dead():
            self.say("guard had ended; restarted it")
        for part in self.parts:
            if (end := part.collect_end()) is not None:
                self._on_end(part, *end)
            if part.start_at is not None and time.monotonic() >= part.start_at:
                self._start(part)

    def _on_end(self, part: Part, group: int, how: str) -> None:
        self.guard.forget(group)
        name = part.spec.name
        if not self.ready and part.quick_failures >= FAILURES_BEFORE_READY:
            raise Unavailable(
                f"The {name} cannot start: it {how}, {part.quick_failures} times in a row. "
                f"Its last words: {last_line(part.log)} (whole log: {part.log})",
                code="part_fails",
            )
        delay_s = part.plan_restart()
        self.say(f"{name} (pid {group}) {how}; restarting it in {delay_s:.1f} s (log: {part.log})")

    def end(self, *parts: Part) -> None:
        """End `parts` together: SIGTERM, a grace period each, SIGKILL. A further stop request cuts the grace short."""
        began, requests = time.monotonic(), self.stop_requests
        for part in parts:
            part.start_at = None
            part.ask_to_end()
        left = [part for part in parts if part.pid is not None]
        while left:
            for part in left:
                overdue = time.monotonic() - began > part.spec.grace_s
                if overdue or self.stop_requests > max(requests, 1):
                    part.kill()
                if (end := part.collect_end()) is not None:
                    self.guard.forget(end[0])
            left = [part for part in left if part.pid is not None]
            time.sleep(TICK_S if left else 0)
