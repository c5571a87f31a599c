"""A review job: write the version that a sanitise job's verdicts make where a person's decisions go before them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.datasets import repository as datasets
from service.datasets.shard_writing import ShardWriter, Written
from service.datasets.shards import ShardReader
from service.errors import UnusableDataset
from service.jobs import artifacts, overrides
from service.jobs.overrides import Decision, Standing
from service.jobs.verdicts import Verdict, Verdicts
from service.tables import DatasetVersion, Job
from worker.context import Context, Outcome
from worker.datasets import open_version
from worker.lineage import reviewed_by


@dataclass(frozen=True, eq=False)
class Reviewed:
    """The verdicts of a sanitise job, and what people decided, as both stood when the review began."""

    job: Job
    verdicts: Verdicts  # Winnow's own
    numbers: NDArray[np.int32]  # of each image's decision, 0 where there is none
    decisions: dict[int, Decision]
    last: int

    @property
    def final(self) -> Verdicts:
        """With a person's decision in place of Winnow's where there is one."""
        final = self.verdicts.copy()
        for verdict in overrides.DECISIONS:
            made = [number for number, each in self.decisions.items() if each.verdict == verdict]
            final[np.isin(self.numbers, made)] = verdict.value
        return final


def run(context: Context) -> Outcome:
    context.progress.plan({"reading": 5.0, "writing": 95.0})
    context.progress.enter("reading")
    reviewed = _read(context)
    candidate, reader = open_version(context, reviewed.job.inputs["dataset"])
    prefix = context.output("datasets", candidate.name)
    written = _write_version(context, reviewed, candidate, reader, prefix)
    if not written.num_samples:
        raise UnusableDataset("No image is left: every one is quarantined. Keep some of them.", code="nothing_left")
    result = _result(reviewed, candidate)
    report = {"report": "review", **result, "made": _acts(reviewed)}
    context.storage.write(f"{context.artifacts}/report.json", json.dumps(report, indent=1).encode())
    return Outcome(result, _publisher(context, candidate, prefix, written))


def _read(context: Context) -> Reviewed:
    job = reviewed_by(context, context.claim.inputs["job"])
    stands, made = context.patiently(partial(_decided, context, job.id))
    with closing(context.storage.open(artifacts.verdicts_key(job))) as file:
        coded = pq.ParquetFile(file).read(["verdict"])["verdict"].combine_chunks().dictionary_encode()
    verdicts = np.array(coded.dictionary.to_pylist(), dtype=object)[coded.indices.to_numpy()]
    numbers = stands.over(len(verdicts))
    standing = {number: made[number] for number in np.unique(numbers[numbers > 0]).tolist()}
    return Reviewed(job, verdicts, numbers, standing, stands.last)


def _decided(context: Context, job_id: str) -> tuple[Standing, dict[int, Decision]]:
    with context.database.session() as session:
        return overrides.standing(session, job_id), overrides.decisions(session, job_id)


def _write_version(
    context: Context, reviewed: Reviewed, candidate: DatasetVersion, reader: ShardReader, prefix: str
) -> Written:
    """Shard by shard. An image that a person kept is the uploaded one; any other is as the sanitise job left it."""
    treated, rows, final = _treated(context, reviewed.job), reader.each_row(), reviewed.final
    watch = context.progress.enter("writing", unit="images")
    with ShardWriter(context.storage, prefix, reader.image_shape, len(candidate.classes)) as writer:
        for start, images in reader.shards():
            here = slice(start, start + len(images))
            own, by_person = reviewed.verdicts[here], reviewed.numbers[here] > 0
            stays = final[here] != Verdict.QUARANTINE.value
            for place, row in enumerate(islice(rows, len(images))):
                image = next(treated) if own[place] != Verdict.QUARANTINE.value else None
                if stays[place]:
                    writer.add(images[place] if image is None or by_person[place] else image, row)
            watch.advance(start + len(images), reader.num_samples)
        return writer.close()


def _treated(context: Context, job: Job) -> Iterator[NDArray[np.uint8]]:
    """The images that the sanitise job let through, as it did, one by one."""

    def find() -> DatasetVersion:
        with context.database.session() as session:
            return session.scalars(select(DatasetVersion).where(DatasetVersion.job_id == job.id)).one()

    row = context.patiently(find)
    for block in datasets.reader(context.storage, row).blocks():
        yield from block


def _result(reviewed: Reviewed, candidate: DatasetVersion) -> dict[str, Any]:
    own, final = reviewed.verdicts == Verdict.QUARANTINE.value, reviewed.final
    out = final == Verdict.QUARANTINE.value
    return {
        "counts": {verdict.value: int((final == verdict.value).sum()) for verdict in Verdict},
        "overridden": int((reviewed.numbers > 0).sum()),
        "restored": int((own & ~out).sum()),
        "removed": int((~own & out).sum()),
        "decisions": reviewed.last,
        "overrides_digest": overrides.digest(reviewed.numbers, reviewed.decisions),
        "job": reviewed.job.id,
        "parent": datasets.reference_of(candidate),
    }


def _acts(reviewed: Reviewed) -> list[dict[str, Any]]:
    """Of each decision that stands for some image: whose, when, what, and for how many."""
    counts = np.bincount(reviewed.numbers, minlength=1)
    return [
        {
            "verdict": each.verdict,
            "by": each.by,
            "at": each.at.isoformat(),
            "note": each.note,
            "images": int(counts[seq]),
        }
        for seq, each in reviewed.decisions.items()
    ]


def _publisher(context: Context, candidate: DatasetVersion, prefix: str, written: Written) -> Any:
    height, width, channels = candidate.image_shape

    def publish(session: Session) -> dict[str, Any]:
        row = datasets.publish(
            session,
            candidate.name,
            job_id=context.claim.job_id,
            prefix=prefix,
            written=written,
            classes=candidate.classes,
            image_shape=(height, width, channels),
            source_format="reviewed",
            parent=datasets.reference_of(candidate),
        )
        return {"dataset": datasets.reference_of(row)}

    return publish
