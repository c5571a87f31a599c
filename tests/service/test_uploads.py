"""Resumable uploads and the bytes of all uploads: what tus asks for, what breaks on the way, what is kept once."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from requests.exceptions import RequestException
from sqlalchemy import select
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from service.app import create_app
from service.auth import ensure_admin_key
from service.client import WinnowClient
from service.client import resumable as sending
from service.client import session as client_session
from service.datasets import repository as datasets
from service.datasets.shard_writing import Written
from service.db import Database, now
from service.errors import Gone, Locked
from service.jobs.create import add_job
from service.jobs.queue import Doorbell, celery_app
from service.settings import Settings
from service.storage import LocalStorage
from service.tables import Blob, Job, Upload
from service.uploads import blobs, finishing, resumable, sweeping
from tests.service.cutting import cutting
from tests.service.live import serving
from tests.service.uploads import folders, zip_of

TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {**TUS, "Content-Type": "application/offset+octet-stream"}
ARCHIVE = zip_of(folders())


def b64(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def told(**metadata: str) -> dict[str, str]:
    return {**TUS, "Upload-Metadata": ",".join(f"{key} {b64(value)}" for key, value in metadata.items())}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_upload_bytes": 100_000_000})


@pytest.fixture
def http(settings: Settings, database: Database) -> Iterator[httpx.Client]:
    with serving(create_app(settings), key=ensure_admin_key(settings)) as client:
        yield client


def begin(http: httpx.Client, size: int, name: str = "signs") -> str:
    answer = http.post("/v1/uploads", headers={**told(name=name, size="16"), "Upload-Length": str(size)})
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def stored(settings: Settings) -> list[Path]:
    return [path for path in (settings.storage / "uploads").rglob("*") if path.is_file()]


def job_of(database: Database, job_id: str) -> Job:
    with database.session() as session:
        return session.get_one(Job, job_id)


@pytest.mark.both_databases
def test_an_upload_in_pieces_becomes_the_job_of_a_whole_one(
    http: httpx.Client, database: Database, settings: Settings
) -> None:
    offers = http.options("/v1/uploads")
    assert offers.status_code == 204 and offers.headers["tus-version"] == "1.0.0"
    assert offers.headers["tus-max-size"] == "100000000" and "checksum" in offers.headers["tus-extension"]
    url = begin(http, len(ARCHIVE))
    middle = len(ARCHIVE) // 2
    first = http.patch(url, content=ARCHIVE[:middle], headers={**PIECE, "Upload-Offset": "0"})
    assert (first.status_code, first.headers["upload-offset"]) == (204, str(middle))
    assert "upload-expires" in first.headers and "winnow-job" not in first.headers
    head = http.head(url, headers=TUS)
    assert (head.headers["upload-offset"], head.headers["upload-length"]) == (str(middle), str(len(ARCHIVE)))
    assert head.headers["cache-control"] == "no-store" and head.headers["tus-resumable"] == "1.0.0"
    last = http.patch(url, content=ARCHIVE[middle:], headers={**PIECE, "Upload-Offset": str(middle)})
    job = job_of(database, last.headers["winnow-job"])
    assert job.inputs["sha256"] == hashlib.sha256(ARCHIVE).hexdigest() and job.inputs["name"] == "signs"
    assert job.type == "ingest" and job.params["size"] == 16
    assert LocalStorage(settings.storage).read(job.inputs["upload"]) == ARCHIVE and len(stored(settings)) == 1
    again = http.patch(url, content=b"", headers={**PIECE, "Upload-Offset": str(len(ARCHIVE))})
    assert (again.status_code, again.headers["winnow-job"]) == (204, job.id)
    assert http.get(url).json()["state"] == "finished" and http.delete(url, headers=TUS).status_code == 409


def test_creation_with_upload(http: httpx.Client) -> None:
    headers = {**told(name="signs"), "Upload-Length": str(len(ARCHIVE)), "Content-Type": PIECE["Content-Type"]}
    made = http.post("/v1/uploads", content=ARCHIVE, headers=headers)
    assert (made.status_code, made.headers["upload-offset"]) == (201, str(len(ARCHIVE)))
    assert made.headers["winnow-job"]


def test_what_tus_has_refused_is_refused(http: httpx.Client, settings: Settings) -> None:
    url = begin(http, len(ARCHIVE))

    def sent(expect: int, code: str, **changes: str) -> httpx.Response:
        headers = {**PIECE, "Upload-Offset": "0", **{name.replace("_", "-"): value for name, value in changes.items()}}
        answer = http.patch(url, content=ARCHIVE[:100], headers={k: v for k, v in headers.items() if v})
        assert (answer.status_code, answer.json()["code"]) == (expect, code)
        assert answer.headers["tus-resumable"] == "1.0.0"
        return answer

    assert sent(412, "tus_version", Tus_Resumable="0.2.2").headers["tus-version"] == "1.0.0"
    assert sent(409, "wrong_offset", Upload_Offset="7").json()["offset"] == 0
    sent(415, "not_offset_stream", Content_Type="application/zip")
    sent(422, "bad_tus_header", Upload_Offset="-1")
    sent(422, "bad_tus_header", Upload_Checksum="md5 AAAA")
    sent(422, "bad_tus_header", Upload_Checksum="sha1 %")
    sent(460, "checksum_mismatch", Upload_Checksum=f"sha256 {b64(hashlib.sha256(b'other').digest())}")
    assert http.head(url, headers=TUS).headers["upload-offset"] == "0" and stored(settings) == []
    digest = b64(hashlib.sha256(ARCHIVE[:100]).digest())
    right = {**PIECE, "Upload-Offset": "0", "Upload-Checksum": f"sha256 {digest}"}
    assert http.patch(url, content=ARCHIVE[:100], headers=right).headers["upload-offset"] == "100"
    too_much = {**PIECE, "Upload-Offset": "100"}
    assert http.patch(url, content=ARCHIVE, headers=too_much).json()["code"] == "upload_overflow"
    assert http.patch("/v1/uploads/none", content=b"", headers=too_much).status_code == 404
    assert http.delete(url, headers=TUS).status_code == 204
    assert http.head(url, headers=TUS).status_code == 404 and stored(settings) == []


def test_an_upload_that_cannot_be_is_refused_at_once(http: httpx.Client) -> None:
    for length, metadata, status in (
        ("100000001", {"name": "signs"}, 413),
        ("0", {"name": "signs"}, 422),
        ("", {"name": "signs"}, 422),
        ("10", {}, 422),
        ("10", {"name": "No Name"}, 422),
        ("10", {"name": "signs", "size": "big"}, 422),
        ("10", {"name": "signs", "size": "9999"}, 422),
    ):
        answer = http.post("/v1/uploads", headers={**told(**metadata), "Upload-Length": length})
        assert answer.status_code == status, answer.text
    url = begin(http, 5000)
    garbage = http.patch(url, content=b"no archive at all" * 100, headers={**PIECE, "Upload-Offset": "0"})
    assert (garbage.status_code, garbage.json()["code"]) == (415, "unknown_format")
    short = begin(http, 20)
    assert http.patch(short, content=b"x" * 20, headers={**PIECE, "Upload-Offset": "0"}).status_code == 415


def long_archive(size: int) -> bytes:
    return zip_of({**folders(), "stop/rest.txt": random.Random(0).randbytes(size)})


@pytest.mark.slow
def test_a_known_client_gets_through_twenty_disconnects(
    http: httpx.Client, database: Database, settings: Settings
) -> None:
    """tuspy through a network that breaks; for each break at most one chunk goes over it twice."""
    data, chunk = long_archive(2_000_000), 50_000
    port = http.base_url.port
    assert port is not None
    with cutting(port, cuts=20, most_bytes=2 * chunk) as network:
        client = TusClient(f"http://127.0.0.1:{network.port}/v1/uploads", headers=dict(http.headers))
        url, deadline = None, time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline
            try:
                uploader = client.uploader(
                    file_stream=io.BytesIO(data),
                    url=url,
                    chunk_size=chunk,
                    metadata={"name": "signs"},
                    retries=30,
                    retry_delay=0.02,
                    upload_checksum=True,
                )
                url = url or uploader.create_url()
                uploader.set_url(url)
                uploader.upload()
                break
            except (RequestException, TusCommunicationError):
                time.sleep(0.02)
        assert network.cut == 20
        # beside the bytes themselves: what was cut off, and the heads of some sixty requests
        assert network.bytes_sent <= len(data) + 20 * chunk + 100_000
    with database.session() as session:
        job = session.scalars(select(Job)).one()
    assert LocalStorage(settings.storage).read(job.inputs["upload"]) == data and len(stored(settings)) == 1


def test_what_arrived_before_a_break_is_kept(http: httpx.Client) -> None:
    data = long_archive(2_000_000)
    url = begin(http, len(data))
    port = http.base_url.port
    assert port is not None
    with cutting(port, cuts=1, most_bytes=1_500_000, seed=5) as network, pytest.raises(httpx.TransportError):
        headers = {**http.headers, **PIECE, "Upload-Offset": "0", "Transfer-Encoding": "chunked"}
        httpx.patch(f"http://127.0.0.1:{network.port}{url}", content=iter([data]), headers=headers)
    deadline = time.monotonic() + 20
    while (here := int(http.head(url, headers=TUS).headers["upload-offset"])) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert here > network.bytes_sent - 300_000  # the server drops what it has read and not yet handed on
    rest = http.patch(url, content=data[here:], headers={**PIECE, "Upload-Offset": str(here)})
    assert rest.headers["winnow-job"]


def test_our_client_goes_on_after_disconnects_and_in_a_later_call(
    http: httpx.Client, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sending, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(sending, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(sending, "PATIENCE_S", 0.0)
    monkeypatch.setattr(client_session, "RESUMABLE_BYTES", 1_000_000)
    data, path = long_archive(1_200_000), tmp_path / "signs.zip"
    path.write_bytes(data)
    key, port = http.headers["authorization"].removeprefix("Bearer "), http.base_url.port
    assert port is not None
    calls, seen = 0, []
    with cutting(port, cuts=6, most_bytes=400_000, seed=1) as network:
        while True:
            calls += 1
            with WinnowClient(f"http://127.0.0.1:{network.port}", key) as client:
                try:  # patience is nil: every break ends the call, and the next one goes on
                    job = client.upload_dataset("signs", path, {"size": 16}, on_sent=lambda *sent: seen.append(sent))
                    break
                except sending.ClientError as error:
                    assert sending._may_pass(error) and calls < 30
        assert network.bytes_sent <= len(data) + 6 * 100_000 + 100_000
    assert calls > 1 and job.type == "ingest" and seen[-1] == (len(data), len(data))
    assert LocalStorage(settings.storage).read(job.inputs["upload"]) == data
    assert len(http.get("/v1/uploads").json()["items"]) == 1


@pytest.mark.slow
def test_our_client_waits_while_the_service_puts_a_large_upload_together(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def slowly(*given: Any) -> Any:
        time.sleep(4.0)
        return put_together(*given)

    put_together = finishing._assembled
    monkeypatch.setattr(finishing, "_assembled", slowly)
    monkeypatch.setattr(sending, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(sending, "PATIENCE_S", 1.6)
    monkeypatch.setattr(sending, "LONGEST_PAUSE_S", 0.2)
    path = tmp_path / "signs.zip"
    path.write_bytes(ARCHIVE)
    key = http.headers["authorization"].removeprefix("Bearer ")
    with WinnowClient(str(http.base_url), key, timeout_s=1.5) as client:
        assert client.upload_dataset("signs", path, resumable=True).type == "ingest"


@pytest.mark.both_databases
def test_two_writers_do_not_meet(http: httpx.Client, database: Database, settings: Settings) -> None:
    url = begin(http, len(ARCHIVE))
    upload_id = url.rsplit("/", 1)[1]
    held = resumable.take(database, upload_id, 0)
    refused = http.patch(url, content=ARCHIVE, headers={**PIECE, "Upload-Offset": "0"})
    assert (refused.status_code, refused.json()["code"]) == (423, "upload_locked")
    assert int(refused.headers["retry-after"]) >= 1
    assert http.delete(url, headers=TUS).status_code == 423
    with database.transaction() as session:  # the first falls silent
        session.get_one(Upload, upload_id).writer_until = now() - timedelta(seconds=1)
    assert http.patch(url, content=ARCHIVE[:50], headers={**PIECE, "Upload-Offset": "0"}).status_code == 204
    part = resumable.UploadPart(upload_id=upload_id, begin=0, size=9, key="uploads/x")
    with pytest.raises(Locked):
        resumable.add_parts(database, settings, held, [part])
    with pytest.raises(Locked):
        resumable.renew(database, held)
    resumable.let_go(database, held)
    assert http.head(url, headers=TUS).headers["upload-offset"] == "50"


@pytest.mark.both_databases
def test_of_many_at_once_one_writes(http: httpx.Client, database: Database) -> None:
    url = begin(http, len(ARCHIVE))

    def send(_: int) -> int:
        headers = {**http.headers, **PIECE, "Upload-Offset": "0"}
        return httpx.patch(f"{http.base_url}{url}".replace("//v1", "/v1"), content=ARCHIVE, headers=headers).status_code

    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(send, range(6)))
    assert statuses.count(204) == 1 and set(statuses) <= {204, 409, 423}
    with database.session() as session:
        assert len(session.scalars(select(Job)).all()) == 1


def test_an_upload_outlives_its_gateway(settings: Settings, database: Database) -> None:
    key = ensure_admin_key(settings)
    with serving(create_app(settings), key=key) as http:
        url = begin(http, len(ARCHIVE))
        http.patch(url, content=ARCHIVE[:500], headers={**PIECE, "Upload-Offset": "0"})
    with serving(create_app(settings), key=key) as http:
        assert http.head(url, headers=TUS).headers["upload-offset"] == "500"
        last = http.patch(url, content=ARCHIVE[500:], headers={**PIECE, "Upload-Offset": "500"})
        assert last.headers["winnow-job"]


@pytest.mark.both_databases
def test_uploads_left_alone_are_swept_and_whole_ones_finished(
    http: httpx.Client, database: Database, settings: Settings, storage: LocalStorage
) -> None:
    left, whole = begin(http, len(ARCHIVE)), begin(http, len(ARCHIVE))
    for url in (left, whole):
        http.patch(url, content=ARCHIVE[:500], headers={**PIECE, "Upload-Offset": "0"})
    ids = [url.rsplit("/", 1)[1] for url in (left, whole)]
    hold = resumable.take(database, ids[1], 500)
    storage.write(f"uploads/{ids[1]}/rest", ARCHIVE[500:])
    rest = resumable.UploadPart(upload_id=ids[1], begin=500, size=len(ARCHIVE) - 500, key=f"uploads/{ids[1]}/rest")
    resumable.let_go(database, resumable.add_parts(database, settings, hold, [rest]))  # and then the gateway died
    with database.transaction() as session:
        session.get_one(Upload, ids[0]).expires_at = now() - timedelta(seconds=1)
    expired = http.head(left, headers=TUS)
    assert expired.status_code == 410
    sweeping.sweep(database, storage, settings, Doorbell(celery_app(settings), database))
    assert http.patch(left, headers={**PIECE, "Upload-Offset": "500"}).json()["code"] == "upload_expired"
    finished = http.get(whole).json()
    assert finished["state"] == "finished" and job_of(database, finished["job_id"]).inputs["bytes"] == len(ARCHIVE)
    assert len(stored(settings)) == 1


def versions_of(database: Database, jobs: list[str]) -> list[str]:
    """The versions that these ingest jobs make."""
    made = []
    with database.transaction() as session:
        for job_id in jobs:
            session.get_one(Job, job_id).state = "succeeded"
            row = datasets.publish(
                session,
                "signs",
                job_id=job_id,
                prefix=f"datasets/signs/{job_id}-1",
                written=Written("0" * 64, 8, [4, 4]),
                classes=["a", "b"],
                image_shape=(8, 8, 1),
                source_format="zip",
            )
            made.append(datasets.reference_of(row))
    return made


@pytest.mark.both_databases
def test_the_same_bytes_are_kept_once_and_until_nothing_needs_them(
    http: httpx.Client, database: Database, settings: Settings
) -> None:
    ids = [http.post("/v1/datasets/signs/versions", content=ARCHIVE).json()["id"] for _ in range(2)]
    url = begin(http, len(ARCHIVE))
    ids.append(http.patch(url, content=ARCHIVE, headers={**PIECE, "Upload-Offset": "0"}).headers["winnow-job"])
    assert len({job_of(database, each).inputs["upload"] for each in ids}) == 1 and len(stored(settings)) == 1
    assert http.get("/v1/usage").json()["used"]["bytes"] == len(ARCHIVE)

    http.post("/v1/tenants", json={"name": "acme"})
    made = http.post("/v1/tenants/acme/keys", json={"name": "k", "scopes": ["upload"]}).json()
    theirs = {"Authorization": f"Bearer {made['secret']}"}
    http.post("/v1/datasets/signs/versions", content=ARCHIVE, headers=theirs)
    assert len(list((settings.storage / "tenants/acme/uploads").iterdir())) == 1

    references = versions_of(database, ids)
    with database.transaction() as session:
        reading = add_job(session, "distill", inputs={"dataset": references[0]}, params={}, max_attempts=1)
    assert http.delete(f"/v1/datasets/{references[0]}").json()["code"] == "dataset_in_use"
    http.post(f"/v1/jobs/{reading.id}/cancel")
    for place, reference in enumerate(references):
        assert len(stored(settings)) == 1
        answer = http.delete(f"/v1/datasets/{reference}")
        assert answer.status_code == 200 and answer.json()["deleted_at"]
        assert http.get(f"/v1/datasets/{reference}").json()["code"] == "dataset_deleted"
        assert len(stored(settings)) == (1 if place < 2 else 0)
    with database.session() as session:
        assert [blob.tenant for blob in session.scalars(select(Blob))] == ["acme"]
        with pytest.raises(Gone):
            datasets.find(session, references[0])
    anew = http.post("/v1/datasets/signs/versions", content=ARCHIVE).json()["id"]
    assert job_of(database, anew).inputs["upload"] != job_of(database, ids[0]).inputs["upload"]
    assert len(stored(settings)) == 1


def test_bytes_over_the_quota_are_not_kept(http: httpx.Client, settings: Settings) -> None:
    assert http.put("/v1/tenants/default/quotas", json={"bytes": len(ARCHIVE) + 10}).status_code == 200
    begin(http, len(ARCHIVE))
    refused = http.post("/v1/uploads", headers={**told(name="signs"), "Upload-Length": "11"})
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_bytes")
    assert int(refused.headers["retry-after"]) > 0
    raw = http.post("/v1/datasets/signs/versions", content=ARCHIVE)
    assert (raw.status_code, raw.json()["code"]) == (429, "quota_bytes")
    streamed = http.post("/v1/datasets/signs/versions", content=iter([ARCHIVE]))
    assert streamed.status_code == 413 and stored(settings) == []


def test_a_blob_whose_bytes_were_lost_is_there_again(
    http: httpx.Client, database: Database, settings: Settings, storage: LocalStorage
) -> None:
    first = http.post("/v1/datasets/signs/versions", content=ARCHIVE).json()["inputs"]["upload"]
    storage.delete_prefix(first)
    second = http.post("/v1/datasets/signs/versions", content=ARCHIVE).json()["inputs"]["upload"]
    assert storage.read(second) == ARCHIVE and blobs.new_key() not in (first, second)
