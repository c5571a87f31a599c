"""What a reader must know before relying on a sanitise job."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

from models.calibration import wilson_interval
from worker.judging import Judgement

POORLY_TOLD = 0.75
"""AUROC of a filter's check on images held out of its fit, under which the report says so."""

FEW_TRUSTED = 30
"""Trusted images of a class, under which detectors of labels may know too little of it."""
TIMES_THE_RATE = 3
CLASSES_TOLD = 5


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


def unlike_and_kept(judgement: Judgement) -> list[str]:
    """A sentence where a sifted reference lacks the like of more images than the rate lets be flagged."""
    unlike = judgement.test.unlike_any(judgement.candidates)
    kept = unlike & ~judgement.flagged
    if not kept.any():
        return []
    told = (
        f"{unlike.sum()} images resemble none of those that the others are compared with. Without trusted images "
        f"nobody can say which of them are poison and which only uncommon: half of them are taken for clean, the "
        f"farthest are flagged first, and {kept.sum()} of them stay in at this rate. Give trusted images"
    )
    enough = float(judgement.p_values[unlike].max())
    return [f"{told}, or ask for a false_quarantine_rate of {ceil(1000 * enough) / 1000:g} to have them all flagged."]


def thin_classes(judgement: Judgement, class_names: Sequence[str]) -> list[str]:
    """A sentence for each class that lost far more than the rate and of which the reference shows few images.

    The class that lost the largest share comes first. Nothing where labels are not known, or no rate was asked for.
    """
    labels, reference_labels = judgement.candidates.labels, judgement.reference.labels
    if judgement.rate is None or labels is None or reference_labels is None:
        return []
    images, trusted = (np.bincount(each, minlength=len(class_names)) for each in (labels, reference_labels))
    lost = np.bincount(labels[judgement.flagged], minlength=len(class_names))
    limit = TIMES_THE_RATE * judgement.rate
    thin = [
        place
        for place in np.flatnonzero((trusted < FEW_TRUSTED) & (images > 0)).tolist()
        if wilson_interval(int(lost[place]), int(images[place]))[0] > limit
    ]
    thin.sort(key=lambda place: lost[place] / images[place], reverse=True)
    return [
        f"Of class {class_names[place]}, {lost[place]} of {images[place]} images are flagged "
        f"({lost[place] / images[place]:.0%}), and the reference shows it in {trusted[place]} images only. Detectors "
        "of labels know a class by what the reference shows of it: look at these images before you give them up, or "
        "give more trusted images of other objects of this class."
        for place in thin[:CLASSES_TOLD]
    ]
