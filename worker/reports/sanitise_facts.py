"""What a sanitise job hands to its report: the whole outcome, checked for contradictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from worker.reports.page import FactsError
from worker.reports.pictures import Picture

Floats = npt.NDArray[np.floating[Any]]
VERDICTS = ("keep", "reform", "quarantine")


@dataclass(frozen=True)
class FitLosses:
    """Losses of one network's fit, one value an epoch; `validation` may be empty."""

    train: Sequence[float]
    validation: Sequence[float] = ()


@dataclass(frozen=True, eq=False)
class GalleryItem:
    """A flagged image to show; `original` and `reconstruction` are uint8 (h, w, c)."""

    index: int
    path: str
    label: str
    original: Picture
    reconstruction: Picture
    score: float
    p_value: float | None


@dataclass(frozen=True, eq=False)
class SanitiseFacts:
    """Outcome of a sanitise job. Arrays run over the n candidate images in upload order, unless said otherwise."""

    job_id: str
    dataset: str
    reference: str | None
    result_dataset: str
    spec: Mapping[str, Any]
    """The whole SanitiseSpec as JSON."""
    score_name: str
    scores: Floats
    """(n,), higher is more suspicious."""
    p_values: Floats | None
    """(n,), conformal."""
    verdicts: Sequence[str] | npt.NDArray[np.str_]
    """(n,), each of VERDICTS."""
    threshold: float
    """In the unit of the scores: flagged where a score lies over it."""
    alpha: float | None
    """The share of clean images that may be flagged; None where a threshold was asked for instead."""
    smallest_alpha: float
    calibration_scores: Floats
    """(m,), of the held-out images that calibrate."""
    losses: Mapping[str, FitLosses]
    class_names: Sequence[str]
    labels: npt.NDArray[np.integer[Any]]
    gallery: Sequence[GalleryItem]
    rates_are: Literal["held", "estimated"]
    warnings: Sequence[str]
    notes: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
    """Of each phase."""
    known_perturbed: Mapping[str, Floats] = field(default_factory=dict)
    """Scores of held-out clean images that the job perturbed itself, by kind: of these the filter should find all."""

    def __post_init__(self) -> None:
        total = len(self.scores)
        if total == 0:
            raise FactsError("a sanitise report needs at least one image")
        for name in ("p_values", "verdicts", "labels"):
            values = getattr(self, name)
            if values is not None and len(values) != total:
                raise FactsError(f"{name} has {len(values)} entries for {total} scores")
        for name in ("scores", "calibration_scores", "p_values"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                raise FactsError(f"{name} holds a value that is not finite")
        if not np.isfinite(self.threshold):
            raise FactsError("the threshold is not finite")
        unknown = set(map(str, self.verdicts)) - set(VERDICTS)
        if unknown:
            raise FactsError(f"unknown verdict: {sorted(unknown)[0]}")
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise FactsError(f"a label lies outside the {len(self.class_names)} classes")
