"""Gathers what a finished step knows into its report, and puts the report on storage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from models.panel.detectors import MODULES
from models.specs import EvaluateSpec
from service.datasets import repository as datasets
from service.jobs.verdicts import Verdicts
from worker.caveats import caveats, thin_classes, unlike_and_kept
from worker.context import Context
from worker.exhibits import gallery
from worker.fitting import Fitted, filter_phase
from worker.judging import Judgement
from worker.libraries import library_versions
from worker.reports.distill import DistillFacts, distill_report
from worker.reports.evaluate import AttackExample, EvaluateFacts, evaluate_report
from worker.reports.page import Report
from worker.reports.sanitise import (
    DetectorFacts,
    Discovery,
    FitLosses,
    SanitiseFacts,
    SuspiciousImage,
    sanitise_report,
)
from worker.reports.sanitise_panel_words import FILTER_BLIND_TO, FILTER_SEES
from worker.subject import Subject, Trial


def write_sanitise(
    context: Context,
    fitted: Fitted,
    judgement: Judgement,
    verdicts: Verdicts,
    suspicious_reference: Sequence[SuspiciousImage] = (),
) -> None:
    """suspicious_reference: images of the reference itself that look wrong, the worst first."""
    sets, own = fitted.sets, fitted.filter_fit
    alone = len(judgement.panel.names) == 1
    facts = SanitiseFacts(
        job_id=context.claim.job_id,
        dataset=datasets.reference_of(sets.candidate),
        reference=sets.reference_name,
        result_dataset=f"the next version of {sets.candidate.name}",
        spec=fitted.found.spec.model_dump(mode="json"),
        score_name=own.filter.score_name,
        scores=judgement.scores,
        p_values=judgement.p_values,
        verdicts=verdicts,
        threshold=judgement.filter_threshold,
        alpha=judgement.alpha,
        smallest_alpha=judgement.smallest_alpha,
        calibration_scores=judgement.calibration_scores,
        calibration_groups=judgement.test.groups,
        losses={
            filter_phase("denoiser", fold): FitLosses(fit.losses.train_loss, fit.losses.validation_loss)
            for fold, fit in enumerate(own.fits)
        },
        class_names=sets.candidate.classes,
        labels=fitted.listings.candidates.labels,
        gallery=gallery(fitted, judgement),
        rates_are=judgement.rates_are,
        warnings=[
            *caveats(judgement, own.notes["told_apart"]),
            *unlike_and_kept(judgement),
            *thin_classes(judgement, sets.candidate.classes),
        ],
        notes=own.notes | _panel_notes(fitted, judgement),
        versions=library_versions(),
        seconds=context.progress.close(),
        detectors=[] if alone else _detectors(judgement),
        flagged=judgement.flagged,
        calibration_flagged=round(judgement.calibration_flagged["share"] * judgement.num_calibration),
        discovery=_discovery(judgement),
        shifts=judgement.shifts,
        calibrated_on_candidates=judgement.test.among is not None,
        sifting=fitted.sifting,
        suspicious_reference=suspicious_reference,
        search=[asdict(trial) for trial in fitted.found.trials] or None,
    )
    _write(context, sanitise_report(facts))


def _panel_notes(fitted: Fitted, judgement: Judgement) -> dict[str, Any]:
    """How the panel came about, and how its p-values became one where there were several."""
    notes: dict[str, Any] = {}
    if fitted.panel_fit is not None:
        notes["panel"] = fitted.panel_fit.notes | ({"encoder": fitted.eye.facts} if fitted.eye else {})
    if len(judgement.panel.names) > 1 and judgement.rate is not None:
        notes["combined_by"] = judgement.test.way
    return notes


def _detectors(judgement: Judgement) -> list[DetectorFacts]:
    return [
        DetectorFacts(
            name=name,
            scores=judgement.candidates.scores[:, place],
            calibration_scores=judgement.calibration.scores[:, place],
            spoke=judgement.spoke[:, place],
            threshold=float(judgement.thresholds[place]),
            sees=getattr(MODULES.get(name), "SEES", FILTER_SEES),
            blind_to=getattr(MODULES.get(name), "BLIND_TO", FILTER_BLIND_TO),
        )
        for place, name in enumerate(judgement.panel.names)
    ]


def _discovery(judgement: Judgement) -> Discovery | None:
    if judgement.rate is None or judgement.level is None or judgement.smallest_share is None:
        return None
    return Discovery(judgement.rate, judgement.level, judgement.smallest_share)


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
        warnings=subject.warnings,
        versions=library_versions(),
        seconds=context.progress.close(),
        notes={"alpha": subject.alpha},
        curve=document["curve"],
        least=document["robustness"],
        amplitude=document["gradient_amplitude"],
    )
    _write(context, evaluate_report(facts))


def write_distillation(context: Context, model: str, card: Mapping[str, Any]) -> None:
    """card: the model card as it is published."""
    facts = DistillFacts(
        model=model,
        job_id=context.claim.job_id,
        spec=card["spec"],
        metrics=card["metrics"],
        notes=card["notes"],
        losses=card["losses"],
        versions=card["libraries"],
    )
    _write(context, distill_report(facts))


def _write(context: Context, report: Report) -> None:
    context.storage.write(f"{context.artifacts}/report.html", report.html.encode())
    context.storage.write(f"{context.artifacts}/report.json", json.dumps(report.json).encode())
