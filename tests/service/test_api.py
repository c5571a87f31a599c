"""The HTTP contract as a client sees it, over a real database and storage; no broker is needed to accept work."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from httpx import Client

from service.app import create_app
from service.auth import admin_key_path, ensure_admin_key
from service.db import Database
from service.settings import Settings
from tests.service.conftest import MakeDataset
from tests.service.live import serving


@pytest.fixture
def client(settings: Settings, database: Database) -> Iterator[Client]:
    key = ensure_admin_key(settings)
    small = settings.model_copy(update={"max_upload_bytes": 100_000})
    with serving(create_app(small), key=key) as opened:
        yield opened


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
    return buffer.getvalue()


def uploads(settings: Settings) -> list[Path]:
    folder = settings.storage / "uploads"
    return list(folder.iterdir()) if folder.exists() else []


def test_the_admin_key_is_its_owners_alone(settings: Settings, database: Database) -> None:
    key = ensure_admin_key(settings)
    path = admin_key_path(settings.home)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ensure_admin_key(settings) == key == path.read_text()


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic abc", "Bearer"])
def test_every_v1_route_wants_a_key(client: Client, header: str | None) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    client.headers.pop("authorization")
    headers = {} if header is None else {"Authorization": header}
    tried = 0
    for path, methods in paths.items():
        for method in methods:
            if path.startswith("/v1"):
                url = path.replace("{name}", "a").replace("{reference}", "a@1").replace("{ref}", "a@1")
                url = url.replace("{job_id}", "j").replace("{index}", "0").replace("{alias}", "b")
                answer = client.request(method, url, headers=headers, json={})
                assert answer.status_code == 401, (method, path, answer.text)
                assert answer.json()["code"] == "unauthorized"
                tried += 1
    assert tried >= 12


def test_an_upload_is_stored_whole_and_queued(client: Client, settings: Settings) -> None:
    data = npz_bytes()
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    answer = client.post("/v1/datasets/signs/versions", content=data, headers={"Repr-Digest": f"sha-256=:{digest}:"})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["inputs"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert [path.read_bytes() for path in uploads(settings)] == [data]
    assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued"


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", {}, 415, "empty_body"),
        (b"not an archive at all", {}, 415, "unknown_format"),
        (b"PK\x03\x04" + bytes(200_000), {}, 413, "too_large"),
        (b"PK\x03\x04", {"Repr-Digest": "sha-256=:AAAA:"}, 422, "digest_mismatch"),
        (b"PK\x03\x04", {"Repr-Digest": "sha-256=:!!!:"}, 422, "bad_digest_header"),
    ],
)
def test_a_refused_upload_leaves_nothing(
    client: Client, settings: Settings, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = client.post("/v1/datasets/signs/versions", content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert uploads(settings) == []
    assert client.get("/v1/jobs").json()["items"] == []


def test_a_stream_longer_than_the_limit_is_refused_without_a_length(client: Client, settings: Settings) -> None:
    chunks = (b"PK\x03\x04" + bytes(30_000) for _ in range(10))
    answer = client.post("/v1/datasets/signs/versions", content=chunks)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert uploads(settings) == []


def test_problems_carry_code_detail_and_request_id(client: Client) -> None:
    answer = client.get("/v1/jobs/none", headers={"X-Request-Id": "my-id"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "my-id"
    assert answer.json() | {"detail": ""} == {
        "type": "urn:winnow:error:job_not_found",
        "title": "Not found",
        "status": 404,
        "code": "job_not_found",
        "detail": "",
        "instance": "/v1/jobs/none",
    }


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/jobs", {"type": "sanitise", "datset": "a@1"}, 422, "invalid_request"),
        ("POST", "/v1/jobs", {"type": "dance"}, 422, "invalid_request"),
        ("POST", "/v1/datasets/UPPER/versions", None, 422, "invalid_reference"),
        ("POST", "/v1/datasets/signs/versions?size=7", None, 422, "invalid_params"),
        ("GET", "/v1/datasets/signs@1", None, 404, "dataset_not_found"),
        ("GET", "/v1/jobs?cursor=%25", None, 422, "bad_cursor"),
        ("GET", "/v1/nothing", None, 404, "no_such_route"),
        ("DELETE", "/v1/jobs", None, 405, "method_not_allowed"),
    ],
)
def test_wrong_requests(client: Client, method: str, path: str, body: object, status: int, code: str) -> None:
    answer = client.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_jobs_are_listed_newest_first_page_by_page(client: Client) -> None:
    made = [client.post("/v1/datasets/signs/versions", content=npz_bytes()).json()["id"] for _ in range(3)]
    first = client.get("/v1/jobs", params={"limit": 2, "type": "ingest", "state": "queued"}).json()
    second = client.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert {job["id"] for job in first["items"] + second["items"]} == set(made)
    assert [len(first["items"]), len(second["items"]), second["next_cursor"]] == [2, 1, None]
    assert client.get("/v1/jobs", params={"state": "failed"}).json()["items"] == []


def test_data_sets_are_shown_with_their_samples(client: Client, make_dataset: MakeDataset) -> None:
    make_dataset("signs", {"a": 3, "b": 2})
    assert client.get("/v1/datasets").json()["items"][0]["reference"] == "signs@1"
    assert client.get("/v1/datasets/signs").json()["items"][0]["class_counts"] == [3, 2]
    page = client.get("/v1/datasets/signs@1/samples", params={"limit": 3}).json()
    rest = client.get("/v1/datasets/signs@1/samples", params={"cursor": page["next_cursor"]}).json()
    assert [row["label"] for row in page["items"] + rest["items"]] == ["a", "a", "a", "b", "b"]
    picture = client.get("/v1/datasets/signs@1/samples/4/image")
    assert picture.content.startswith(b"\x89PNG")
    assert client.get("/v1/datasets/signs@1/samples/5/image").json()["code"] == "sample_not_found"


def test_a_queued_job_is_cancelled_and_retried(client: Client) -> None:
    job = client.post("/v1/datasets/signs/versions", content=npz_bytes()).json()
    assert client.post(f"/v1/jobs/{job['id']}/retry").json()["code"] == "job_not_retryable"
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/v1/jobs/{job['id']}/retry").json()["state"] == "queued"
    assert client.get(f"/v1/jobs/{job['id']}/report").json()["code"] == "job_not_finished"
    assert client.get(f"/v1/jobs/{job['id']}/verdicts").json()["code"] == "no_verdicts"


def test_ready_names_what_is_missing(client: Client) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert set(answer.json()["missing"]) == {"broker", "worker"}
    assert client.get("/healthz").json() == {"status": "ok"}
