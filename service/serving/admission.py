"""The gate in front of the engine: a bounded number of requests in house, and a quick no with a time to come back."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.serving.errors import QueueFull

SMOOTHING = 0.1  # weight of the newest request in the running mean
LONGEST_RETRY_SECONDS = 30


class Gate:
    """Lets `places` requests in at once; those over it are refused before anything of theirs is read."""

    def __init__(self, places: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = places
        self._clock = clock
        self._lock = threading.Lock()
        self._inside = 0
        self._mean_seconds: float | None = None

    @property
    def inside(self) -> int:
        return self._inside

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place for the block. Raises QueueFull, with the seconds in which all the places turn over."""
        self._take()
        began = self._clock()
        try:
            yield
        finally:
            self._give_back(self._clock() - began)

    def _take(self) -> None:
        with self._lock:
            if self._inside < self._places:
                self._inside += 1
                return
            seconds = self._mean_seconds or 0.0
        raise QueueFull(
            f"{self._places} prediction requests are already in house. Come back later, or send fewer at once.",
            retry_after_seconds=min(max(math.ceil(seconds), 1), LONGEST_RETRY_SECONDS),
        )

    def _give_back(self, seconds: float) -> None:
        with self._lock:
            self._inside -= 1
            mean = self._mean_seconds
            self._mean_seconds = seconds if mean is None else (1 - SMOOTHING) * mean + SMOOTHING * seconds
