"""What becomes of answers once they are out: counted and watched for drift, off the event loop."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import structlog

from service.errors import WinnowError
from service.metrics import Metrics
from service.serving.answers import DEFAULTS, Answers, Observed, Options

log = structlog.get_logger()

MOST_WAITING = 8192
GATHER_S = 1.0
"""After the first thing to take in, unless many are: taking in holds up the answer that is being made meanwhile.

With nothing to do, nothing wakes.
"""

ItemT = TypeVar("ItemT")
KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Answered:
    """An HTTP request that was answered; `route` is the template, never the path."""

    method: str
    route: str
    status: int
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What is kept of an inference request until it is counted: its answers, not its images."""

    tenant: str
    answers: Answers
    options: Options

    @property
    def standard(self) -> bool:
        """Whether it was asked for as the calibration was made, so that its p-values mean what they say."""
        return replace(self.options, alpha=None) == DEFAULTS


Take = Callable[[Seen], None]


class Telemetry:
    """Takes what happened from the event loop in a microsecond, and works it off in a thread of its own."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.takers: list[Take] = []
        self._waiting: deque[Answered | Seen | str] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._many = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take in what waits, and end."""
        self._closing.set()
        self._many.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def watch(self, observed: Observed) -> None:
        """A watcher of the engine."""
        self._put(Seen(observed.tenant, observed.answers, observed.options))

    def refused(self, _tenant: str, error: WinnowError) -> None:
        """A watcher of the engine's refusals."""
        self._put(error.code)

    def answered(self, request: Answered) -> None:
        self._put(request)

    def flush(self) -> None:
        """Take in all that happened until now; for those who are about to look."""
        with self._lock:
            items = [self._waiting.popleft() for _ in range(len(self._waiting))]
            seen = [item for item in items if isinstance(item, Seen)]
            self._count_requests([item for item in items if isinstance(item, Answered)])
            self._count_images(seen)
            for code, times in Counter(item for item in items if isinstance(item, str)).items():
                self.metrics.refusals.labels(code).inc(times)
                log.info("inference requests turned away", code=code, times=times)
            for each in seen:
                for take in self.takers:
                    take(each)

    def _put(self, item: Answered | Seen | str) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self.metrics.dropped.inc()
            return
        self._waiting.append(item)
        if not self._wake.is_set():
            self._wake.set()
        if len(self._waiting) == MOST_WAITING // 4:
            self._many.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._many.wait(GATHER_S)
            self._wake.clear()
            self._many.clear()
            self.flush()

    def _count_requests(self, requests: list[Answered]) -> None:
        metrics = self.metrics
        for labels, times in Counter((each.method, each.route, str(each.status)) for each in requests).items():
            metrics.requests.labels(*labels).inc(times)
        for (method, route), found in _grouped(requests, lambda each: (each.method, each.route)):
            metrics.request_seconds.observe((method, route), [each.seconds for each in found])

    def _count_images(self, seen: list[Seen]) -> None:
        """Together for each version: a number at a time would cost more than answering did."""
        metrics = self.metrics
        for key, found in _grouped(seen, lambda each: (each.tenant, each.answers.model)):
            labels = metrics.model(*key)
            timings = [each.answers.timing for each in found]
            metrics.images.labels(*labels).inc(sum(len(each.answers) for each in found))
            metrics.batch_images.observe((), [timing.batch_images for timing in timings])
            metrics.stage_seconds.observe(("queue",), [timing.queued_s for timing in timings])
            metrics.stage_seconds.observe(("compute",), [timing.computed_s for timing in timings])
            if p_values := [each.answers.p_value for each in found if each.standard]:
                metrics.p_values.observe(labels, np.concatenate(p_values))
            reasons = Counter(reason for each in found for reason in each.answers.reason if reason is not None)
            for reason, times in reasons.items():
                metrics.abstentions.labels(*labels, reason).inc(times)


def _grouped(items: Iterable[ItemT], key: Callable[[ItemT], KeyT]) -> Iterable[tuple[KeyT, list[ItemT]]]:
    groups: dict[KeyT, list[ItemT]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups.items()
