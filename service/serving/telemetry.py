"""What becomes of answers once they are out: counted and watched for drift, off the event loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import structlog

from service.errors import WinnowError
from service.metrics import Metrics
from service.serving.answers import DEFAULTS, Answers, Observed, Options

MOST_WAITING = 8192
GATHER_S = 0.1
"""After the first thing to take in, so that it is worth the switch of threads. With nothing to do, nothing wakes."""

log = structlog.get_logger()


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
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take in what waits, and end."""
        self._closing.set()
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
            while self._waiting:
                self._take(self._waiting.popleft())

    def _put(self, item: Answered | Seen | str) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self.metrics.dropped.inc()
            return
        self._waiting.append(item)
        if not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(GATHER_S)
            self._wake.clear()
            self.flush()

    def _take(self, item: Answered | Seen | str) -> None:
        metrics = self.metrics
        if isinstance(item, Answered):
            metrics.requests.labels(item.method, item.route, str(item.status)).inc()
            metrics.request_seconds.labels(item.method, item.route).observe(item.seconds)
        elif isinstance(item, str):
            metrics.refusals.labels(item).inc()
        else:
            self._count(item)
            for take in self.takers:
                take(item)

    def _count(self, seen: Seen) -> None:
        metrics, answers = self.metrics, seen.answers
        labels = metrics.model(seen.tenant, answers.model)
        metrics.images.labels(*labels).inc(len(answers))
        metrics.batch_images.observe(answers.timing.batch_images)
        metrics.stage_seconds.labels("queue").observe(answers.timing.queued_s)
        metrics.stage_seconds.labels("compute").observe(answers.timing.computed_s)
        if seen.standard:
            metrics.p_values.observe(labels, answers.p_value)
        if np.any(answers.abstained):
            for reason in filter(None, answers.reason):
                metrics.abstentions.labels(*labels, reason).inc()
