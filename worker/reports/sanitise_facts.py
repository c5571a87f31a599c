"""What a sanitise job hands to its report: the whole outcome, checked for contradictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.shift import Shift
from worker.reports.page import FactsError
from worker.reports.pictures import Picture

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
VERDICTS = ("keep", "reform", "quarantine")


@dataclass(frozen=True)
class FitLosses:
    """Losses of one network's fit, one value an epoch; `validation` may be empty."""

    train: Sequence[float]
    validation: Sequence[float] = ()


@dataclass(frozen=True, eq=False)
class GalleryItem:
    """A flagged image to show; `original` and `reconstruction` are uint8 (h, w, c).

    suggested_label: what classifiers that have not seen the image say; None where there are none. reasons: names of the
    detectors that spoke, the most extreme first; empty where the filter judges alone.
    """

    index: int
    path: str
    label: str
    original: Picture
    reconstruction: Picture
    score: float
    p_value: float | None
    suggested_label: str | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class DetectorFacts:
    """One detector, with its view of the n candidates and of the m images that calibrate. sees, blind_to: its words."""

    name: str
    scores: Floats
    calibration_scores: Floats
    spoke: Mask
    """(n,), the flagged images that it spoke against."""
    threshold: float
    """Beyond it this detector speaks against an image; inf where it never does."""
    sees: str = ""
    blind_to: str = ""


@dataclass(frozen=True)
class Discovery:
    """The false-discovery rate asked for. level: the p-value up to which images are flagged.

    smallest_share: of the candidates; rarer poison cannot be discovered, whatever it scores.
    """

    rate: float
    level: float
    smallest_share: float


@dataclass(frozen=True)
class SuspiciousImage:
    """An image of the reference itself that looks wrong; suggested_label None where there is no better one."""

    path: str
    label: str
    suggested_label: str | None
    score: float


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
    verdicts: Sequence[str] | npt.NDArray[np.object_]
    """(n,), each of VERDICTS."""
    threshold: float
    """In the unit of the scores: flagged where a score lies over it."""
    alpha: float | None
    """The share of clean images that may be flagged; None where a threshold was asked for instead."""
    smallest_alpha: float
    calibration_scores: Floats
    """(m,), of the held-out images that calibrate."""
    calibration_groups: int | None
    """As how many groups they count; None where each counts for itself."""
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
    detectors: Sequence[DetectorFacts] = ()
    """The filter's first; empty where it judges alone."""
    flagged: Mask | None = None
    """(n,); None: where p_values are at most alpha, or scores over the threshold."""
    calibration_flagged: int | None = None
    """How many of the calibration images the same rule flags; None: those over the threshold."""
    discovery: Discovery | None = None
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    """By detector."""
    calibrated_on_candidates: bool = False
    sifting: Mapping[str, Any] | None = None
    """Without a trusted reference: what was looked_at, started_from, trusted."""
    suspicious_reference: Sequence[SuspiciousImage] = ()
    search: Sequence[Mapping[str, Any]] | None = None
    """Trials of the hyperparameter search: params, value, seconds, state."""

    def __post_init__(self) -> None:
        total = len(self.scores)
        if total == 0:
            raise FactsError("a sanitise report needs at least one image")
        for name in ("p_values", "verdicts", "labels", "flagged"):
            values = getattr(self, name)
            if values is not None and len(values) != total:
                raise FactsError(f"{name} has {len(values)} entries for {total} scores")
        for name in ("scores", "calibration_scores", "p_values"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                raise FactsError(f"{name} holds a value that is not finite")
        if not np.isfinite(self.threshold):
            raise FactsError("the threshold is not finite")
        for detector in self.detectors:
            _check_detector(detector, total)
        unknown = set(self.verdicts) - set(VERDICTS)
        if unknown:
            raise FactsError(f"unknown verdict: {sorted(unknown)[0]}")
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise FactsError(f"a label lies outside the {len(self.class_names)} classes")

    @property
    def independent(self) -> int:
        """How many independent draws the calibration images are worth."""
        return len(self.calibration_scores) if self.calibration_groups is None else self.calibration_groups

    @property
    def panel(self) -> Sequence[DetectorFacts]:
        """The detectors, the filter's score too where it judges alone; then its `spoke` is not known here."""
        nothing = np.zeros(len(self.scores), np.bool_)
        alone = DetectorFacts(self.score_name, self.scores, self.calibration_scores, nothing, self.threshold)
        return self.detectors or (alone,)


def _check_detector(detector: DetectorFacts, total: int) -> None:
    if len(detector.scores) != total or len(detector.spoke) != total:
        raise FactsError(f"{detector.name} has {len(detector.scores)} scores for {total} images")
    if not (np.isfinite(detector.scores).all() and np.isfinite(detector.calibration_scores).all()):
        raise FactsError(f"{detector.name} holds a value that is not finite")
    if np.isnan(detector.threshold):
        raise FactsError(f"the threshold of {detector.name} is not a number")
