"""An ingest job: an upload becomes an immutable version, every image decoded once to the working resolution."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from models.specs import IngestSpec
from service import quotas
from service.datasets import repository as datasets
from service.datasets.decoding import DecodingPool, Target, decoded
from service.datasets.readers import Upload, begins_with_array, open_upload
from service.datasets.sample import MAX_RATIO, Layout, Limits
from service.datasets.shards import Row, ShardWriter, Written
from service.datasets.unpack import FREE_BYTES
from service.errors import InvalidUpload, TooLarge, UnusableDataset
from service.quotas import Quota
from worker.context import Context, Outcome

DEFAULT_SIZE = 64
REPORTED_REJECTIONS = 1000
MANY_REJECTED = 1000  # from which on it is not worth looking at all the others
FIRST_LOOK = 64  # images that suggest the working resolution
IMAGE_BYTES = 1024  # of a small image's file
LARGE_BYTES = 8 * 1024 * 1024  # of an upload that takes a while to look through


@dataclass
class Rejected:
    """The images that could not be used: how many, and the first of them."""

    count: int = 0
    first: list[dict[str, str]] = field(default_factory=list)

    def add(self, path: str, problem: str) -> None:
        self.count += 1
        if len(self.first) < REPORTED_REJECTIONS:
            self.first.append({"path": path, "problem": problem})


def run(context: Context) -> Outcome:
    context.progress.plan({"inspecting": 1, "decoding": 9})
    spec = IngestSpec.model_validate(context.claim.params)
    inputs = context.claim.inputs
    context.progress.enter("inspecting")
    likely_images, processes = inputs["bytes"] // IMAGE_BYTES, context.settings.decoding_processes
    with context.storage.open_local(inputs["upload"]) as file, DecodingPool(likely_images, processes) as pool:
        if inputs["bytes"] >= LARGE_BYTES and not begins_with_array(file):
            pool.start()
        upload = open_upload(file, Limits.of(context.settings), split=spec.split)
        _refuse_one_class(upload)
        _check_quota(context, Quota.IMAGES, upload.num_samples)
        prefix = context.output("datasets", inputs["name"])
        shape, written, rejected = _decode(context, upload, pool, prefix, spec)
    _check_rejected(rejected, upload.num_samples, spec.max_rejected_share)
    _refuse_empty_classes(upload.classes, written)
    _write_report(context, upload, shape, written, rejected)

    def publish(session: Session) -> dict[str, Any]:
        row = datasets.publish(
            session,
            inputs["name"],
            job_id=context.claim.job_id,
            prefix=prefix,
            written=written,
            classes=upload.classes,
            image_shape=shape,
            source_format=upload.source_format,
        )
        return {"dataset": datasets.reference_of(row)}

    result = {
        "num_samples": written.num_samples,
        "num_rejected": rejected.count,
        "classes": upload.classes,
        "image_shape": list(shape),
        "rejected": rejected.first[:10],
    }
    return Outcome(result, publish)


def _check_quota(context: Context, quota: Quota, adding: int) -> None:
    with context.database.transaction() as session:
        quotas.check(session, context.settings, quota, adding)


def working_shape(spec: IngestSpec, layout: Layout) -> tuple[int, int, int]:
    """(height, width, channels): what the spec says, else the native square size up to 64, else 64."""
    size = spec.size
    if size is None:
        width, height = layout.common_size or (0, 0)
        size = width if width == height and 8 <= width <= DEFAULT_SIZE else DEFAULT_SIZE
    return size, size, spec.channels or (1 if layout.grey else 3)


def _decode(
    context: Context, upload: Upload, pool: DecodingPool, prefix: str, spec: IngestSpec
) -> tuple[tuple[int, int, int], Written, Rejected]:
    """Decode to the resolution that the first images suggest, and begin again where a later one says otherwise.

    It says so at most twice: sizes that differ never agree again, and a set with one colour image is not grey.
    """
    known = Layout(None, grey=False) if spec.size and spec.channels else upload.layout()
    layout = known or _first_look(upload, pool, spec, context.settings.max_image_pixels)
    while True:
        shape = working_shape(spec, layout)
        _refuse_growth(upload.num_samples, math.prod(shape), context.claim.inputs["bytes"])
        _check_quota(context, Quota.BYTES, upload.num_samples * math.prod(shape))
        try:
            return shape, *_decode_all(context, upload, pool, prefix, spec, layout)
        except _OtherLayout as other:
            layout = other.layout


def _refuse_growth(images: int, bytes_each: int, uploaded: int) -> None:
    """Tiny images become images of the working resolution: millions of them may fit in next to nothing."""
    if images * bytes_each > FREE_BYTES + MAX_RATIO * uploaded:
        raise TooLarge(
            f"The upload of {uploaded} bytes unfolds to {images} images of {bytes_each} bytes, more than {MAX_RATIO} "
            "times its size. Nothing was kept.",
            code="archive_bomb",
        )


class _OtherLayout(Exception):
    """The images seen so far want another working resolution."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout


def _first_look(upload: Upload, pool: DecodingPool, spec: IngestSpec, max_pixels: int) -> Layout:
    """Raises InvalidUpload where these few are already too many that cannot be read."""
    layout, rejected = None, Rejected()
    target = Target(8, 3, max_pixels)
    for ready in decoded(upload, target, pool=pool, most=FIRST_LOOK):
        if ready.pixels is not None:
            layout = _widened(layout, (ready.width, ready.height), ready.grey)
        else:
            rejected.add(ready.sample.path, ready.problem or "")
    _check_rejected(rejected, upload.num_samples, spec.max_rejected_share, so_far=upload.num_samples > FIRST_LOOK)
    return layout or Layout(None, False)


def _widened(layout: Layout | None, size: tuple[int, int], grey: bool) -> Layout:
    """The layout of some images and one more."""
    if layout is None:
        return Layout(size, grey)
    if layout.common_size == size and layout.grey == grey:
        return layout
    return Layout(size if layout.common_size == size else None, layout.grey and grey)


def _decode_all(
    context: Context, upload: Upload, pool: DecodingPool, prefix: str, spec: IngestSpec, layout: Layout
) -> tuple[Written, Rejected]:
    shape = working_shape(spec, layout)
    writer = ShardWriter(context.storage, prefix, shape)
    rejected = Rejected()
    watch = context.progress.enter("decoding", unit="images")
    target = Target(shape[0], shape[2], context.settings.max_image_pixels)
    with closing(decoded(upload, target, pool=pool)) as images:
        for done, (sample, pixels, problem, sample_id, width, height, grey) in enumerate(images, start=1):
            if pixels is None:
                rejected.add(sample.path, problem or "")
                if rejected.count >= MANY_REJECTED:
                    _check_rejected(rejected, upload.num_samples, spec.max_rejected_share, so_far=True)
            else:
                seen = _widened(layout, (width, height), grey)
                if seen is not layout and working_shape(spec, seen) != shape:
                    raise _OtherLayout(seen)
                layout = seen
                writer.add(pixels, Row(sample_id, sample.path, sample.label, width, height, sample.group))
            watch.advance(done, upload.num_samples)
    return writer.close(len(upload.classes)), rejected


def _refuse_one_class(upload: Upload) -> None:
    if len(upload.classes) < 2:
        raise UnusableDataset(
            f"All {upload.num_samples} images are of one class ({upload.classes[0]}). A training set needs at "
            "least two: upload a zip with one folder a class, or an npz with at least two different labels.",
            code="one_class",
        )


def _check_rejected(rejected: Rejected, total: int, allowed: float, *, so_far: bool = False) -> None:
    if rejected.count > allowed * total:
        first = rejected.first[0]
        some = "At least " if so_far else ""
        raise InvalidUpload(
            f"{some}{rejected.count} of {total} images cannot be used, more than the allowed share of {allowed:.0%}; "
            f"the first is {first['path']}: {first['problem']}. Mend them, or upload with a larger max_rejected_share.",
            code="too_many_rejected",
        )


def _refuse_empty_classes(classes: list[str], written: Written) -> None:
    empty = [name for name, count in zip(classes, written.class_counts, strict=True) if count == 0]
    if empty:
        raise InvalidUpload(
            f"No image of these classes could be read: {', '.join(empty[:5])}. Mend them or leave the classes out.",
            code="empty_class",
        )


def _write_report(
    context: Context, upload: Upload, shape: tuple[int, int, int], written: Written, rejected: Rejected
) -> None:
    report = {
        "job": context.claim.job_id,
        "upload": {key: context.claim.inputs[key] for key in ("sha256", "bytes")},
        "source_format": upload.source_format,
        "image_shape": shape,
        "num_samples": written.num_samples,
        "classes": dict(zip(upload.classes, written.class_counts, strict=True)),
        "num_rejected": rejected.count,
        "rejected": rejected.first,
    }
    context.storage.write(f"{context.artifacts}/report.json", json.dumps(report, indent=1).encode())
