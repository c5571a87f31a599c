"""Captured images: which are kept, for how long and how many; what a person gets to see, and makes a data set of."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import structlog
from PIL import Image
from tiny_model import CLASSES, clean_images, grey_images, npz_of, publish_version

from service.app import create_app
from service.auth import ensure_admin_key
from service.errors import NotFound
from service.serving.answers import Observed, Options
from service.serving.capture import Captured, Captures, Policy, Sampler, checked_segment
from service.settings import Settings
from service.storage import LocalStorage
from tests.service.live import serving
from tests.service.migrated import migrated
from tests.service.one_model import app as app
from tests.service.one_model import client as client
from tests.service.test_production import answers

CAPTURES = "/v1/models/signs/captures"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path, serving_threads=1, capture_share=1.0, capture_per_minute=30).resolved()
    return migrated(settings)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


def captured(count: int = 1, model: str = "signs@1", at: float = 0.0) -> list[Captured]:
    return [Captured("default", model, at, grey_images(1)[0], "red", "uncertain", 0.01) for _ in range(count)]


def policy(share: float = 1.0, per_minute: int = 10, most_bytes: int = 10**9, seconds: float = 1e9) -> Policy:
    return Policy(share, per_minute, most_bytes, seconds)


def predict(client: httpx.Client, images: np.ndarray) -> list[bool]:
    answer = client.post("/v1/models/signs/predict", content=npz_of(images))
    return [each["abstained"] for each in answer.json()["predictions"]]


def test_what_was_abstained_on_is_listed_and_seen_and_the_rest_is_not(client: httpx.Client) -> None:
    images = np.concatenate([clean_images(4, seed=2)[0], grey_images(3)])
    abstained = predict(client, images)
    items = client.get(CAPTURES).json()["items"]
    assert len(items) == sum(abstained) >= 3
    assert {item["model"] for item in items} == {"signs@1"}
    assert all(item["label"] in CLASSES and item["reason"] == "uncertain" and item["p_value"] <= 0.05 for item in items)
    seen = []
    for item in items:
        picture = client.get(f"{CAPTURES}/{item['segment']}/{item['index']}/image")
        assert picture.headers["content-type"] == "image/png"
        seen.append(np.asarray(Image.open(io.BytesIO(picture.content))).tobytes())
    assert sorted(seen) == sorted(image.tobytes() for image, kept in zip(images, abstained, strict=True) if kept)


def test_captured_images_become_an_upload(client: httpx.Client, tmp_path: Path) -> None:
    images = grey_images(5)
    assert all(predict(client, images))
    answer = client.get(f"{CAPTURES}/export")
    assert answer.headers["content-disposition"] == 'attachment; filename="signs-captures.npz"'
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert sorted(map(bytes, arrays["images"])) == sorted(map(bytes, images))
        items = client.get(CAPTURES).json()["items"]
        named = arrays["classes"][arrays["labels"]].tolist()
        assert sorted(named) == sorted(item["label"] for item in items)
    job = client.post("/v1/datasets/to-review/versions", content=answer.content)
    assert job.status_code == 202 and job.json()["type"] == "ingest"
    few = client.get(f"{CAPTURES}/export", params={"most": 2})
    with np.load(io.BytesIO(few.content)) as arrays:
        assert len(arrays["images"]) == 2


def test_they_are_deleted_when_told_to(client: httpx.Client) -> None:
    predict(client, grey_images(2))
    assert client.delete(CAPTURES).status_code == 204
    assert client.get(CAPTURES).json()["items"] == []
    assert client.get(f"{CAPTURES}/export").json()["code"] == "capture_not_found"
    assert client.get("/v1/audit?action=captures.deleted").json()["items"][0]["subject"] == "model signs"


def test_so_many_a_minute_and_no_more(client: httpx.Client) -> None:
    predict(client, grey_images(45))
    assert len(client.get(CAPTURES).json()["items"]) == 30


def test_places_that_are_not_there(client: httpx.Client) -> None:
    for place in ("1/x", "x/0-ab", "1/0-ab", "..%2F..%2Fmodels/0-ab"):
        assert client.get(f"{CAPTURES}/{place}/0/image").status_code == 404, place


def test_it_is_off_unless_the_settings_say_so(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, serving_threads=1).resolved()
    migrated(settings)
    app = create_app(settings)
    publish_version(app.state.database, app.state.storage, "signs")
    with serving(app, key=ensure_admin_key(settings)) as client:
        assert all(predict(client, grey_images(3)))
        assert client.get(CAPTURES).json()["items"] == []
    assert not (settings.storage / "captures").exists()


def test_the_share_is_the_share(storage: LocalStorage) -> None:
    sampler = Sampler(storage, policy(share=0.2, per_minute=10_000), lambda: [])
    for _ in range(20):
        sampler.watch(Observed("default", np.zeros((100, 8, 8, 3), np.uint8), Options(), answers([0.01] * 100)))
        sampler.flush()
    kept = sum(len(Captures(storage).read("signs", each)["images"]) for each in Captures(storage).segments("signs"))
    assert 300 < kept < 500


def test_the_oldest_go_first_and_none_stays_for_ever(storage: LocalStorage) -> None:
    captures = Captures(storage)
    for moment in range(1, 11):
        captures.add(captured(at=moment), now=moment)
    size = max(entry.size for entry in storage.list("captures"))
    captures.trim(policy(most_bytes=4 * size), now=11)
    assert made(captures) == [
        10_000,
        9_000,
        8_000,
        7_000,
    ]
    captures.trim(policy(seconds=2.5), now=11)
    assert made(captures) == [10_000, 9_000]
    sampler = Sampler(storage, policy(seconds=1), lambda: ["default"], clock=lambda: 100.0)
    sampler.trim()
    assert captures.segments("signs") == []


def made(captures: Captures) -> list[int]:
    """When the segments were, in milliseconds."""
    return [int(each.partition("/")[2].partition("-")[0]) for each in captures.segments("signs")]


def test_tenants_have_their_own(storage: LocalStorage) -> None:
    sampler = Sampler(storage, policy(), lambda: [])
    sampler._waiting += [*captured(2), *(Captured("acme", *each) for each in _fields(captured(1)))]
    sampler.flush()
    assert len(list(storage.list("captures"))) == 1
    assert len(list(storage.list("tenants/acme/captures"))) == 1


def _fields(images: list[Captured]) -> Iterator[tuple[object, ...]]:
    for each in images:
        yield each.model, each.at, each.image, each.label, each.reason, each.p_value


def test_a_storage_that_is_away_costs_the_images_and_nothing_else(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "storage")
    (tmp_path / "storage" / "captures").write_text("in the way")
    sampler = Sampler(storage, policy(), lambda: [])
    sampler._waiting += captured(3)
    with structlog.testing.capture_logs() as logs:
        sampler.flush()
    assert [(line["event"], line["images"]) for line in logs] == [("captured images not kept", 3)]


def test_a_segment_names_no_path() -> None:
    assert checked_segment("1/0001-ab12") == "1/0001-ab12"
    for text in ("../x", "1/../x", "1/", "x/1", "1/a/b", "1/a.b", "", "1"):
        with pytest.raises(NotFound):
            checked_segment(text)
