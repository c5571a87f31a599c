"""Decoding as steps: the contents of an archive go to storage once, and any worker decodes a range of its images."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq

from models.specs import IngestSpec
from models.training import Watch
from service.datasets.contents import Contents, write_contents
from service.datasets.decoding import DecodingPool
from service.datasets.encoded import EncodedUpload
from service.datasets.sample import Layout, Sample
from service.datasets.shard_writing import Part, PartWriter
from service.datasets.shards import Shard
from service.jobs import artifacts
from service.jobs.steps import StepClaim
from worker.context import Context
from worker.decoding import Decoded, Plan, Rejected, decode_part
from worker.fanout import fan_out
from worker.stepping import Work

PHASE = "decoding"
TOLD = b"decoded"


def decode_by_steps(
    context: Context, upload: EncodedUpload, pool: DecodingPool, plan: Plan, watch: Watch
) -> tuple[str, Iterator[Decoded]]:
    """The prefix of the parts, and each in order, by however many workers come."""
    key, share = context.claim.inputs["upload"], context.settings.step_images
    contents = write_contents(context.storage, artifacts.steps_prefix(context.claim.job_id, PHASE), upload, key, share)
    given = _given(contents, plan, context.settings.max_image_bytes)

    def own(claim: StepClaim) -> Iterator[Sample]:
        return upload.samples(claim.start, claim.stop)

    results = fan_out(context, PHASE, upload.num_samples, given, _work(context, pool, own), watch)
    return _prefix(context, given), map(unpacked, results)


@contextmanager
def helper(context: Context) -> Iterator[Work]:
    """Its decoding processes live as long as its turn."""

    def from_storage(claim: StepClaim) -> Iterator[Sample]:
        contents = Contents(**claim.given["contents"])
        return contents.samples(context.storage, claim.start, claim.stop, claim.given["max_image_bytes"])

    with DecodingPool(context.settings.step_images, context.settings.decoding_processes) as pool:
        yield _work(context, pool, from_storage)


def _work(context: Context, pool: DecodingPool, samples_of: Callable[[StepClaim], Iterator[Sample]]) -> Work:
    def work(claim: StepClaim, watch: Watch) -> bytes:
        given, plan = claim.given, _plan(claim.given)
        name = f"{claim.number:06d}-{claim.attempt}"  # another attempt overwrites nothing
        writer = PartWriter(context.storage, _prefix(context, given), name, plan.shape)
        with closing(pool.decode(samples_of(claim), plan.target)) as images:
            return packed(decode_part(images, writer, plan, claim.stop - claim.start, watch))

    return work


def _given(contents: Contents, plan: Plan, max_image_bytes: int) -> dict[str, Any]:
    """As JSON gives it back."""
    told = {
        "contents": asdict(contents),
        "spec": plan.spec.model_dump(mode="json"),
        "layout": asdict(plan.layout),
        "num_samples": plan.num_samples,
        "max_pixels": plan.max_pixels,
        "max_image_bytes": max_image_bytes,
    }
    given: dict[str, Any] = json.loads(json.dumps(told))
    return given


def _plan(given: dict[str, Any]) -> Plan:
    spec = IngestSpec.model_validate(given["spec"])
    return Plan(spec, _layout(**given["layout"]), given["num_samples"], given["max_pixels"])


def _layout(common_size: list[int] | None, grey: bool) -> Layout:
    return Layout((common_size[0], common_size[1]) if common_size else None, grey)


def _prefix(context: Context, given: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
    return artifacts.shared_prefix("datasets", context.claim.inputs["name"], context.claim.job_id, digest)


def packed(decoded: Decoded) -> bytes:
    told = {
        "shards": decoded.part.shards,
        "rejected": asdict(decoded.rejected),
        "layout": asdict(decoded.layout),
        "whole": decoded.whole,
    }
    sink = io.BytesIO()
    rows = decoded.part.rows.replace_schema_metadata({TOLD: json.dumps(told)})
    pq.write_table(rows, sink, compression="zstd")
    return sink.getvalue()


def unpacked(data: bytes) -> Decoded:
    rows = pq.read_table(io.BytesIO(data))
    told = json.loads(rows.schema.metadata[TOLD])
    part = Part([Shard(*each) for each in told["shards"]], rows.replace_schema_metadata(None))
    return Decoded(part, Rejected(**told["rejected"]), _layout(**told["layout"]), told["whole"])
