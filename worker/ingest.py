"""An ingest job: an upload becomes an immutable version, every image decoded once to the working resolution."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from models.specs import IngestSpec
from models.training import Watch
from service import quotas
from service.datasets import repository as datasets
from service.datasets.decoding import DecodingPool, Target, decoded
from service.datasets.encoded import EncodedUpload
from service.datasets.readers import Upload, begins_with_array, open_upload
from service.datasets.sample import MAX_RATIO, Layout, Limits
from service.datasets.shard_writing import PartWriter, Written, unite
from service.datasets.unpack import FREE_BYTES
from service.errors import Corrupt, InvalidUpload, TooLarge, UnusableDataset
from service.quotas import Quota
from worker.context import Context, Outcome
from worker.decode_steps import PHASE, decode_by_steps
from worker.decoding import Decoded, Plan, Rejected, Tally, decode_part, widened, working_shape
from worker.fanout import worth_sharing

FIRST_LOOK = 64  # images that suggest the working resolution
IMAGE_BYTES = 1024  # of a small image's file
LARGE_BYTES = 8 * 1024 * 1024  # of an upload that takes a while to look through


@dataclass(frozen=True)
class Version:
    """What an upload became, before anybody can see it."""

    prefix: str
    image_shape: tuple[int, int, int]
    written: Written
    rejected: Rejected


def run(context: Context) -> Outcome:
    context.progress.plan({"inspecting": 1, PHASE: 9})
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
        version = _decode(context, upload, pool, spec)
    _refuse_empty_classes(upload.classes, version.written)
    _write_report(context, upload, version)

    def publish(session: Session) -> dict[str, Any]:
        row = datasets.publish(
            session,
            inputs["name"],
            job_id=context.claim.job_id,
            prefix=version.prefix,
            written=version.written,
            classes=upload.classes,
            image_shape=version.image_shape,
            source_format=upload.source_format,
        )
        return {"dataset": datasets.reference_of(row)}

    result = {
        "num_samples": version.written.num_samples,
        "num_rejected": version.rejected.count,
        "classes": upload.classes,
        "image_shape": list(version.image_shape),
        "rejected": version.rejected.first[:10],
    }
    return Outcome(result, publish)


def _check_quota(context: Context, quota: Quota, adding: int) -> None:
    def check() -> None:
        with context.database.transaction() as session:
            quotas.check(session, context.settings, quota, adding)

    context.patiently(check)


def _decode(context: Context, upload: Upload, pool: DecodingPool, spec: IngestSpec) -> Version:
    """Decode to the resolution that the first images suggest, and begin again where a later one says otherwise.

    It says so at most twice: sizes that differ never agree again, and a set with one colour image is not grey.
    """
    known = Layout(None, grey=False) if spec.size and spec.channels else upload.layout()
    layout = known or _first_look(upload, pool, spec, context.settings.max_image_pixels)
    while True:
        plan = Plan(spec, layout, upload.num_samples, context.settings.max_image_pixels)
        image_bytes = math.prod(plan.shape)
        _refuse_growth(plan.num_samples, image_bytes, context.claim.inputs["bytes"])
        _check_quota(context, Quota.BYTES, plan.num_samples * image_bytes)
        watch = context.progress.enter(PHASE, unit="images")
        if isinstance(upload, EncodedUpload) and worth_sharing(context, upload.num_samples):
            prefix, decoded_parts = decode_by_steps(context, upload, pool, plan, watch)
        else:
            prefix, decoded_parts = _in_one(context, upload, pool, plan, watch)
        tally = Tally(layout)
        written = unite(context.storage, prefix, tally.parts(decoded_parts), len(upload.classes))
        _check_rejected(tally.rejected, plan, so_far=not tally.whole)
        if working_shape(spec, tally.layout) == plan.shape:
            _check_all_there(written, tally.rejected, plan)
            return Version(prefix, plan.shape, written, tally.rejected)
        layout = tally.layout


def _in_one(
    context: Context, upload: Upload, pool: DecodingPool, plan: Plan, watch: Watch
) -> tuple[str, Iterator[Decoded]]:
    """All of it as one part, by this worker."""
    prefix = context.output("datasets", context.claim.inputs["name"])
    writer = PartWriter(context.storage, prefix, "shard", plan.shape)
    with closing(decoded(upload, plan.target, pool=pool)) as images:
        return prefix, iter([decode_part(images, writer, plan, plan.num_samples, watch)])


def _first_look(upload: Upload, pool: DecodingPool, spec: IngestSpec, max_pixels: int) -> Layout:
    """Raises InvalidUpload where these few are already too many that cannot be read."""
    layout, rejected = None, Rejected()
    for ready in decoded(upload, Target(8, 3, max_pixels), pool=pool, most=FIRST_LOOK):
        if ready.pixels is not None:
            layout = widened(layout, Layout((ready.width, ready.height), ready.grey))
        else:
            rejected.add(ready.sample.path, ready.problem or "")
    layout = layout or Layout(None, False)
    plan = Plan(spec, layout, upload.num_samples, max_pixels)
    _check_rejected(rejected, plan, so_far=upload.num_samples > FIRST_LOOK)
    return layout


def _refuse_growth(images: int, bytes_each: int, uploaded: int) -> None:
    """Tiny images become images of the working resolution: millions of them may fit in next to nothing."""
    if images * bytes_each > FREE_BYTES + MAX_RATIO * uploaded:
        raise TooLarge(
            f"The upload of {uploaded} bytes unfolds to {images} images of {bytes_each} bytes, more than {MAX_RATIO} "
            "times its size. Nothing was kept.",
            code="archive_bomb",
        )


def _refuse_one_class(upload: Upload) -> None:
    if len(upload.classes) < 2:
        raise UnusableDataset(
            f"All {upload.num_samples} images are of one class ({upload.classes[0]}). A training set needs at "
            "least two: upload a zip with one folder a class, or an npz with at least two different labels.",
            code="one_class",
        )


def _check_rejected(rejected: Rejected, plan: Plan, *, so_far: bool) -> None:
    """so_far: not all were looked at."""
    if plan.refuses(rejected):
        first = rejected.first[0]
        some = "At least " if so_far else ""
        raise InvalidUpload(
            f"{some}{rejected.count} of {plan.num_samples} images cannot be used, more than the allowed share of "
            f"{plan.spec.max_rejected_share:.0%}; the first is {first['path']}: {first['problem']}. Mend them, or "
            "upload with a larger max_rejected_share.",
            code="too_many_rejected",
        )


def _check_all_there(written: Written, rejected: Rejected, plan: Plan) -> None:
    """Every image is in the version or told as rejected."""
    if written.num_samples + rejected.count != plan.num_samples:
        raise Corrupt(
            f"Of {plan.num_samples} images {written.num_samples} were written and {rejected.count} rejected: the parts "
            "do not add up. Nothing was published; retry the job."
        )


def _refuse_empty_classes(classes: list[str], written: Written) -> None:
    empty = [name for name, count in zip(classes, written.class_counts, strict=True) if count == 0]
    if empty:
        raise InvalidUpload(
            f"No image of these classes could be read: {', '.join(empty[:5])}. Mend them or leave the classes out.",
            code="empty_class",
        )


def _write_report(context: Context, upload: Upload, version: Version) -> None:
    report = {
        "job": context.claim.job_id,
        "upload": {key: context.claim.inputs[key] for key in ("sha256", "bytes")},
        "source_format": upload.source_format,
        "image_shape": version.image_shape,
        "num_samples": version.written.num_samples,
        "classes": dict(zip(upload.classes, version.written.class_counts, strict=True)),
        "num_rejected": version.rejected.count,
        "rejected": version.rejected.first,
    }
    context.storage.write(f"{context.artifacts}/report.json", json.dumps(report, indent=1).encode())
