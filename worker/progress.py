"""How far a job is: phases with their expected shares, told by the step, read by the heartbeat."""

from __future__ import annotations

import threading
import time
from typing import Any

from models.training import Stopped
from service.allocator import give_back

LONG_S = 1.0
"""After a phase of so many seconds it is worth some milliseconds to give memory back."""


class Progress:
    """Shared by the step's thread and the heartbeat's; also where the order to stop is left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shares: dict[str, float] = {}
        self._phase: str | None = None
        self._done = 0
        self._total = 0
        self._unit = ""
        self._began = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.stopping = threading.Event()

    def plan(self, shares: dict[str, float]) -> None:
        """Name the phases in order, each with its expected share of the time, in any unit."""
        whole = sum(shares.values())
        with self._lock:
            self._shares = {phase: share / whole for phase, share in shares.items()}

    def enter(self, phase: str, unit: str = "batches") -> PhaseWatch:
        """Begin a phase of the plan."""
        with self._lock:
            if phase not in self._shares:
                raise ValueError(f"{phase!r} is not in the plan: {', '.join(self._shares)}")
            took_s = self._close_phase()
            self._phase, self._done, self._total, self._unit = phase, 0, 0, unit
        if took_s > LONG_S:
            give_back()
        self.check()
        return PhaseWatch(self)

    def close(self) -> dict[str, float]:
        """Seconds spent in each phase."""
        with self._lock:
            self._close_phase()
            return dict(self.seconds)

    def advance(self, done: int, total: int) -> None:
        with self._lock:
            self._done, self._total = done, total
        self.check()

    def check(self) -> None:
        """Raises Stopped where the job is to end."""
        if self.stopping.is_set():
            raise Stopped

    def snapshot(self) -> dict[str, Any]:
        with self._lock:
            fraction = 0.0
            for phase, share in self._shares.items():
                if phase == self._phase:
                    fraction += share * (min(1.0, self._done / self._total) if self._total else 0.0)
                    break
                fraction += share
            return {
                "done": self._done,
                "total": self._total,
                "unit": self._unit,
                "phase": self._phase,
                "fraction": round(fraction if self._phase else 0.0, 4),
            }

    def _close_phase(self) -> float:
        """How many seconds it took."""
        present = time.monotonic()
        took = present - self._began
        if self._phase is not None:
            self.seconds[self._phase] = round(self.seconds.get(self._phase, 0.0) + took, 3)
        self._began = present
        return took


class PhaseWatch:
    """The Watch that the mathematics report to."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def advance(self, done: int, total: int) -> None:
        self._progress.advance(done, total)
