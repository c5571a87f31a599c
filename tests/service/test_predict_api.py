"""Models over HTTP: the real application on a real port, a real database and storage, real ONNX graphs."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from tiny_model import (
    ALPHA,
    CLASSES,
    bundle_files,
    calibration,
    clean_images,
    grey_images,
    npz_of,
    png_of,
    publish_version,
)

from service.app import create_app
from service.auth import ensure_admin_key
from service.registry.bundle import DETECTOR, STUDENT, bundle_digest
from service.registry.repository import resolve
from service.settings import Settings
from tests.service.live import serving
from tests.service.migrated import migrated

PREDICT = "/v1/models/signs/predict"
MAX_BYTES = 100_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = Settings(home=tmp_path, predict_queue=1, serving_threads=1, max_predict_bytes=MAX_BYTES, loaded_models=2)
    settings = home.resolved()
    return migrated(settings)


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    app = create_app(settings)
    publish_version(app.state.database, app.state.storage, "signs")
    return app


@pytest.fixture
def client(app: FastAPI, settings: Settings) -> Iterator[httpx.Client]:
    with serving(app, key=ensure_admin_key(settings)) as client:
        yield client


def predictions(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["code"], problem["status"]) == (status, code, status), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["detail"]
    return problem


def test_every_kind_of_body_gets_the_same_answer(client: httpx.Client) -> None:
    images, labels = clean_images(5, seed=2)
    npz = client.post(PREDICT, content=npz_of(images))
    assert set(npz.json()) == {"model", "bundle", "alpha", "predictions"}
    assert (npz.json()["model"], npz.json()["alpha"]) == ("signs@1", ALPHA)
    wanted = predictions(npz)
    assert [set(p) for p in wanted] == [
        {"label", "index", "abstained", "reason", "p_value", "probabilities", "uncertainty"}
    ] * 5
    assert all(set(p["uncertainty"]) == {"entropy", "mutual_information", "kl"} for p in wanted)
    assert [p["index"] for p in wanted if not p["abstained"]] == [
        label for p, label in zip(wanted, labels.tolist(), strict=True) if not p["abstained"]
    ]
    files = [("images", (f"{index}.png", png_of(image))) for index, image in enumerate(images)]
    assert predictions(client.post(PREDICT, files=files)) == wanted
    assert predictions(client.post(PREDICT, json={"images": images.tolist()})) == wanted
    alone = [predictions(client.post(PREDICT, content=png_of(image)))[0] for image in images]
    assert alone == wanted


def test_null_has_a_reason_and_no_index(client: httpx.Client) -> None:
    for prediction in predictions(client.post(PREDICT, content=npz_of(grey_images(3)))):
        assert (prediction["label"], prediction["index"], prediction["abstained"]) == (None, None, True)
        assert prediction["reason"] == "uncertain"
        assert len(prediction["probabilities"]) == len(CLASSES)


def test_alpha_is_the_requests_own(client: httpx.Client) -> None:
    body = npz_of(clean_images(300, seed=3)[0])
    strict, lax = (client.post(PREDICT, params={"alpha": alpha}, content=body) for alpha in (0.01, 0.5))
    assert (strict.json()["alpha"], lax.json()["alpha"]) == (0.01, 0.5)
    refused_shares = [np.mean([p["abstained"] for p in predictions(answer)]) for answer in (strict, lax)]
    assert refused_shares[0] < 0.1 < refused_shares[1]


def test_alpha_that_cannot_be_promised_names_the_smallest_that_can(client: httpx.Client) -> None:
    body = npz_of(grey_images(1))
    problem = refused(client.post(PREDICT, params={"alpha": 1e-6}, content=body), 422, "alpha_too_small")
    assert problem["smallest_alpha"] == 1 / (calibration().abstention.n + 1)
    assert predictions(client.post(PREDICT, params={"alpha": problem["smallest_alpha"]}, content=body))
    refused(client.post(PREDICT, params={"alpha": 1.5}, content=body), 422, "alpha_out_of_range")
    refused(client.post(PREDICT, params={"alpha": "nan"}, content=body), 422, "alpha_out_of_range")
    refused(client.post(PREDICT, params={"alpha": "little"}, content=body), 422, "invalid_request")
    refused(client.post(PREDICT, params={"aplha": 0.1}, content=body), 422, "unknown_parameter")


@pytest.mark.parametrize(
    ("reference", "status", "code"),
    [
        ("nothing", 404, "model_not_found"),
        ("signs@9", 404, "model_not_found"),
        ("signs:champion", 404, "alias_not_found"),
        ("Signs", 422, "invalid_reference"),
    ],
)
def test_a_wrong_reference_is_refused(client: httpx.Client, reference: str, status: int, code: str) -> None:
    refused(client.post(f"/v1/models/{reference}/predict", content=npz_of(grey_images(1))), status, code)
    refused(client.get(f"/v1/models/{reference}"), status, code)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "no_images"),
        (b"%PDF-1.7", 415, "unknown_body"),
        (b"\x89PNG\r\n\x1a\n", 422, "image_undecodable"),
        (b'{"images": [[[0.5]]]}', 422, "images_not_uint8"),
    ],
)
def test_a_body_that_is_no_images_is_refused(client: httpx.Client, body: bytes, status: int, code: str) -> None:
    refused(client.post(PREDICT, content=body), status, code)


def test_a_body_over_the_limit_is_refused_while_it_streams(client: httpx.Client) -> None:
    refused(client.post(PREDICT, content=bytes(MAX_BYTES + 1)), 413, "body_too_large")
    without_length = (bytes(MAX_BYTES // 10) for _ in range(20))
    refused(client.post(PREDICT, content=without_length), 413, "body_too_large")
    assert predictions(client.post(PREDICT, content=npz_of(grey_images(1)))), "its place is free again"


def test_an_announced_length_far_over_the_limit_is_refused_unread(client: httpx.Client) -> None:
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=10)
    connection.putrequest("POST", PREDICT)
    connection.putheader("Authorization", client.headers["Authorization"])
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, b"body_too_large" in answer.read()) == (413, True)
    connection.close()


def test_a_sender_that_goes_away_frees_its_place(client: httpx.Client, app: FastAPI) -> None:
    for _ in range(5):
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=10)
        connection.putrequest("POST", PREDICT)
        connection.putheader("Authorization", client.headers["Authorization"])
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"only a part")
        connection.close()
    deadline = time.monotonic() + 10
    while (answer := client.post(PREDICT, content=npz_of(grey_images(1)))).status_code == 503:
        assert time.monotonic() < deadline, "the places are still taken"
        time.sleep(0.01)
    assert predictions(answer)


def test_without_a_key_nothing_is_told(client: httpx.Client) -> None:
    for call in (("GET", "/v1/models"), ("GET", "/v1/models/signs"), ("POST", PREDICT)):
        refused(client.request(*call, headers={"Authorization": "Bearer wrong"}), 401, "unauthorized")
    answer = client.put("/v1/models/signs/aliases/champion", json={"version": 1}, headers={"Authorization": ""})
    refused(answer, 401, "unauthorized")


def test_a_full_queue_is_refused_with_a_time_to_come_back(client: httpx.Client, app: FastAPI) -> None:
    body = npz_of(grey_images(1))
    inside, leave = threading.Semaphore(0), threading.Event()

    def held() -> None:
        with app.state.engine.admit():
            inside.release()
            leave.wait(30)

    with ThreadPoolExecutor(2) as pool:  # one at work and one waiting, as the settings say
        for _ in range(2):
            pool.submit(held)
        try:
            assert all(inside.acquire(timeout=10) for _ in range(2))
            answer = client.post(PREDICT, content=body)
        finally:
            leave.set()
    refused(answer, 503, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    assert predictions(client.post(PREDICT, content=body))


def test_requests_at_once_get_each_its_own_answer(client: httpx.Client) -> None:
    images, _ = clean_images(30, seed=9)
    wanted = predictions(client.post(PREDICT, content=npz_of(images)))

    def ask(index: int) -> tuple[int, Any]:
        while True:
            answer = client.post(PREDICT, content=npz_of(images[index : index + 1]))
            if answer.status_code != 503:  # three places, six callers
                return index, predictions(answer)[0]

    with ThreadPoolExecutor(6) as pool:
        for index, prediction in pool.map(ask, range(30)):
            assert prediction == wanted[index]


def test_a_damaged_bundle_is_refused_and_another_model_goes_on(client: httpx.Client, app: FastAPI) -> None:
    database, storage = app.state.database, app.state.storage
    publish_version(database, storage, "bad")
    with database.session() as session:
        prefix = resolve(session, "bad").prefix
    storage.write(f"{prefix}/{DETECTOR}", storage.read(f"{prefix}/{DETECTOR}") + b"\0")
    body = npz_of(grey_images(1))
    problem = refused(client.post("/v1/models/bad/predict", content=body), 500, "bundle_corrupt")
    assert problem["file"] == DETECTOR
    assert predictions(client.post(PREDICT, content=body))


def test_an_alias_moves_and_the_answer_says_who_gave_it(client: httpx.Client, app: FastAPI) -> None:
    publish_version(app.state.database, app.state.storage, "signs", bundle_files(detector=False))
    body = npz_of(grey_images(1))

    def answered_by(reference: str) -> tuple[str, str]:
        answer = client.post(f"/v1/models/{reference}/predict", content=body).json()
        return answer["model"], answer["bundle"]

    assert answered_by("signs")[0] == "signs@2"
    bundles = {f"signs@{n}": client.get(f"/v1/models/signs@{n}").json()["bundle"] for n in (1, 2)}
    assert len(set(bundles.values())) == 2
    for version in (1, 2, 1):
        moved = client.put("/v1/models/signs/aliases/champion", json={"version": version})
        assert (moved.status_code, moved.json()["model"]) == (200, f"signs@{version}")
        for reference in ("signs", "signs:champion"):
            assert answered_by(reference) == (f"signs@{version}", bundles[f"signs@{version}"])


def test_an_alias_that_cannot_be_set_is_refused(client: httpx.Client) -> None:
    refused(client.put("/v1/models/signs/aliases/champion", json={"version": 2}), 404, "model_not_found")
    refused(client.put("/v1/models/nothing/aliases/champion", json={"version": 1}), 404, "model_not_found")
    refused(client.put("/v1/models/signs/aliases/Champion!", json={"version": 1}), 422, "invalid_reference")
    refused(client.put("/v1/models/signs/aliases/champion", json={"version": 0}), 422, "invalid_request")
    refused(client.put("/v1/models/signs/aliases/champion", json={"to": 1}), 422, "invalid_request")
    assert client.get("/v1/models/signs").json()["aliases"] == {}


def test_a_version_is_described_with_card_and_digests(client: httpx.Client, app: FastAPI) -> None:
    publish_version(app.state.database, app.state.storage, "signs")
    client.put("/v1/models/signs/aliases/champion", json={"version": 1})
    bare = client.get("/v1/models/signs").json()
    assert (bare["model"], bare["version"], bare["versions"], bare["aliases"]) == (
        "signs@1",
        1,
        [1, 2],
        {"champion": 1},
    )
    assert bare["card"]["classes"] == list(CLASSES)
    assert set(bare["files"]) == set(bundle_files()) >= {STUDENT, DETECTOR}
    assert bare["bundle"] == bundle_digest(bare["files"])
    assert client.get("/v1/models/signs@2").json()["version"] == 2
    assert client.get("/v1/models/signs:champion").json() == bare


def test_models_are_listed_page_by_page(client: httpx.Client, app: FastAPI) -> None:
    for name in ("digits", "faces"):
        publish_version(app.state.database, app.state.storage, name)
    first = client.get("/v1/models", params={"limit": 2}).json()
    rest = client.get("/v1/models", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [item["model"] for item in first["items"] + rest["items"]] == ["digits@1", "faces@1", "signs@1"]
    assert rest["next_cursor"] is None
    refused(client.get("/v1/models", params={"cursor": "_w"}), 422, "bad_cursor")
