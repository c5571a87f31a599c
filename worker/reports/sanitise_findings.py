"""What a sanitise job's outcome says, in numbers: flagged shares, what a clean set would show, histograms, classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.calibration import realised_rate_bounds, wilson_interval
from worker.reports.histograms import Axis, Counts, Histogram, histogram, score_axis
from worker.reports.sanitise_facts import Floats, Mask, SanitiseFacts
from worker.reports.sanitise_panel import DetectorRow, Together, detector_rows, spoke_together

Rule = Literal["rate", "discovery", "threshold", "percentage"]

CONFIDENCE = 0.95
P_VALUE_BINS = 20
ROUNDING = 1e-6
"""Of ranks, which come of p-values."""


@dataclass(frozen=True)
class Share:
    """k of n with its Wilson interval."""

    k: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.k / self.n


def share_of(k: int, n: int, confidence: float = CONFIDENCE) -> Share:
    low, high = wilson_interval(k, n, confidence)
    return Share(int(k), int(n), float(low), float(high))


@dataclass(frozen=True, eq=False)
class PValues:
    """Counts of p-values in equal bins, and what clean candidates would give: the mean and a 95 % band of each bin."""

    edges: npt.NDArray[np.float64]
    counts: Counts
    expected: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    clean_share: float
    """Share of clean images as the upper half of the p-values has it; an estimate, at most 1."""


@dataclass(frozen=True)
class ClassRow:
    """What one class lost. `stands_out`: its share differs from the set's beyond chance over all classes."""

    index: int
    name: str
    reformed: int
    removed: Share
    stands_out: Literal["", "more", "less"]


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that is computed from the facts; masks are (n,)."""

    rule: Rule
    quarantined: Mask
    reformed: Mask
    """Flagged, and kept as its reconstruction."""
    flagged_share: Share
    by_filter: Mask
    """Flagged, and the filter's score spoke against it; where it judges alone, all that is flagged."""
    calibration_over: Share | None
    """Held-out images that the same rule flags."""
    clean_bounds: tuple[float, float] | None
    """Between these a clean set's flagged share would lie, 95 times of 100."""
    axis: Axis
    histogram: Histogram
    p_values: PValues | None
    classes: Sequence[ClassRow]
    self_test: dict[str, Share]
    detectors: Sequence[DetectorRow]
    together: Sequence[Together]

    @property
    def flagged(self) -> Mask:
        return self.quarantined | self.reformed


def find(facts: SanitiseFacts) -> Findings:
    verdicts = np.asarray(facts.verdicts, dtype=object)
    quarantined = verdicts == "quarantine"
    reformed = (verdicts == "reform") & _over_limit(facts)
    flagged = quarantined | reformed
    share = share_of(int(flagged.sum()), len(flagged))
    over = _calibration_flagged(facts)
    axis = _axis(facts)
    by_filter = flagged & facts.detectors[0].spoke if facts.detectors else flagged
    return Findings(
        rule=_rule(facts),
        quarantined=quarantined,
        reformed=reformed,
        flagged_share=share,
        by_filter=by_filter,
        calibration_over=over,
        clean_bounds=_clean_bounds(facts, over),
        axis=axis,
        histogram=histogram(facts.scores, by_filter, facts.calibration_scores, facts.threshold, axis),
        p_values=_p_values(facts),
        classes=_classes(facts, quarantined, reformed),
        self_test={kind: test for kind, s in facts.known_perturbed.items() if (test := _over(s, facts.threshold))},
        detectors=detector_rows(facts.panel, flagged),
        together=spoke_together(facts.detectors, flagged),
    )


def _over_limit(facts: SanitiseFacts) -> Mask:
    """Flagged by the rule. An image that only passes through as its reconstruction has verdict reform, but is not."""
    if facts.flagged is not None:
        return facts.flagged
    if facts.alpha is not None and facts.p_values is not None:
        return np.asarray(facts.p_values <= facts.alpha)
    return np.asarray(facts.scores > facts.threshold)


def _rule(facts: SanitiseFacts) -> Rule:
    if facts.alpha is not None:
        return "rate"
    if facts.discovery is not None:
        return "discovery"
    calibration: dict[str, Any] = facts.spec.get("calibration") or {}
    return "percentage" if calibration.get("infer_threshold") else "threshold"


def _calibration_flagged(facts: SanitiseFacts) -> Share | None:
    count = len(facts.calibration_scores)
    if facts.calibration_flagged is None or count == 0:
        return _over(facts.calibration_scores, facts.threshold)
    return share_of(facts.calibration_flagged, count)


def _over(scores: Floats, threshold: float) -> Share | None:
    return share_of(int((scores > threshold).sum()), len(scores)) if len(scores) else None


def _clean_bounds(facts: SanitiseFacts, over: Share | None) -> tuple[float, float] | None:
    if over is None or facts.discovery is not None:
        return None
    if facts.alpha is None:
        return _next_share(over, len(facts.scores))
    low, high = realised_rate_bounds(facts.alpha, facts.independent, len(facts.scores), CONFIDENCE)
    return float(low), float(high)


def _next_share(seen: Share, n: int) -> tuple[float, float]:
    """Interval for the share of `n` more images of the same kind: both samples' errors, squared and added.

    Source: Newcombe 1998, method 10.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    below = math.hypot(seen.value - seen.low, z * math.sqrt(seen.low * (1 - seen.low) / n))
    above = math.hypot(seen.high - seen.value, z * math.sqrt(seen.high * (1 - seen.high) / n))
    return max(0.0, seen.value - below), min(1.0, seen.value + above)


def _axis(facts: SanitiseFacts) -> Axis:
    every = [facts.scores, facts.calibration_scores, *facts.known_perturbed.values(), np.array([facts.threshold])]
    return score_axis(every)


def _p_values(facts: SanitiseFacts) -> PValues | None:
    """Ranks are counted, not p-values compared: p = rank / (m + 1), and each rank is as probable for a clean image.

    Of groups a p-value lies between ranks, and counts as the larger. Over calibrations, a bin of k ranks holds a
    beta-binomial(n, k, m + 1 - k) number of n clean images.
    """
    m = facts.independent
    if facts.p_values is None or m == 0:
        return None
    bins, n = min(P_VALUE_BINS, m + 1), len(facts.p_values)
    bin_of_rank = np.ceil(np.arange(1, m + 2) * bins / (m + 1) - 1e-9).astype(np.int64) - 1
    ranks = np.bincount(bin_of_rank, minlength=bins)
    rank = np.ceil(np.asarray(facts.p_values, np.float64) * (m + 1) - ROUNDING).astype(np.int64).clip(1, m + 1)
    q = ranks / (m + 1)
    variance = n * q * (1 - q) * (m + 1 + n) / (m + 2)
    upper = np.arange(1, m + 2) * 2 > m + 1
    clean = float((rank * 2 > m + 1).mean() / upper.mean())
    return PValues(
        edges=np.linspace(0, 1, bins + 1),
        counts=np.bincount(bin_of_rank[rank - 1], minlength=bins),
        expected=n * q,
        deviation=np.sqrt(variance),
        clean_share=min(clean, 1.0),
    )


def _classes(facts: SanitiseFacts, quarantined: Mask, reformed: Mask) -> list[ClassRow]:
    """By removed share, largest first; one stands out where an interval widened for all of them leaves the set's."""
    size = len(facts.class_names)
    totals, removed, reforms = (
        np.bincount(facts.labels, weights=weights, minlength=size).astype(np.int64)
        for weights in (None, quarantined, reformed)
    )
    overall = float(quarantined.mean())
    strict = 1 - (1 - CONFIDENCE) / max(1, int((totals > 0).sum()))
    rows = []
    for index in np.flatnonzero(totals).tolist():
        share = share_of(int(removed[index]), int(totals[index]))
        wide = share_of(share.k, share.n, strict)
        stands_out: Literal["", "more", "less"] = (
            "more" if wide.low > overall else "less" if wide.high < overall else ""
        )
        rows.append(ClassRow(index, facts.class_names[index], int(reforms[index]), share, stands_out))
    return sorted(rows, key=lambda row: (-row.removed.value, row.index))
