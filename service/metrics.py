"""Prometheus instruments of one gateway process, and what is read from the database when they are asked for.

Every label has a bounded number of values: routes are templates, codes and states come from lists, and models beyond
MODELS_TOLD share the label "other".
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Counted
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import event, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.db import Database, now
from service.jobs.queue import GPU, QUEUE_OF, QUEUES
from service.jobs.state import FINISHED, OWNED, JobState
from service.jobs.steps import StepState
from service.jobs.tables import Step
from service.tables import Job, Worker

MODELS_TOLD = 200
OTHER = "other"
SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
STATEMENT_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
BATCH_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
P_VALUES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
WORKER_COUNTED_SECONDS = 15.0
STACK_READ_EVERY_S = 5.0
OF_MODEL = ("tenant", "model")
NAMES = {queue: name for name, queue in QUEUES.items()}

log = structlog.get_logger()


class Metrics:
    """The instruments. Safe from several threads; nothing here is shared between two applications of a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self.requests = Counter(
            "winnow_http_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self.request_seconds = ValueHistogram(
            "winnow_http_request_seconds",
            "From a request's first byte to its answer's last.",
            ("method", "route"),
            SECONDS,
        )
        self.stage_seconds = ValueHistogram(
            "winnow_inference_stage_seconds",
            "Time of an inference request in each stage: queue (waiting for its turn), compute (detector, student, "
            "decision).",
            ("stage",),
            SECONDS,
        )
        self.images = Counter(
            "winnow_inference_images", "Images answered or abstained on.", OF_MODEL, registry=registry
        )
        self.batch_images = ValueHistogram(
            "winnow_inference_batch_images", "Images in the call that a request was part of.", (), BATCH_IMAGES
        )
        self.abstentions = Counter(
            "winnow_inference_abstentions", "Images without a label.", (*OF_MODEL, "reason"), registry=registry
        )
        self.refusals = Counter(
            "winnow_inference_refusals", "Inference requests turned away for want of room or time.", ("code",),
            registry=registry,
        )  # fmt: skip
        self.dropped = Counter(
            "winnow_observations_dropped", "Answers that metrics and drift never saw: too many at once.",
            registry=registry,
        )  # fmt: skip
        self.p_values = ValueHistogram(
            "winnow_inference_p_value", "P-values of images under the model's own calibration.", OF_MODEL, P_VALUES
        )
        for histogram in (self.request_seconds, self.stage_seconds, self.batch_images, self.p_values):
            registry.register(histogram)
        self._told: set[tuple[str, str]] = set()

    def model(self, tenant: str, model: str) -> tuple[str, str]:
        """The values of the labels tenant and model, as long as there is room for more of them."""
        key = (tenant, model)
        if key in self._told:
            return key
        if len(self._told) >= MODELS_TOLD:
            return (OTHER, OTHER)
        self._told.add(key)
        return key

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A number that is looked up when the metrics are asked for."""
        self.registry.register(Gauges(lambda: [(name, text, (), [((), read())])]))


class ValueHistogram(Collector):
    """A histogram that takes its values by the array."""

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = np.array(bounds)
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], NDArray[np.int64]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, labels: tuple[str, ...], given: Sequence[float] | NDArray[np.float64]) -> None:
        values = np.asarray(given, dtype=np.float64)
        found = np.bincount(np.searchsorted(self._bounds, values, side="left"), minlength=len(self._bounds) + 1)
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + found
            self._sums[labels] = self._sums.get(labels, 0.0) + float(values.sum())

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        bounds = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        with self._lock:
            for labels, counts in self._counts.items():
                buckets = list(zip(bounds, counts.cumsum().tolist(), strict=True))
                family.add_metric(labels, buckets, self._sums[labels])
        return [family]

    def describe(self) -> Iterable[Metric]:
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]


Family = tuple[str, str, Sequence[str], Sequence[tuple[Sequence[str], float]]]
"""Name, what it is, names of labels, and a value for each of their values."""


class Gauges(Collector):
    """Gauges whose values are asked for anew at each scrape."""

    def __init__(self, read: Callable[[], list[Family]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        for name, text, labels, rows in self._read():
            family = GaugeMetricFamily(name, text, labels=labels)
            for values, value in rows:
                family.add_metric(values, value)
            yield family

    def describe(self) -> Iterable[Metric]:
        return []


class StackState:
    """Jobs, leases and workers of all tenants as gauges; read at most every few seconds, however often asked."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = -STACK_READ_EVERY_S
        self._families: list[Family] = []

    def __call__(self) -> list[Family]:
        """Without the database there are none of them: a gap in the curve, not an old value."""
        with self._lock:
            if self._clock() - self._read_at >= STACK_READ_EVERY_S:
                try:
                    self._families = self._read()
                except SQLAlchemyError as error:
                    log.warning("metrics without the database", reason=type(error).__name__)
                    self._families = []
                self._read_at = self._clock()
            return self._families

    def _read(self) -> list[Family]:
        present = now()
        with self._database.session() as session:
            counted = session.execute(select(Job.type, Job.state, func.count()).group_by(Job.type, Job.state)).all()
            leases = list(session.scalars(select(Job.lease_expires_at).where(Job.state.in_(OWNED))))
            oldest = session.scalar(select(func.min(Job.created_at)).where(Job.state == JobState.QUEUED))
            seen = list(session.scalars(select(Worker.seen_at)))
            steps = steps_of_jobs_at_work(session)
        held = [lease is not None and lease > present for lease in leases]
        alive = sum((present - moment).total_seconds() < WORKER_COUNTED_SECONDS for moment in seen)
        waited = 0.0 if oldest is None else (present - oldest).total_seconds()
        return [
            ("winnow_jobs", "Jobs by type and state.", ("type", "state"), [((t, s), n) for t, s, n in counted]),
            (
                "winnow_job_leases",
                "Jobs that a worker owns: with a lease that holds, or one that ran out.",
                ("state",),
                [(("held",), sum(held)), (("expired",), len(held) - sum(held))],
            ),
            ("winnow_jobs_oldest_queued_seconds", "Age of the job that has waited longest.", (), [((), waited)]),
            *queues([(kind, state, count) for kind, state, count in counted]),
            *steps,
            ("winnow_workers_alive", "Workers that gave a sign of life lately.", (), [((), alive)]),
        ]


def queues(counted: Sequence[tuple[str, str, int]]) -> list[Family]:
    """The jobs of each queue by state, and how many wait; of harden jobs their steps, for they are in no queue."""
    found: Counted[tuple[str, str]] = Counted()
    for kind, state, count in counted:
        if kind != "harden":
            found[NAMES[QUEUE_OF.get(kind, GPU)], state] += count
    waiting = [((queue,), found[queue, JobState.QUEUED]) for queue in QUEUES]
    return [
        ("winnow_queue_jobs", "Jobs by queue and state; a harden job is in none, its steps are.", ("queue", "state"),
         sorted(found.items())),
        ("winnow_queue_depth", "Jobs of a queue that no worker has begun.", ("queue",), waiting),
    ]  # fmt: skip


def steps_of_jobs_at_work(session: Session) -> list[Family]:
    """Steps by phase and state, and the leases of those that a worker has."""
    of_jobs = select(Step.phase, Step.state, func.count()).join(Job, Job.id == Step.job_id)
    counted = session.execute(of_jobs.where(Job.state.not_in(FINISHED)).group_by(Step.phase, Step.state)).all()
    of_running = select(Step.lease_expires_at).join(Job, Job.id == Step.job_id)
    running = of_running.where(Job.state.not_in(FINISHED), Step.state == StepState.RUNNING)
    held = [lease is not None and lease > now() for lease in session.scalars(running)]
    return [
        ("winnow_steps", "Steps of unfinished jobs by phase and state.", ("phase", "state"),
         [((phase, state), count) for phase, state, count in counted]),
        ("winnow_step_leases", "Steps that a worker has: with a lease that holds, or one that ran out.", ("state",),
         [(("held",), sum(held)), (("expired",), len(held) - sum(held))]),
    ]  # fmt: skip


def time_statements(database: Database, metrics: Metrics) -> None:
    """Measure every statement that this database is sent."""
    seconds = Histogram(
        "winnow_database_statement_seconds", "Time of an SQL statement.", buckets=STATEMENT_SECONDS,
        registry=metrics.registry,
    )  # fmt: skip

    @event.listens_for(database.engine, "before_cursor_execute")
    def _began(_connection: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool) -> None:
        context.winnow_began = time.perf_counter()

    @event.listens_for(database.engine, "after_cursor_execute")
    def _ended(_connection: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool) -> None:
        seconds.observe(time.perf_counter() - context.winnow_began)
