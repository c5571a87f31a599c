"""An archive that is decoded by steps becomes the very version that it becomes in one piece."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update

from models.specs import IngestSpec
from service.datasets import repository as datasets
from service.datasets.contents import write_contents
from service.datasets.encoded import EncodedUpload
from service.datasets.readers import open_upload
from service.datasets.sample import Limits
from service.db import Database
from service.errors import Corrupt, InvalidUpload
from service.jobs import artifacts, repository
from service.jobs.create import add_job
from service.jobs.queue import Doorbell, celery_app
from service.jobs.tables import Step
from service.settings import Settings
from service.storage import LocalStorage
from service.tables import Job
from tests.service.uploads import tar_of, zip_of
from worker import decode_steps, ingest
from worker.context import Context
from worker.decoding import decode_part
from worker.progress import Progress
from worker.runtime import Runtime

STEP_IMAGES = 10
WHOLE = 1_000_000
COUNT = 47


def png(number: int, *, colour: bool = False, side: int = 12) -> bytes:
    shape = (side, side, 3) if colour else (side, side)
    pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def files(**others: bytes) -> dict[str, bytes]:
    """others: the bytes of `n12` instead of image 12's own."""
    return {f"{'ab'[n % 2]}/{n:03d}.png": others.get(f"n{n}", png(n)) for n in range(COUNT)}


def gzipped(members: dict[str, bytes]) -> bytes:
    return tar_of(members, "w:gz")


Make = Callable[..., Context]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """make(upload, step_images, **params): the context of an ingest job that was claimed."""
    opened = Database.open(f"sqlite:///{tmp_path / 'winnow.db'}")
    opened.create_all()

    def make(upload: bytes, step_images: int, **params: Any) -> Context:
        given: dict[str, Any] = {"step_images": step_images, "decoding_processes": 0}
        settings = Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0", **given).resolved()
        storage = LocalStorage(tmp_path / "storage")
        storage.write("uploads/one", upload)
        inputs = {"name": "signs", "upload": "uploads/one", "sha256": "0" * 64, "bytes": len(upload)}
        spec = IngestSpec.model_validate(params).model_dump(mode="json")
        with opened.transaction() as session:
            job_id = add_job(session, "ingest", inputs=inputs, params=spec, max_attempts=3).id
        runtime = Runtime(settings, opened, storage, Doorbell(celery_app(settings), opened), "here:1")
        claim = repository.claim(opened, job_id, worker=runtime.worker, lease_seconds=60)
        assert claim is not None
        return Context(runtime, claim, Progress())

    yield make
    opened.close()


def version(context: Context) -> tuple[Any, ...]:
    """What is published, and all that can be read back of it."""
    outcome = ingest.run(context)
    with context.database.transaction() as session:
        reference = outcome.publish(session)["dataset"]
        row = datasets.find(session, reference)
        reader = datasets.reader(context.storage, row)
        shown = row.digest, row.class_counts, row.image_shape, row.source_format
    blocks = np.concatenate(list(reader.blocks()))
    for one in (0, 9, 10, len(blocks) - 1):
        assert (reader.image(one) == blocks[one]).all()
    some = np.array([21, 3, 11, 10, 22])
    assert (reader.images(some) == blocks[some]).all()
    assert (np.concatenate([images for _, images in reader.shards()]) == blocks).all()
    return *shown, outcome.result, reader.rows(), blocks.tobytes()


@pytest.mark.parametrize("pack", [zip_of, tar_of, gzipped])
def test_steps_make_the_version_that_one_piece_makes(make: Make, pack: Callable[..., bytes]) -> None:
    upload = pack(files(n4=b"no image", n33=b"neither"))
    limits = {"max_rejected_share": 0.1}
    alone = version(make(upload, WHOLE, **limits))
    shared = make(upload, STEP_IMAGES, **limits)
    assert version(shared) == alone
    assert alone[4]["num_rejected"] == 2 and alone[2] == [12, 12, 1]
    kept = [entry.key for entry in shared.storage.list("datasets") if f"{shared.claim.job_id}-shared" in entry.key]
    assert len([key for key in kept if key.endswith(".npy")]) == 5


@pytest.mark.parametrize("pack", [zip_of, tar_of, gzipped])
def test_who_has_but_the_storage_reads_what_the_owner_reads(make: Make, pack: Callable[..., bytes]) -> None:
    """Files of long names too, and those that are damaged or too large."""
    members = files(n4=b"no image", n7=b"x" * 5000)
    members |= {f"a/{number}{'n' * 200}/{'m' * 200}.png": png(number) for number in range(3)}
    data = pack(members)
    if pack is zip_of:
        place = zipfile.ZipFile(io.BytesIO(data)).getinfo("a/010.png").header_offset + 80
        data = data[:place] + bytes(8) + data[place + 8 :]
    context = make(data, STEP_IMAGES)
    upload = open_upload(io.BytesIO(data), replace(Limits.of(context.settings), max_image_bytes=4000))
    assert isinstance(upload, EncodedUpload)
    contents = write_contents(context.storage, "jobs/one/checkpoints", upload, "uploads/one", STEP_IMAGES)
    count, size = upload.num_samples, STEP_IMAGES
    parts = [contents.samples(context.storage, at, min(at + size, count), 4000) for at in range(0, count, size)]
    assert [sample for part in parts for sample in part] == list(upload.samples())
    problems = {sample.path: sample.problem for sample in upload.samples() if sample.problem}
    assert set(problems) == ({"a/010.png", "b/007.png"} if pack is zip_of else {"b/007.png"})


def test_a_part_of_another_size_than_its_step_is_refused(make: Make) -> None:
    data = zip_of(files())
    context = make(data, STEP_IMAGES)
    upload = open_upload(io.BytesIO(data), Limits.of(context.settings))
    assert isinstance(upload, EncodedUpload)
    contents = write_contents(context.storage, "jobs/one/checkpoints", upload, "uploads/one", STEP_IMAGES)
    for start, stop in ((40, 50), (10, 19), (5, 15), (50, 60)):
        with pytest.raises(Corrupt, match=f"no part of the images {start} to {stop - 1}"):
            list(contents.samples(context.storage, start, stop, WHOLE))
    other = replace(contents, share=STEP_IMAGES + 1)
    with pytest.raises(Corrupt, match="parts of"):
        list(other.samples(context.storage, STEP_IMAGES + 1, 2 * STEP_IMAGES + 2, WHOLE))


def test_an_image_that_is_neither_written_nor_rejected_is_missed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_steps, "decode_part", losing_one)
    context = make(zip_of(files()), STEP_IMAGES)
    with pytest.raises(Corrupt, match="Of 47 images 42 were written and 0 rejected"):
        ingest.run(context)


def losing_one(images: Any, *others: Any) -> Any:
    """Of each part."""
    return decode_part(list(images)[1:], *others)


@pytest.mark.parametrize(
    ("late", "shape"), [(png(44, colour=True), [12, 12, 3]), (png(44, colour=True, side=20), [64, 64, 3])]
)
def test_a_late_image_that_asks_for_another_resolution_gets_it(
    make: Make, monkeypatch: pytest.MonkeyPatch, late: bytes, shape: list[int]
) -> None:
    monkeypatch.setattr(ingest, "FIRST_LOOK", 8)
    upload = zip_of(files(n44=late))
    shared = version(make(upload, STEP_IMAGES))
    assert shared == version(make(upload, WHOLE))
    assert shared[2] == shape


def test_too_many_unreadable_images_are_refused_in_the_same_words(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "FIRST_LOOK", 8)
    upload = zip_of(files(n40=b"no image", n42=b"no image", n46=b"no image"))
    said = []
    for step_images in (WHOLE, STEP_IMAGES):
        with pytest.raises(InvalidUpload, match=r"^3 of 47 images cannot be used.*the first is a/040\.png") as told:
            ingest.run(make(upload, step_images, max_rejected_share=0.05))
        said.append(told.value.message)
    assert said[0] == said[1]


def test_a_later_attempt_goes_on_where_the_earlier_one_was(make: Make) -> None:
    """A step that had ended is not decoded again, and one that had not is not half of what is published."""
    upload = gzipped(files())
    context = make(upload, STEP_IMAGES)
    advanced = context.progress.advance

    def cut(done: int, total: int) -> None:
        if done >= 25:
            raise KeyboardInterrupt
        advanced(done, total)

    context.progress.advance = cut  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        ingest.run(context)
    before = shards_of(context)
    assert 3 <= len(before) < 5
    with context.database.transaction() as session:
        job = session.get_one(Job, context.claim.job_id)
        job.attempt = 2
        session.execute(update(Step).where(Step.state == "running").values(state="queued"))
    later = Context(context.runtime, replace(context.claim, attempt=2), Progress())
    found = version(later)
    assert before.items() <= shards_of(later).items()
    assert found == version(make(upload, WHOLE))
    assert later.storage.exists(f"{artifacts.steps_prefix(context.claim.job_id, 'decoding')}/unpacked")


def shards_of(context: Context) -> dict[str, Any]:
    """When each was written."""
    return {entry.key: entry.modified for entry in context.storage.list("datasets") if entry.key.endswith(".npy")}
