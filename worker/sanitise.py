"""A sanitise job: fit the filter on the trusted reference, calibrate it, judge every candidate, write what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from models.filtering import FilterFit, fit_filter
from models.specs import SanitiseSpec
from service.datasets import repository as datasets
from service.datasets.shards import Row, ShardWriter, Written
from service.jobs.verdicts import Verdict, VerdictTable
from worker import scoring
from worker.artifacts import FilterArtifacts, save_filter
from worker.context import Context, Outcome
from worker.datasets import relabelled
from worker.judging import Judgement, judge
from worker.reporting import write_sanitise
from worker.sets import Sets, open_sets

PLAN = {
    "surrogates": 20.0,
    "perturbing": 5.0,
    "denoiser": 45.0,
    "calibrating": 5.0,
    "scoring": 20.0,
    "writing": 5.0,
    "report": 5.0,
}


def run(context: Context) -> Outcome:
    context.progress.plan(PLAN)
    spec = SanitiseSpec.model_validate(context.claim.params)
    sets = open_sets(context, spec)
    fitted = _fit(context, sets, spec)
    watch = context.progress.enter("calibrating", unit="images")
    calibration = scoring.score_rows(fitted.filter, sets.reference_reader, sets.held, watch)
    watch = context.progress.enter("scoring", unit="images")
    scores = scoring.score_all(fitted.filter, sets.candidate_reader, watch, context.checkpoints)
    judgement = judge(scores, calibration, spec)
    prefix = context.output("datasets", sets.candidate.name)
    verdicts, written = _write_version(context, sets, fitted, judgement, spec, prefix)
    _write_verdicts(context, sets, judgement, verdicts, fitted.filter.score_name)
    artifacts = FilterArtifacts(fitted.filter, calibration, datasets.reference_of(sets.reference), sets.held)
    save_filter(context.storage, context.artifacts, artifacts)
    context.progress.enter("report")
    write_sanitise(context, sets, fitted, judgement, verdicts, spec)
    return Outcome(_result(sets, judgement, verdicts), _publisher(context, sets, prefix, written))


def _fit(context: Context, sets: Sets, spec: SanitiseSpec) -> FilterFit:
    rows = sets.fit
    if len(rows) > spec.filter.max_images:
        rng = np.random.default_rng(np.random.PCG64(spec.seed))
        rows = np.sort(rng.choice(rows, spec.filter.max_images, replace=False))
    labels = relabelled(sets.reference_reader.labels(), sets.reference.classes, sets.candidate.classes)
    return fit_filter(
        sets.reference_reader.images(rows),
        labels[rows],
        spec,
        num_classes=len(sets.candidate.classes),
        watch_for=context.progress.enter,
        checkpoints=context.checkpoints,
    )


def _write_version(
    context: Context, sets: Sets, fitted: FilterFit, judgement: Judgement, spec: SanitiseSpec, prefix: str
) -> tuple[NDArray[np.str_], Written]:
    """Judge shard by shard what becomes of flagged images, and write the images that stay."""
    height, width, channels = sets.candidate.image_shape
    writer = ShardWriter(context.storage, prefix, (height, width, channels))
    rows = sets.candidate_reader.rows()
    verdicts = np.where(judgement.flagged, Verdict.QUARANTINE.value, Verdict.KEEP.value).astype("<U10")
    watch = context.progress.enter("writing", unit="images")
    for start, images in sets.candidate_reader.shards():
        here = slice(start, start + len(images))
        pixels, decided = _treat(fitted, images, rows[here], judgement, verdicts[here], spec)
        verdicts[here] = decided
        for place in np.flatnonzero(decided != Verdict.QUARANTINE.value):
            writer.add(pixels[place], rows[start + place])
        watch.advance(start + len(images), sets.candidate_reader.num_samples)
    return verdicts, writer.close(len(sets.candidate.classes))


def _treat(
    fitted: FilterFit,
    images: NDArray[np.uint8],
    rows: list[Row],
    judgement: Judgement,
    verdicts: NDArray[np.str_],
    spec: SanitiseSpec,
) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """(pixels, verdicts) of one shard under the policy."""
    flagged = verdicts == Verdict.QUARANTINE.value
    reform = spec.policy.on_flag == "reform" and bool(flagged.any())
    if not reform and spec.policy.pass_through == "original":
        return images, verdicts
    pixels, decided = images.copy(), verdicts.copy()
    if spec.policy.pass_through == "reconstructed":
        pixels[~flagged] = fitted.filter.reconstruct(images[~flagged])
    if reform:
        places = np.flatnonzero(flagged)
        rebuilt = fitted.filter.reconstruct(images[places])
        labels = np.array([rows[place].label for place in places], np.int64)
        passes = ~judgement.flags(fitted.filter.score(rebuilt)) & (fitted.classify(rebuilt) == labels)
        pixels[places] = rebuilt
        decided[places[passes]] = Verdict.REFORM.value
    return pixels, decided


def _write_verdicts(
    context: Context, sets: Sets, judgement: Judgement, verdicts: NDArray[np.str_], score_name: str
) -> None:
    manifest = sets.candidate_reader.manifest()
    classes = np.array(sets.candidate.classes, dtype=object)
    count = len(verdicts)
    table = VerdictTable.of(
        {
            "index": np.arange(count),
            "sample_id": manifest["sample_id"],
            "path": manifest["path"],
            "label": classes[manifest["label"].to_numpy()].tolist(),
            "verdict": verdicts.tolist(),
            "p_value": judgement.p_values,
            "score": judgement.scores.astype(np.float64),
            "detector": [score_name] * count,
            "reason": [f"{score_name}_{judgement.rule}" if flag else None for flag in judgement.flagged],
        }
    )
    table.write(context.storage, f"{context.artifacts}/verdicts.parquet")


def _result(sets: Sets, judgement: Judgement, verdicts: NDArray[np.str_]) -> dict[str, Any]:
    return {
        "counts": {verdict.value: int((verdicts == verdict.value).sum()) for verdict in Verdict},
        "alpha": judgement.alpha,
        "threshold": judgement.threshold,
        "reference": datasets.reference_of(sets.reference),
        "num_calibration": judgement.num_calibration,
        "calibration_flagged": judgement.calibration_flagged,
        "rates_are": judgement.rates_are,
        "parent": datasets.reference_of(sets.candidate),
    }


def _publisher(context: Context, sets: Sets, prefix: str, written: Written) -> Any:
    height, width, channels = sets.candidate.image_shape

    def publish(session: Session) -> dict[str, Any]:
        row = datasets.publish(
            session,
            sets.candidate.name,
            job_id=context.claim.job_id,
            prefix=prefix,
            written=written,
            classes=sets.candidate.classes,
            image_shape=(height, width, channels),
            source_format="sanitised",
            parent=datasets.reference_of(sets.candidate),
        )
        return {"dataset": datasets.reference_of(row)}

    return publish
