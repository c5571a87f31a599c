"""Gathers what a finished step knows into its report, and puts the report on storage."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from models.filtering import FilterFit
from models.specs import EvaluateSpec, SanitiseSpec
from service.datasets import repository as datasets
from worker.context import Context
from worker.judging import Judgement
from worker.libraries import library_versions
from worker.reports.evaluate import AttackExample, EvaluateFacts, evaluate_report
from worker.reports.page import Report
from worker.reports.sanitise import FitLosses, GalleryItem, SanitiseFacts, sanitise_report
from worker.sets import Sets
from worker.subject import Subject, Trial

GALLERY_IMAGES = 24


def write_sanitise(
    context: Context,
    sets: Sets,
    fitted: FilterFit,
    judgement: Judgement,
    verdicts: NDArray[np.str_],
    spec: SanitiseSpec,
) -> None:
    facts = SanitiseFacts(
        job_id=context.claim.job_id,
        dataset=datasets.reference_of(sets.candidate),
        reference=sets.reference_name,
        result_dataset=f"the next version of {sets.candidate.name}",
        spec=spec.model_dump(mode="json"),
        score_name=fitted.filter.score_name,
        scores=judgement.scores,
        p_values=judgement.p_values,
        verdicts=verdicts,
        threshold=judgement.filter_threshold,
        alpha=judgement.alpha,
        smallest_alpha=judgement.smallest_alpha,
        calibration_scores=judgement.calibration_scores,
        losses={"denoiser": FitLosses(fitted.losses.train_loss, fitted.losses.validation_loss)},
        class_names=sets.candidate.classes,
        labels=sets.candidate_reader.labels(),
        gallery=_gallery(sets, fitted, judgement),
        rates_are=judgement.rates_are,
        warnings=_warnings(judgement),
        notes=fitted.notes,
        versions=library_versions(),
        seconds=context.progress.close(),
    )
    _write(context, sanitise_report(facts))


def _gallery(sets: Sets, fitted: FilterFit, judgement: Judgement) -> list[GalleryItem]:
    """Flagged images from the most suspicious to the least, evenly spaced."""
    flagged = np.flatnonzero(judgement.flagged)
    order = flagged[np.argsort(-judgement.scores[flagged], kind="stable")]
    chosen = order[np.linspace(0, len(order) - 1, min(GALLERY_IMAGES, len(order))).round().astype(np.int64)]
    images = sets.candidate_reader.images(chosen)
    rebuilt = fitted.filter.reconstruct(images)
    rows = sets.candidate_reader.rows()
    return [
        GalleryItem(
            index=int(index),
            path=rows[index].path,
            label=sets.candidate.classes[rows[index].label],
            original=images[place],
            reconstruction=rebuilt[place],
            score=float(judgement.scores[index]),
            p_value=float(judgement.p_values[index]),
        )
        for place, index in enumerate(chosen)
    ]


def _warnings(judgement: Judgement) -> list[str]:
    if judgement.rate is not None:
        return []
    flagged = judgement.calibration_flagged
    return [
        "A fixed threshold promises no rate. On trusted images held out of every fit it flags "
        f"{flagged['share']:.2%} (95 % interval {flagged['low']:.2%} to {flagged['high']:.2%}, n = {flagged['n']})."
    ]


def write_evaluation(
    context: Context, subject: Subject, trial: Trial, spec: EvaluateSpec, examples: list[AttackExample]
) -> None:
    document = trial.found.to_json()
    facts = EvaluateFacts(
        model=subject.reference,
        dataset=trial.dataset,
        job_id=context.claim.job_id,
        spec=spec.model_dump(mode="json"),
        rows=document["rows"],
        flags=document["gradient_masking"],
        clean=trial.clean,
        examples=examples,
        warnings=[],
        versions=library_versions(),
        seconds=context.progress.close(),
        notes={"alpha": subject.alpha},
    )
    _write(context, evaluate_report(facts))


def _write(context: Context, report: Report) -> None:
    context.storage.write(f"{context.artifacts}/report.html", report.html.encode())
    context.storage.write(f"{context.artifacts}/report.json", json.dumps(report.json).encode())
