"""What a reader must know before relying on a sanitise job."""

from __future__ import annotations

from worker.judging import Judgement

POORLY_TOLD = 0.75
"""AUROC of a filter's check on images held out of its fit, under which the report says so."""


def caveats(judgement: Judgement, told_apart: float | None) -> list[str]:
    """Sentences for the reader of the report. told_apart: the AUROC of the filter's own check; None without one."""
    found = []
    if told_apart is not None and told_apart < POORLY_TOLD:
        found.append(
            "The filter hardly tells perturbed images from clean ones: on trusted images held out of its fit, the "
            f"AUROC between them and their own perturbed copies is {told_apart:.3f}. What it flags here it flags for "
            "other reasons than such perturbations. The kind residual, a smaller filter.fit.peak_lr, a "
            "filter.fit.clip_norm or more trusted images may tell more."
        )
    if judgement.rate is None:
        flagged = judgement.calibration_flagged
        found.append(
            "A fixed threshold promises no rate. On trusted images held out of every fit it flags "
            f"{flagged['share']:.2%} (95 % interval {flagged['low']:.2%} to {flagged['high']:.2%}, n = {flagged['n']})."
        )
    return found
