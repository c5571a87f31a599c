"""Bundles as files over real HTTP: what is exported comes back the same, and nothing else gets in."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
from fastapi import FastAPI
from onnx import numpy_helper
from tiny_model import bundle_files, clean_images, npz_of, served_onnx

from service.client import WinnowClient
from service.registry.archive import MANIFEST
from service.registry.bundle import CARD, SERVED, bundle_digest
from service.settings import Settings
from tests.service.migrated import migrated
from tests.service.one_model import app as app
from tests.service.one_model import client as client


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path, serving_threads=1).resolved()
    return migrated(settings)


def exported(client: httpx.Client) -> bytes:
    answer = client.get("/v1/models/signs@1/export")
    assert answer.status_code == 200, answer.text
    return answer.content


def rewritten(archive: bytes, change: dict[str, bytes | None], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """With members replaced, added, or (None) left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        members = {**{name: old.read(name) for name in old.namelist()}, **change}
        for name, data in members.items():
            if data is not None:
                new.writestr(name, data)
    return buffer.getvalue()


def test_a_bundle_that_went_out_and_in_answers_the_same(client: httpx.Client) -> None:
    answer = client.post("/v1/models/brought/versions", content=exported(client))
    assert answer.status_code == 201, answer.text
    assert (answer.json()["model"], answer.json()["source"]) == ("brought@1", "signs@1")
    own, brought = client.get("/v1/models/signs").json(), client.get("/v1/models/brought").json()
    assert own["bundle"] == brought["bundle"] == answer.json()["bundle"]
    assert (own["files"], own["card"]) == (brought["files"], brought["card"])
    body = npz_of(clean_images(20, seed=1)[0])
    predictions = [
        client.post(f"/v1/models/{name}/predict", content=body).json()["predictions"] for name in ("signs", "brought")
    ]
    assert predictions[0] == predictions[1]
    job = client.get(f"/v1/jobs/{brought['job_id']}").json()
    assert (job["type"], job["state"], job["result"]) == ("import", "succeeded", {"model": "brought@1"})
    assert "model.imported" in client.get("/v1/audit").text


def test_the_client_keeps_and_brings_bundles(client: httpx.Client, tmp_path: Path) -> None:
    key = client.headers["Authorization"].removeprefix("Bearer ")
    with WinnowClient(str(client.base_url), key) as typed:
        path = typed.bundles.export("signs@1", tmp_path / "signs.winnow")
        assert typed.bundles.bring("signs", path) == "signs@2"
    assert list(tmp_path.glob(".*.partial")) == []


def test_what_is_no_whole_bundle_is_refused_and_leaves_nothing(client: httpx.Client, app: FastAPI) -> None:
    archive = exported(client)
    damaged = bytearray(archive)
    at = archive.index(served_onnx()) + 100
    damaged[at] ^= 1
    manifest = orjson.loads(zipfile.ZipFile(io.BytesIO(archive)).read(MANIFEST))
    for body in (
        b"",
        b"no zip",
        archive[:-100],
        bytes(damaged),
        rewritten(archive, {"../evil.onnx": b"x"}),
        rewritten(archive, {"more.onnx": b"x"}),
        rewritten(archive, {SERVED: None}),
        rewritten(archive, {CARD: b"{}"}),
        rewritten(archive, {MANIFEST: None}),
        rewritten(archive, {MANIFEST: b"["}),
        rewritten(archive, {MANIFEST: orjson.dumps({**manifest, "bundle": "sha256:0"})}),
        rewritten(archive, {}, compression=zipfile.ZIP_DEFLATED),
    ):
        answer = client.post("/v1/models/bad/versions", content=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "bundle_unreadable"), answer.text
    assert client.get("/v1/models/bad").status_code == 404
    assert list(app.state.storage.list("models/bad")) == []


def test_a_whole_bundle_that_computes_something_else_is_refused(client: httpx.Client, app: FastAPI) -> None:
    """Digests hold throughout: only the parity sample tells."""
    import hashlib

    import onnx

    graph = onnx.load_from_string(served_onnx())
    weights = next(tensor for tensor in graph.graph.initializer if tensor.name == "to_logits")
    weights.CopyFrom(
        numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(weights)[:, ::-1]), "to_logits")
    )
    files = {**bundle_files(), SERVED: graph.SerializeToString()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    manifest = {"format": "winnow-bundle-1", "model": "x@1", "bundle": bundle_digest(digests), "files": digests}
    body = rewritten(exported(client), {SERVED: files[SERVED], MANIFEST: orjson.dumps(manifest)})
    answer = client.post("/v1/models/bad/versions", content=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "bundle_unusable"), answer.text
    assert "parity sample" in answer.json()["detail"]
    assert list(app.state.storage.list("models/bad")) == []
