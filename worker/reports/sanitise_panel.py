"""What each detector of a sanitise job found, alone and together, and which kind of poison that suggests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from worker.reports.histograms import Axis, Histogram, histogram, score_axis
from worker.reports.sanitise_facts import DetectorFacts, Mask
from worker.reports.text import rounded

Kind = Literal["perturbation", "label", "trigger", "duplicate", "other"]

KINDS: dict[str, Kind] = {
    "residual_energy": "perturbation",
    "reconstruction_error": "perturbation",
    "reconstruction_divergence": "perturbation",
    "label_loss": "label",
    "unchecked_loss": "label",
    "label_agreement": "label",
    "encoder_loss": "label",
    "poison_gain": "trigger",
    "spectral_signature": "trigger",
    "activation_clustering": "trigger",
    "recurring_patch": "trigger",
    "recurring_pattern": "trigger",
    "duplicates": "duplicate",
}
SUSPICIONS: dict[Kind, str] = {
    "perturbation": "a perturbation: the image was altered by a small amount, pixel by pixel",
    "label": "a wrong label, given by mistake or to teach a trigger",
    "trigger": "a trigger: something in the image teaches its label to whoever trusts the set",
    "duplicate": "a copy of an image that stands in the set under another label",
    "other": "something unlike the reference",
}


@dataclass(frozen=True, eq=False)
class DetectorRow:
    """One detector's part. total = alone + with_others, of the flagged images; over: held-out images over its limit."""

    facts: DetectorFacts
    kind: Kind
    total: int
    alone: int
    over: int
    axis: Axis
    histogram: Histogram

    @property
    def with_others(self) -> int:
        return self.total - self.alone

    @property
    def limited(self) -> bool:
        return bool(np.isfinite(self.facts.threshold))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.facts.name,
            "suspects": self.kind,
            "sees": self.facts.sees,
            "blind_to": self.facts.blind_to,
            "threshold": rounded(self.facts.threshold),
            "flagged": {"total": self.total, "alone": self.alone, "with_others": self.with_others},
            "calibration_over_threshold": self.over,
            "histogram": self.histogram.to_json(),
        }


@dataclass(frozen=True)
class Together:
    """Flagged images against which just these detectors spoke, and the kinds of poison that they suggest."""

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    images: int


def kind_of(name: str) -> Kind:
    return KINDS.get(name, "other")


def detector_rows(panel: Sequence[DetectorFacts], flagged: Mask) -> list[DetectorRow]:
    if len(panel) == 1:
        return [_row(panel[0], flagged, alone=int(flagged.sum()))]
    single = np.sum([facts.spoke & flagged for facts in panel], axis=0) == 1
    return [_row(facts, facts.spoke & flagged, alone=int((facts.spoke & flagged & single).sum())) for facts in panel]


def _row(facts: DetectorFacts, spoke: Mask, *, alone: int) -> DetectorRow:
    limit = [np.array([facts.threshold])] if np.isfinite(facts.threshold) else []
    axis = score_axis([facts.scores, facts.calibration_scores, *limit])
    return DetectorRow(
        facts,
        kind_of(facts.name),
        total=int(spoke.sum()),
        alone=alone,
        over=int((facts.calibration_scores > facts.threshold).sum()),
        axis=axis,
        histogram=histogram(facts.scores, spoke, facts.calibration_scores, facts.threshold, axis),
    )


def spoke_together(panel: Sequence[DetectorFacts], flagged: Mask) -> list[Together]:
    """Every set of detectors that spoke against an image, the most frequent first; together they are all flagged."""
    if not panel or not flagged.any():
        return []
    voices = np.stack([facts.spoke[flagged] for facts in panel], axis=1)
    sets, counts = np.unique(voices, axis=0, return_counts=True)
    found = [
        _together(tuple(facts.name for facts, spoke in zip(panel, voice, strict=True) if spoke), int(images))
        for voice, images in zip(sets, counts, strict=True)
    ]
    return sorted(found, key=lambda row: (-row.images, row.names))


def _together(names: tuple[str, ...], images: int) -> Together:
    return Together(names, tuple(dict.fromkeys(kind_of(name) for name in names)), images)
