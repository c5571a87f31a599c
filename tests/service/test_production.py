"""Metrics and drift of a gateway at work: real requests, real ONNX graphs, the text that Prometheus reads."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from tiny_model import clean_images, grey_images, npz_of, striped_images

from service.db import Database
from service.jobs.create import add_job
from service.metrics import MODELS_TOLD, Metrics, StackState, ValueHistogram, queues
from service.serving.answers import Answers, Observed, Options, Timing
from service.serving.drift import MOST_VERSIONS, DriftMonitor
from service.serving.telemetry import MOST_WAITING, Answered, Seen, Telemetry
from service.serving.thinning import IMAGES_PER_SECOND
from service.settings import Settings
from tests.service.migrated import migrated
from tests.service.one_model import app as app
from tests.service.one_model import client as client

PREDICT = "/v1/models/signs/predict"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path, serving_threads=1, drift_alarm_rate=0.01).resolved()
    return migrated(settings)


def scraped(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return found[(name, frozenset(labels.items()))]


def answers(p_values: list[float], model: str = "signs@1") -> Answers:
    n = len(p_values)
    zeros = np.zeros(n)
    return Answers(
        model=model,
        bundle="sha256:0",
        alpha=0.05,
        classes=("a", "b"),
        probabilities=np.full((n, 2), 0.5, np.float32),
        index=np.zeros(n, np.int64),
        abstained=np.array(p_values) <= 0.05,
        reason=["perturbed" if p <= 0.05 else None for p in p_values],
        p_value=np.array(p_values),
        entropy=zeros,
        mutual_information=zeros,
        kl=zeros,
        timing=Timing(0.001, 0.002, n),
    )


def seen(p_values: list[float], model: str = "signs@1", options: Options | None = None) -> Seen:
    return Seen("default", answers(p_values, model), options or Options())


def test_requests_images_abstentions_and_p_values_are_counted(client: httpx.Client) -> None:
    told = [client.post(PREDICT, content=npz_of(clean_images(40, seed=1)[0])) for _ in range(3)]
    told.append(client.post(PREDICT, content=npz_of(grey_images(5))))
    predictions = [prediction for answer in told for prediction in answer.json()["predictions"]]
    assert client.post(PREDICT, content=b"%PDF").status_code == 415
    assert client.get("/nowhere/at/all").status_code == 404
    found = scraped(client)
    route = {"method": "POST", "route": "/v1/models/{reference}/predict"}
    assert value(found, "winnow_http_requests_total", **route, status="200") == 4
    assert value(found, "winnow_http_requests_total", **route, status="415") == 1
    assert value(found, "winnow_http_requests_total", method="GET", route="none", status="404") == 1
    assert value(found, "winnow_http_request_seconds_count", **route) == 5
    labels = {"tenant": "default", "model": "signs@1"}
    assert value(found, "winnow_inference_images_total", **labels) == len(predictions) == 125
    uncertain = sum(prediction["reason"] == "uncertain" for prediction in predictions)
    assert value(found, "winnow_inference_abstentions_total", **labels, reason="uncertain") == uncertain >= 5
    small = sum(prediction["p_value"] <= 0.05 for prediction in predictions)
    assert value(found, "winnow_inference_p_value_bucket", **labels, le="0.05") == small
    assert value(found, "winnow_inference_p_value_count", **labels) == 125
    assert value(found, "winnow_inference_p_value_sum", **labels) == pytest.approx(
        sum(prediction["p_value"] for prediction in predictions)
    )
    assert value(found, "winnow_inference_stage_seconds_count", stage="compute") >= 4
    assert value(found, "winnow_inference_stage_seconds_sum", stage="compute") > 0
    assert value(found, "winnow_inference_batch_images_count") >= 4
    assert value(found, "winnow_database_statement_seconds_count") > 0
    assert value(found, "process_resident_memory_bytes") > 1e6


def test_jobs_and_leases_are_counted_and_old_numbers_go_when_the_database_does(app: FastAPI) -> None:
    database: Database = app.state.database
    with database.transaction() as session:
        for _ in range(3):
            add_job(session, "ingest", inputs={}, params={}, max_attempts=1)
    moment = [0.0]
    state = StackState(database, clock=lambda: moment[0])

    def rows(name: str) -> Any:
        return next((list(rows) for family, _, _, rows in state() if family == name), None)

    assert (("ingest", "queued"), 3) in rows("winnow_jobs")
    assert (("cpu",), 3) in rows("winnow_queue_depth") and (("cpu", "queued"), 3) in rows("winnow_queue_jobs")
    assert rows("winnow_job_leases") == [(("held",), 0), (("expired",), 0)]
    with database.transaction() as session:
        add_job(session, "ingest", inputs={}, params={}, max_attempts=1)
    assert (("ingest", "queued"), 3) in rows("winnow_jobs"), "not asked anew within seconds"
    moment[0] = 60
    assert (("ingest", "queued"), 4) in rows("winnow_jobs")
    with database.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE jobs RENAME TO gone")
    moment[0] = 120
    assert rows("winnow_jobs") is None


def test_jobs_are_counted_by_queue_and_a_harden_job_by_its_steps() -> None:
    assert {name: list(rows) for name, _, _, rows in queues([])} == {
        "winnow_queue_jobs": [],
        "winnow_queue_depth": [(("cpu",), 0), (("gpu",), 0)],
    }
    types = [("ingest", "queued", 2), ("review", "queued", 1), ("sanitise", "running", 1), ("distill", "running", 3)]
    found = {name: list(rows) for name, _, _, rows in queues([*types, ("harden", "queued", 5)])}
    assert found["winnow_queue_depth"] == [(("cpu",), 3), (("gpu",), 0)]
    assert found["winnow_queue_jobs"] == [(("cpu", "queued"), 3), (("gpu", "running"), 4)]


def test_labels_are_bounded_whatever_is_asked_for(client: httpx.Client) -> None:
    before = client.get("/metrics").text.count("\n")
    for number in range(30):
        client.get(f"/v1/jobs/{number}")
        client.get(f"/{number}")
        client.request(f"M{number}", "/v1/jobs")
        client.post(f"/v1/models/m{number}/predict", content=b"x")
    grown = client.get("/metrics").text.count("\n") - before
    assert grown < 150
    metrics = Metrics()
    labels = {metrics.model("default", f"m@{number}") for number in range(3 * MODELS_TOLD)}
    assert len(labels) == MODELS_TOLD + 1
    assert metrics.model("default", "m@0") == ("default", "m@0")


def test_a_value_histogram_counts_as_prometheus_does() -> None:
    histogram = ValueHistogram("h", "text", ("l",), (0.1, 0.5, 1.0))
    histogram.observe(("x",), np.array([0.1, 0.10001, 0.5, 1.0]))
    histogram.observe(("x",), np.array([0.0, 2.0]))
    (family,) = histogram.collect()
    counted = {sample.labels["le"]: sample.value for sample in family.samples if sample.name == "h_bucket"}
    assert counted == {"0.1": 2, "0.5": 4, "1": 5, "+Inf": 6}


def test_telemetry_is_bounded_and_counts_what_it_drops() -> None:
    telemetry = Telemetry(Metrics())
    for _ in range(MOST_WAITING + 7):
        telemetry.answered(Answered("GET", "/x", 200, 0.1))
    telemetry.flush()
    registry = telemetry.metrics.registry
    assert registry.get_sample_value("winnow_observations_dropped_total") == 7
    labels = {"method": "GET", "route": "/x", "status": "200"}
    assert registry.get_sample_value("winnow_http_requests_total", labels) == MOST_WAITING


def test_telemetry_takes_what_waits_before_it_ends() -> None:
    taken: list[int] = []
    telemetry = Telemetry(Metrics())
    telemetry.takers.append(lambda _seen: taken.append(threading.get_ident()))
    telemetry.start()
    images = np.zeros((1, 8, 8, 3), np.uint8)
    for _ in range(5):
        telemetry.watch(Observed("default", images, Options(), answers([0.5])))
    telemetry.close()
    assert len(taken) == 5
    assert threading.get_ident() not in taken[:-1]


def test_a_fifth_perturbed_raises_the_alarm_within_500_requests(client: httpx.Client) -> None:
    with structlog.testing.capture_logs() as logs:
        rng = np.random.default_rng(7)
        body = npz_of(clean_images(150, seed=21)[0])
        assert client.post(PREDICT, content=body).status_code == 200
        before = client.get("/v1/models/signs/drift").json()
        assert (before["alarm"], before["images"], before["rate"]) == (False, 150, 0.01)
        assert sum(each["observed"] for each in before["bins"]) == 150
        assert sum(each["promised"] for each in before["bins"]) == pytest.approx(1)
        asked = 0
        while asked < 500 and not client.get("/v1/models/signs/drift").json()["alarm"]:
            images = np.stack(
                [
                    (striped_images if rng.random() < 0.2 else lambda n, seed: clean_images(n, seed)[0])(1, seed=k)[0]
                    for k in range(1000 + asked, 1025 + asked)
                ]
            )
            for image in images:
                client.post(PREDICT, content=npz_of(image[None]))
            asked += len(images)
    after = client.get("/v1/models/signs@1/drift").json()
    assert after["alarm"] and after["alarmed_at"] and after["p_value"] <= 0.01
    assert [line["model"] for line in logs if line["event"] == "drift alarm"] == ["signs@1"]
    found = scraped(client)
    assert value(found, "winnow_drift_alarm", tenant="default", model="signs@1") == 1
    assert value(found, "winnow_drift_evidence", tenant="default", model="signs@1") > 1


def test_the_watch_begins_anew_when_it_is_told_to_and_after_a_promotion(client: httpx.Client) -> None:
    body = npz_of(striped_images(40, seed=3))

    def alarm() -> tuple[bool, int]:
        told = client.get("/v1/models/signs/drift").json()
        return told["alarm"], told["images"]

    assert client.post(PREDICT, content=body).status_code == 200
    assert alarm() == (True, 40)
    assert client.delete("/v1/models/signs/drift").json()["alarm"] is False
    assert alarm() == (False, 0)
    assert client.get("/v1/audit?action=drift.reset").json()["items"][0]["subject"] == "model signs@1"
    client.post(PREDICT, content=body)
    assert alarm() == (True, 40)
    assert client.put("/v1/models/signs/aliases/champion", json={"version": 1}).status_code == 200
    assert alarm() == (False, 0)
    client.post(PREDICT, content=body)
    client.put("/v1/models/signs/aliases/champion", json={"version": 1})
    assert alarm() == (True, 40), "it pointed there already"


def test_drift_counts_only_what_the_calibration_speaks_of(app: FastAPI) -> None:
    """And α does not change a p-value."""
    monitor: DriftMonitor = app.state.drift
    n = monitor._calibration_of("default", "signs@1").n
    monitor.take(seen([(n // 2) / (n + 1)], options=Options(alpha=0.2)))
    found = monitor.drift("default", "signs@1")
    assert found is not None and (found.images, found.calibration_images) == (1, n)
    for name in {"reform", "mc_passes", "seed"} & set(Options.__dataclass_fields__):
        monitor.take(seen([1.0], options=replace(Options(), **{name: 1})))  # type: ignore[arg-type]
    found = monitor.drift("default", "signs@1")
    assert found is not None and found.images == 1
    assert monitor.drift("other", "signs@1") is None


def test_drift_of_a_version_whose_calibration_cannot_be_read_is_not_watched(app: FastAPI) -> None:
    monitor: DriftMonitor = app.state.drift
    with structlog.testing.capture_logs() as logs:
        monitor.take(seen([1.0], "nothing@1"))
        monitor.take(seen([1.0], "nothing@1"))
    assert [line["code"] for line in logs] == ["model_not_found"]
    assert monitor.drift("default", "nothing@1") is None
    with app.state.database.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE model_versions RENAME TO gone")
    monitor.take(seen([1.0]))
    with app.state.database.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE gone RENAME TO model_versions")
    monitor.take(seen([1.0]))
    assert monitor.drift("default", "signs@1") is not None


def test_drift_memory_is_bounded_and_fast_traffic_is_thinned_out(app: FastAPI) -> None:
    moment = [0.0]
    calibration_of = app.state.drift._calibration_of
    monitor = DriftMonitor(lambda tenant, _model: calibration_of(tenant, "signs@1"), rate=0.01, clock=lambda: moment[0])
    monitor.take(seen([1.0] * (IMAGES_PER_SECOND + 100), "m@1"))
    found = monitor.drift("default", "m@1")
    assert found is not None and (found.images, found.skipped) == (IMAGES_PER_SECOND, 100)
    for version in range(2, MOST_VERSIONS + 2):
        moment[0] += 1
        monitor.take(seen([1.0], f"m@{version}"))
    assert monitor.drift("default", "m@1") is None
    assert monitor.drift("default", "m@2") is not None
    assert len(next(rows for name, _, _, rows in monitor.families() if name == "winnow_drift_alarm")) == MOST_VERSIONS


def test_only_who_runs_the_service_reads_metrics(client: httpx.Client) -> None:
    assert client.get("/metrics", headers={"Authorization": ""}).status_code == 401
    key = client.post("/v1/keys", json={"name": "p", "scopes": ["predict", "jobs"]}).json()["secret"]
    headers = {"Authorization": f"Bearer {key}"}
    assert client.get("/metrics", headers=headers).status_code == 403
    assert client.get("/v1/models/signs/drift", headers=headers).status_code == 200
