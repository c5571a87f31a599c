"""A sanitise job: fit the filter and the panel, calibrate them, judge every candidate, write what is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from models.specs import DistillSpec, SanitiseSpec
from models.training import Watch
from service.datasets import repository as datasets
from service.datasets.shard_writing import Written
from service.datasets.shards import ShardReader
from service.jobs import harden
from service.jobs.verdicts import ROWS_A_PART, Verdict, Verdicts, VerdictTable, write_parts
from worker import scoring
from worker.artifacts import FilterArtifacts, save_filter
from worker.context import Context, Outcome
from worker.datasets import groups_of
from worker.examiner import Examiner, Listing, Scores
from worker.fanout import worth_sharing
from worker.fitting import Fitted, filter_phases, fit_all, uses_panel
from worker.judging import Judgement, judge
from worker.pooling import list_images
from worker.promising import check_rate, rows_that_calibrate
from worker.reporting import write_sanitise
from worker.score_steps import score_by_steps
from worker.scored import Detectors, Scored
from worker.sets import Sets, open_sets
from worker.suspects import suspicious_reference
from worker.treating import Treatment, write_version

PANEL_PHASES = {"believing": 25.0, "checking": 35.0}
ENCODING = {"encoding": 20.0}


def run(context: Context) -> Outcome:
    spec = SanitiseSpec.model_validate(context.claim.params)
    context.progress.plan(plan_of(spec, sifted="reference" not in context.claim.inputs))
    sets = open_sets(context)
    if not sets.sifted:
        _check_rates(context, sets, spec)
    fitted = fit_all(context, sets, spec)
    judgement = _judge(context, fitted, spec)
    prefix = context.output("datasets", fitted.sets.candidate.name)
    verdicts, written = write_version(context, Treatment(fitted, judgement, spec.policy), prefix)
    _write_verdicts(context, fitted, judgement, verdicts)
    _keep_filter(context, fitted, judgement)
    context.progress.enter("report")
    write_sanitise(context, fitted, judgement, verdicts, suspicious_reference(fitted, seed=spec.seed))
    return Outcome(_result(fitted, judgement, verdicts), _publisher(context, fitted.sets, prefix, written))


def plan_of(spec: SanitiseSpec, *, sifted: bool) -> dict[str, float]:
    """The phases and their shares, in the order in which they come."""
    panel = PANEL_PHASES if sifted or uses_panel(spec) else {}
    encoding = ENCODING if panel and spec.panel.encoder else {}
    search = {"search": 100.0} if spec.search else {}
    filter_ = {**search, **filter_phases()}
    fits = {**encoding, "sifting": 20.0, **panel, **filter_} if sifted else {**filter_, **encoding, **panel}
    return {**fits, "calibrating": 5.0, "scoring": 20.0, "writing": 5.0, "report": 5.0}


def _check_rates(context: Context, sets: Sets, spec: SanitiseSpec) -> None:
    """Refuses, before anything is fitted, a rate that the reference cannot promise: how it is grouped is known here.

    So is what the filter leaves of it to a student, where the next step of a harden job is to calibrate one.
    """
    listings = list_images(sets, spec)
    groups = groups_of(sets.reference_reader)
    reference = Scored(np.empty((len(sets.trusted), 0), np.float32), listings.reference.labels, groups)
    candidates = Scored(np.empty((0, 0), np.float32), listings.candidates.labels)
    check_rate(reference, candidates, spec.calibration, sets.candidate.classes)
    with context.database.session() as session:
        params = harden.distill_on_what_is_left(session, context.claim.job_id)
    if params is not None:
        unseen = sets.trusted[listings.reference.folds[sets.trusted] == 0]
        known = None if groups is None else groups[unseen]
        rows_that_calibrate(len(unseen), known, DistillSpec.model_validate(params))


def _judge(context: Context, fitted: Fitted, spec: SanitiseSpec) -> Judgement:
    sets, listings, examiner = fitted.sets, fitted.listings, fitted.examiner
    watch = context.progress.enter("calibrating", unit="images")
    trusted = scoring.score_rows(examiner, sets.reference_reader, sets.trusted, listings.reference, watch)
    watch = context.progress.enter("scoring", unit="images")
    scores = _score(context, examiner, sets.candidate_reader, listings.candidates, watch)
    groups = groups_of(sets.reference_reader)
    return judge(
        Scored(scores, listings.candidates.labels, groups_of(sets.candidate_reader)),
        Scored(trusted, listings.reference.labels[sets.trusted], None if groups is None else groups[sets.trusted]),
        spec,
        Detectors(examiner.names, class_names=sets.candidate.classes),
        sifted=sets.sifted,
    )


def _score(context: Context, examiner: Examiner, reader: ShardReader, listing: Listing, watch: Watch) -> Scores:
    if worth_sharing(context, reader.num_samples):
        return score_by_steps(context, examiner, reader, listing, watch)
    return scoring.score_all(examiner, reader, listing, watch, context.checkpoints)


def _keep_filter(context: Context, fitted: Fitted, judgement: Judgement) -> None:
    """The first filter, which will be served, with the trusted images that it has not seen."""
    sets = fitted.sets
    name = datasets.reference_of(sets.reference_version)
    unseen = fitted.listings.reference.folds[sets.trusted] == 0
    first = fitted.filter_fit.filter.filters[0]
    artifacts = FilterArtifacts(first, judgement.calibration.scores[unseen], name, sets.trusted[unseen])
    save_filter(context.storage, context.artifacts, artifacts)


def _write_verdicts(context: Context, fitted: Fitted, judgement: Judgement, verdicts: Verdicts) -> None:
    sets, names = fitted.sets, judgement.panel.names
    classes = np.array(sets.candidate.classes, dtype=object)

    def parts() -> Iterator[VerdictTable]:
        start = 0
        for rows in sets.candidate_reader.manifest_parts(ROWS_A_PART, ["sample_id", "path", "label"]):
            here = slice(start, start + len(rows))
            yield VerdictTable.of(
                sample_ids=rows["sample_id"],
                paths=rows["path"],
                labels=classes[rows["label"].to_numpy()].tolist(),
                verdicts=verdicts[here],
                p_values=judgement.p_values[here],
                names=names,
                scores=judgement.candidates.scores[here],
                own_p=judgement.own_p_values(here),
                spoke=judgement.spoke[here],
                first=start,
            )
            start = here.stop

    write_parts(context.storage, f"{context.artifacts}/verdicts.parquet", names, parts())


def _result(fitted: Fitted, judgement: Judgement, verdicts: Verdicts) -> dict[str, Any]:
    shift = judgement.shift
    return {
        "counts": {verdict.value: int((verdicts == verdict.value).sum()) for verdict in Verdict},
        "alpha": judgement.alpha,
        "rule": judgement.rule,
        "rate": judgement.rate,
        "threshold": judgement.threshold,
        "detectors": list(judgement.panel.names),
        "reference": fitted.sets.reference_name,
        "sifted": fitted.sifting,
        "shift": bool(shift and shift.found),
        "num_calibration": judgement.num_calibration,
        "calibration_groups": judgement.test.groups,
        "calibration_flagged": judgement.calibration_flagged,
        "rates_are": judgement.rates_are,
        "parent": datasets.reference_of(fitted.sets.candidate),
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
