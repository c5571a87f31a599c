"""Every format out: what comes back in again has the same pixels under the same names."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from httpx import Client
from PIL import Image
from typer.testing import CliRunner

from service.app import create_app
from service.auth import ensure_admin_key
from service.cli.commands import app
from service.datasets import decoding_process
from service.datasets import repository as datasets
from service.datasets.decoding import Target, decoded
from service.datasets.export import ExportFormat, Version, exported
from service.datasets.export_items import origin_of
from service.datasets.export_names import folder_names
from service.datasets.readers import open_upload
from service.datasets.sample import Limits
from service.datasets.shard_writing import ShardWriter
from service.datasets.shards import Row
from service.datasets.zip_stream import ZipStream
from service.db import Database
from service.jobs.create import add_job
from service.settings import Settings
from service.storage import LocalStorage
from tests.service.ingesting import ingested, pictures
from tests.service.live import serving
from tests.service.uploads import FILES, IMAGES, LABELS, NAMES, UPLOADS, encoded, folders, npz_of, tar_of, zip_of

FORMATS = get_args(ExportFormat)
ODD_NAMES = ("../../etc", "a/b", "CON", "Stop", "stop", "klasse ü,\"'", "class-0001", ".x")


def taken(settings: Settings, database: Database, reference: str, form: Any, *, originals: bool = True) -> bytes:
    with database.session() as session:
        row = datasets.find(session, reference)
        origin = origin_of(session, row) if originals else None
    return b"".join(exported(Version(LocalStorage(settings.storage), row, origin, Limits.of(settings)), form))


def sanitised(settings: Settings, database: Database, parent: str, keep: list[int], change: list[int]) -> str:
    """A version of some images of its parent, some of them with other pixels."""
    storage = LocalStorage(settings.storage)
    with database.session() as session:
        row = datasets.find(session, parent)
    reader = datasets.reader(storage, row)
    height, width, channels = row.image_shape
    with ShardWriter(storage, "datasets/sanitised", (height, width, channels), len(row.classes)) as writer:
        for index in keep:
            pixels = reader.image(index)
            writer.add(255 - pixels if index in change else pixels, reader.rows()[index])
        written = writer.close()
    with database.transaction() as session:
        job = add_job(session, "sanitise", inputs={}, params={}, max_attempts=1)
        made = datasets.publish(
            session, row.name, job_id=job.id, prefix="datasets/sanitised", written=written, classes=row.classes,
            image_shape=reader.image_shape, source_format="sanitised", parent=parent,
        )  # fmt: skip
        return datasets.reference_of(made)


@pytest.mark.parametrize(("form", "outs"), [(form, FORMATS if form == "zip" else ["npz"]) for form in UPLOADS])
def test_a_round_trip_keeps_pixels_labels_and_names(
    settings: Settings, database: Database, form: str, outs: list[str]
) -> None:
    first, result = ingested(settings, database, "first", UPLOADS[form])
    assert (result["num_samples"], result["classes"], result["image_shape"]) == (8, list(NAMES), [9, 9, 3])
    assert pictures(settings, database, first) == sorted(
        (NAMES[label], image.tobytes()) for label, image in zip(LABELS, IMAGES, strict=True)
    )
    for out in outs:
        again, _ = ingested(settings, database, f"again-{out}", taken(settings, database, first, out))
        assert pictures(settings, database, again) == pictures(settings, database, first)


@pytest.mark.parametrize("out", FORMATS)
def test_names_that_no_folder_can_have_and_groups_come_back(settings: Settings, database: Database, out: str) -> None:
    labels = np.arange(8)
    upload = npz_of(images=IMAGES, labels=labels, classes=np.array(ODD_NAMES), groups=labels // 2)
    first, _ = ingested(settings, database, "odd", upload)
    data = taken(settings, database, first, out)
    again, result = ingested(settings, database, "again", data)
    assert sorted(result["classes"]) == sorted(ODD_NAMES)
    assert pictures(settings, database, again) == pictures(settings, database, first)
    with database.session() as session:
        reader = datasets.reader(LocalStorage(settings.storage), datasets.find(session, again))
    assert sorted(reader.manifest()["group"].to_pylist()) == ["0", "0", "1", "1", "2", "2", "3", "3"]


def test_an_exported_zip_leads_nowhere(settings: Settings, database: Database) -> None:
    first, _ = ingested(
        settings, database, "odd", npz_of(images=IMAGES, labels=np.arange(8), classes=np.array(ODD_NAMES))
    )
    names = zipfile.ZipFile(io.BytesIO(taken(settings, database, first, "imagefolder"))).namelist()
    assert not any(name.startswith(("/", ".")) or ".." in name for name in names)
    assert {name.split("/")[0] for name in names} >= {"class-0000", "class-0001", "class-0002"}


@pytest.mark.parametrize("form", ["zip", "tar.gz", "webdataset", "parquet"])
@pytest.mark.parametrize("out", ["imagefolder", "webdataset", "parquet"])
def test_the_uploaded_file_comes_back_where_its_image_was_not_changed(
    settings: Settings, database: Database, form: str, out: str
) -> None:
    first, _ = ingested(settings, database, "first", UPLOADS[form])
    second = sanitised(settings, database, first, keep=[1, 2, 4, 7], change=[2])
    files = files_of(taken(settings, database, second, out), out)
    with database.session() as session:
        reader = datasets.reader(LocalStorage(settings.storage), datasets.find(session, first))
    uploaded = [pixels.tobytes() for pixels in reader.images(np.array([1, 2, 4, 7]))]
    known = {image.tobytes(): file for image, file in zip(IMAGES, FILES, strict=True)}
    assert [file == known[pixels] for file, pixels in zip(files, uploaded, strict=True)] == [
        True,
        False,
        True,
        True,
    ] or (out == "imagefolder" and sorted(file in FILES for file in files) == [False, True, True, True])
    changed = next(file for file in files if file not in FILES)
    assert (np.asarray(Image.open(io.BytesIO(changed))) == 255 - reader.image(2)).all()
    bare = files_of(taken(settings, database, second, out, originals=False), out)
    assert not set(bare) & set(FILES)


def files_of(data: bytes, out: str) -> list[bytes]:
    if out == "imagefolder":
        archive = zipfile.ZipFile(io.BytesIO(data))
        assert archive.testzip() is None
        return [archive.read(name) for name in archive.namelist()]
    if out == "webdataset":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return [tar.extractfile(one).read() for one in tar if one.name.endswith("png")]  # type: ignore[union-attr]
    return [row["bytes"] for row in pq.read_table(io.BytesIO(data))["image"].to_pylist()]


def test_a_jpeg_stays_the_jpeg_that_it_was(settings: Settings, database: Database) -> None:
    jpegs = {f"{NAMES[i % 2]}/{i}.bin.jpg": encoded(image, "JPEG") for i, image in enumerate(IMAGES)}
    first, _ = ingested(settings, database, "jpegs", zip_of(jpegs), size=16)
    archive = zipfile.ZipFile(io.BytesIO(taken(settings, database, first, "imagefolder")))
    assert sorted(archive.read(name) for name in archive.namelist()) == sorted(jpegs.values())
    assert all(name.endswith(".jpg") for name in archive.namelist())


def test_rejected_and_doubled_images_do_not_lead_the_originals_astray(settings: Settings, database: Database) -> None:
    members = {**folders(), "stop/0000broken.png": FILES[0][:40], "stop/twice.png": FILES[1]}
    first, result = ingested(settings, database, "first", zip_of(members), max_rejected_share=0.5)
    assert (result["num_rejected"], result["num_samples"]) == (1, 9)
    archive = zipfile.ZipFile(io.BytesIO(taken(settings, database, first, "imagefolder")))
    assert sorted(archive.read(name) for name in archive.namelist()) == sorted([*FILES, FILES[1]])


def test_without_the_upload_the_pixels_are_exported(settings: Settings, database: Database) -> None:
    first, _ = ingested(settings, database, "first", UPLOADS["zip"])
    LocalStorage(settings.storage).delete_prefix("uploads/first")
    archive = zipfile.ZipFile(io.BytesIO(taken(settings, database, first, "imagefolder")))
    found = sorted(np.asarray(Image.open(io.BytesIO(archive.read(name)))).tobytes() for name in archive.namelist())
    assert found == sorted(image.tobytes() for image in IMAGES)


def test_parquet_says_what_hugging_face_wants_to_know(settings: Settings, database: Database) -> None:
    first, _ = ingested(settings, database, "first", UPLOADS["zip"])
    schema = pq.read_schema(io.BytesIO(taken(settings, database, first, "parquet")))
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": list(NAMES), "_type": "ClassLabel"}
    assert set(features) == set(schema.names)


def test_the_exported_npz_is_what_numpy_loads(settings: Settings, database: Database) -> None:
    first, _ = ingested(settings, database, "first", UPLOADS["npz"])
    found = np.load(io.BytesIO(taken(settings, database, first, "npz")))
    assert (found["images"] == IMAGES).all()
    assert found["labels"].tolist() == LABELS.tolist()
    assert found["classes"].tolist() == list(NAMES)


def test_memory_stays_flat_while_a_large_version_is_exported(settings: Settings, database: Database) -> None:
    storage, shape = LocalStorage(settings.storage), (64, 64, 3)
    image = np.zeros(shape, np.uint8)
    with ShardWriter(storage, "datasets/large", shape, 2) as writer:
        for index in range(6000):  # 74 MB of pixels
            writer.add(image, Row("0" * 64, f"{index}.png", index % 2, 64, 64))
        written = writer.close()
    with database.transaction() as session:
        job = add_job(session, "ingest", inputs={}, params={}, max_attempts=1)
        row = datasets.publish(
            session, "large", job_id=job.id, prefix="datasets/large", written=written, classes=["a", "b"],
            image_shape=shape, source_format="npz",
        )  # fmt: skip
        session.expunge_all()
    del writer
    version = Version(storage, row, None, Limits.of(settings))
    tracemalloc.start()
    size = sum(len(piece) for piece in exported(version, "npz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 6000 * 64 * 64 * 3
    assert peak < 16 << 20


def test_a_zip_of_more_files_than_two_bytes_count_is_whole() -> None:
    archive = ZipStream()
    data = b"".join(archive.file(f"a/{i}", b"") for i in range(66_000)) + b"".join(archive.end())
    assert len(zipfile.ZipFile(io.BytesIO(data)).namelist()) == 66_000


def test_folder_names_differ_whatever_the_case() -> None:
    names = ["a", "A", "b", "nul.x", "x.", " y", "ok 1", "class-0000", "1", "日本"]
    made = folder_names(names)
    assert made == [
        "class-0000",
        "class-0001",
        "b",
        "class-0003",
        "class-0004",
        "class-0005",
        "ok 1",
        "class-0007",
        "1",
        "日本",
    ]
    assert len(set(made)) == len(names)


@pytest.mark.parametrize("processes", [0, 2])
def test_decoding_elsewhere_gives_the_same_in_the_same_order(processes: int) -> None:
    members = {f"{NAMES[i % 2]}/{i}.png": FILES[i % 8] if i % 7 else b"broken" for i in range(600)}
    limits = Limits(1000, 100_000, 10_000, 10_000_000)
    upload = open_upload(io.BytesIO(tar_of(members)), limits)
    found = list(decoded(upload, Target(9, 3, 10_000), processes=processes))
    assert [ready.sample.path for ready in found] == sorted(members)
    assert [ready.pixels is None for ready in found] == [members[path] == b"broken" for path in sorted(members)]
    pixels = dict(zip(FILES, IMAGES, strict=True))
    assert all(
        (ready.pixels == pixels[members[ready.sample.path]]).all() for ready in found if ready.pixels is not None
    )


MORTAL = """
import os
from service.datasets import decoding_process
honest = decoding_process.decode_all
decoding_process.decode_all = lambda task: os._exit(1) if b"boom" in b"".join(task.files) else honest(task)
decoding_process.main()
"""


def test_an_image_that_kills_its_decoder_is_rejected_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_process, "START", MORTAL)
    members = {f"{NAMES[i % 2]}/{i}.png": FILES[i] for i in range(8)} | {"stop/5x.png": FILES[0] + b"boom"}
    upload = open_upload(io.BytesIO(zip_of(members)), Limits(1000, 100_000, 10_000, 10_000_000))
    found = {ready.sample.path: ready.problem for ready in decoded(upload, Target(9, 3, 10_000), processes=1)}
    assert {path for path, problem in found.items() if problem} == {"stop/5x.png"}
    assert len(found) == 9


@pytest.fixture
def client(settings: Settings, database: Database) -> Iterator[Client]:
    with serving(create_app(settings), key=ensure_admin_key(settings)) as opened:
        yield opened


@pytest.mark.parametrize("out", FORMATS)
def test_export_over_http(client: Client, settings: Settings, database: Database, out: str) -> None:
    first, _ = ingested(settings, database, "first", UPLOADS["zip"])
    answer = client.get(f"/v1/datasets/{first}/export", params={"format": out})
    assert answer.status_code == 200
    assert 'filename="first-1.' in answer.headers["content-disposition"]
    assert answer.content == taken(settings, database, first, out)


def test_export_from_the_command_line(client: Client, settings: Settings, database: Database, tmp_path: Path) -> None:
    first, _ = ingested(settings, database, "first", UPLOADS["zip"])
    target = tmp_path / "signs.npz"
    key = client.headers["authorization"].removeprefix("Bearer ")
    where = ["--to", str(target), "--url", str(client.base_url), "--key", key]
    done = CliRunner().invoke(app, ["export", first, "--format", "npz", *where])
    assert done.exit_code == 0, done.output
    assert target.read_bytes() == taken(settings, database, first, "npz")
    failed = CliRunner().invoke(app, ["export", "none@1", *where])
    assert failed.exit_code != 0
    assert target.read_bytes() == taken(settings, database, first, "npz")
    assert {path.name for path in tmp_path.iterdir()} == {"signs.npz", "home"}


def test_what_cannot_be_exported_is_said(client: Client, settings: Settings, database: Database) -> None:
    first, _ = ingested(settings, database, "first", UPLOADS["zip"])
    assert client.get("/v1/datasets/none@1/export").json()["code"] == "dataset_not_found"
    assert client.get(f"/v1/datasets/{first}/export?format=tfrecord").json()["code"] == "invalid_request"
    page = client.get(f"/v1/datasets/{first}/samples", params={"limit": 3}).json()
    rest = client.get(f"/v1/datasets/{first}/samples", params={"cursor": page["next_cursor"]}).json()
    assert [row["index"] for row in page["items"] + rest["items"]] == list(range(8))
    assert {row["label"] for row in rest["items"]} <= set(NAMES)
    beyond = client.get(f"/v1/datasets/{first}/samples", params={"cursor": "OTk5"}).json()
    assert beyond == {"items": [], "next_cursor": None}
