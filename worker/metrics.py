"""A worker's own Prometheus metrics: what jobs and their phases took, leases lost, the GPU's memory.

They live in the child that computes, and begin anew with it; jobs, leases and queues of all workers are the gateway's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client import start_http_server as serve
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

JOB_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)

MemoryOf = Callable[[], Mapping[str, int]]


class WorkerMetrics:
    """One a child. Labels are job types, states and phases: lists that the code itself bounds."""

    def __init__(self, gpu_memory: MemoryOf | None = None) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._ended = Counter("winnow_worker_jobs", "Attempts ended.", ("type", "state"), registry=registry)
        self._seconds = Histogram(
            "winnow_worker_job_seconds", "Of an attempt.", ("type",), buckets=JOB_SECONDS, registry=registry
        )
        self._phases = Counter(
            "winnow_worker_phase_seconds", "Spent in a phase of a job.", ("type", "phase"), registry=registry
        )
        self._steps = Counter("winnow_worker_steps", "Attempts at steps ended.", ("phase", "state"), registry=registry)
        self._step_seconds = Histogram(
            "winnow_worker_step_seconds", "Of an attempt at a step.", ("phase",), buckets=JOB_SECONDS, registry=registry
        )
        self._lost = Counter("winnow_worker_leases_lost", "Attempts whose job went to another.", registry=registry)
        registry.register(_GpuMemory(gpu_memory or gpu_memory_of_torch))

    def ended(self, kind: str, state: str, seconds: float, phases: Mapping[str, float]) -> None:
        self._ended.labels(kind, state).inc()
        self._seconds.labels(kind).observe(seconds)
        for phase, spent in phases.items():
            self._phases.labels(kind, phase).inc(spent)

    def step_ended(self, phase: str, state: str, seconds: float) -> None:
        self._steps.labels(phase, state).inc()
        self._step_seconds.labels(phase).observe(seconds)

    def lost_lease(self) -> None:
        self._lost.inc()

    def serve(self, host: str, port: int) -> threading.Thread:
        """Answer GET /metrics until the process ends."""
        _server, thread = serve(port, addr=host, registry=self.registry)
        return thread


class _GpuMemory(Collector):
    def __init__(self, read: MemoryOf) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("winnow_worker_gpu_bytes", "Of the GPU's memory, as torch counts.", labels=["of"])
        for kind, count in self._read().items():
            family.add_metric([kind], count)
        yield family

    def describe(self) -> Iterable[Metric]:
        return []


def gpu_memory_of_torch() -> Mapping[str, int]:
    """Nothing where there is no GPU, or where it has not been used yet: asking must not be what wakes it up."""
    import torch

    awake: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if not awake:
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "peak": torch.cuda.max_memory_allocated(),
        "free": free,
        "total": total,
    }
