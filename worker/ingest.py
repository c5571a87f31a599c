"""An ingest job: an upload becomes an immutable version, every image decoded once to the working resolution."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy.orm import Session

from models.specs import IngestSpec
from service.datasets import repository as datasets
from service.datasets.decode import ImageRejected, read_header
from service.datasets.readers import Upload, open_upload
from service.datasets.sample import Layout, Limits, Sample
from service.datasets.shards import Row, ShardWriter, Written
from service.errors import InvalidUpload, UnusableDataset
from worker.context import Context, Outcome

DEFAULT_SIZE = 64
REPORTED_REJECTIONS = 1000


def run(context: Context) -> Outcome:
    context.progress.plan({"inspecting": 1, "decoding": 9})
    spec = IngestSpec.model_validate(context.claim.params)
    inputs = context.claim.inputs
    with context.storage.open(inputs["upload"]) as file:
        upload = open_upload(file, Limits.of(context.settings))
        _refuse_one_class(upload)
        context.progress.enter("inspecting")
        shape = working_shape(spec, upload.layout())
        prefix = context.output("datasets", inputs["name"])
        written, rejected = _decode_all(context, upload, prefix, shape)
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
        "num_rejected": len(rejected),
        "classes": upload.classes,
        "image_shape": list(shape),
        "rejected": rejected[:10],
    }
    return Outcome(result, publish)


def working_shape(spec: IngestSpec, layout: Layout) -> tuple[int, int, int]:
    """(height, width, channels): what the spec says, else the native square size up to 64, else 64."""
    size = spec.size
    if size is None:
        width, height = layout.common_size or (0, 0)
        size = width if width == height and 8 <= width <= DEFAULT_SIZE else DEFAULT_SIZE
    return size, size, spec.channels or (1 if layout.grey else 3)


def _decode_all(
    context: Context, upload: Upload, prefix: str, shape: tuple[int, int, int]
) -> tuple[Written, list[dict[str, str]]]:
    writer = ShardWriter(context.storage, prefix, shape)
    rejected: list[dict[str, str]] = []
    watch = context.progress.enter("decoding", unit="images")
    for done, sample in enumerate(upload.samples(), start=1):
        try:
            if sample.problem is not None:
                raise ImageRejected(sample.problem)
            pixels = upload.pixels(sample, size=shape[0], channels=shape[2])
        except ImageRejected as error:
            rejected.append({"path": sample.path, "problem": str(error)})
        else:
            writer.add(pixels, _row(sample, context.settings.max_image_pixels))
        watch.advance(done, upload.num_samples)
    return writer.close(len(upload.classes)), rejected


def _row(sample: Sample, max_pixels: int) -> Row:
    if isinstance(sample.data, bytes):
        data, header = sample.data, read_header(sample.data, max_pixels=max_pixels)
        width, height = header.width, header.height
    else:
        data = sample.data.tobytes()
        height, width = sample.data.shape[:2]
    return Row(hashlib.sha256(data).hexdigest(), sample.path, sample.label, width, height, sample.group)


def _refuse_one_class(upload: Upload) -> None:
    if len(upload.classes) < 2:
        raise UnusableDataset(
            f"All {upload.num_samples} images are of one class ({upload.classes[0]}). A training set needs at "
            "least two: upload a zip with one folder a class, or an npz with at least two different labels.",
            code="one_class",
        )


def _check_rejected(rejected: list[dict[str, str]], total: int, allowed: float) -> None:
    if len(rejected) > allowed * total:
        first = rejected[0]
        raise InvalidUpload(
            f"{len(rejected)} of {total} images cannot be used, more than the allowed share of {allowed:.0%}; the "
            f"first is {first['path']}: {first['problem']}. Mend them, or upload with a larger max_rejected_share.",
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
    context: Context, upload: Upload, shape: tuple[int, int, int], written: Written, rejected: list[dict[str, str]]
) -> None:
    report = {
        "job": context.claim.job_id,
        "upload": {key: context.claim.inputs[key] for key in ("sha256", "bytes")},
        "source_format": upload.source_format,
        "image_shape": shape,
        "num_samples": written.num_samples,
        "classes": dict(zip(upload.classes, written.class_counts, strict=True)),
        "num_rejected": len(rejected),
        "rejected": rejected[:REPORTED_REJECTIONS],
    }
    context.storage.write(f"{context.artifacts}/report.json", json.dumps(report, indent=1).encode())
