"""What a worker tells Prometheus of itself, over HTTP."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.parts import free_port
from worker.metrics import WorkerMetrics


def test_jobs_phases_leases_and_gpu_memory_are_told() -> None:
    metrics = WorkerMetrics(lambda: {"allocated": 5, "total": 80})
    metrics.ended("sanitise", "succeeded", 12.0, {"denoiser": 7.0, "scoring": 5.0})
    metrics.ended("sanitise", "failed", 400.0, {"denoiser": 3.0})
    metrics.step_ended("scoring", "succeeded", 2.0)
    metrics.lost_lease()
    port = free_port()
    metrics.serve("127.0.0.1", port)
    told = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
    }
    assert samples["winnow_worker_jobs_total", "sanitise", "succeeded"] == 1
    assert samples["winnow_worker_phase_seconds_total", "denoiser", "sanitise"] == 10
    assert samples["winnow_worker_job_seconds_bucket", "30.0", "sanitise"] == 1
    assert samples["winnow_worker_job_seconds_count", "sanitise"] == 2
    assert samples["winnow_worker_steps_total", "scoring", "succeeded"] == 1
    assert samples["winnow_worker_step_seconds_sum", "scoring"] == 2
    assert samples[("winnow_worker_leases_lost_total",)] == 1
    assert samples["winnow_worker_gpu_bytes", "total"] == 80


def test_without_a_gpu_there_is_nothing_to_tell_of_it() -> None:
    metrics = WorkerMetrics()
    families = {family.name: family.samples for family in metrics.registry.collect()}
    assert families["winnow_worker_gpu_bytes"] == []
