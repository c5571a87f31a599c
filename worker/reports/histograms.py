"""Scores in bins: on a scale that fits them, with the threshold between two bins, for the page and for the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.reports.sanitise_facts import Floats, Mask
from worker.reports.text import rounded

Counts = npt.NDArray[np.int64]

SCORE_BINS = 60
_LOG_RANGE = 30.0


@dataclass(frozen=True, eq=False)
class Axis:
    """How scores are drawn: log where their range asks for it; `floor` is where anything smaller is drawn."""

    log: bool
    floor: float

    def place(self, scores: Floats) -> npt.NDArray[np.float64]:
        values = np.asarray(scores, np.float64)
        return np.maximum(values, self.floor) if self.log else values


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of scores between `edges`; the threshold is one of the edges where it lies among them."""

    edges: npt.NDArray[np.float64]
    kept: Counts
    flagged: Counts
    calibration: Counts

    def to_json(self) -> dict[str, Any]:
        return {
            "edges": [rounded(edge) for edge in self.edges.tolist()],
            "kept": self.kept.tolist(),
            "flagged": self.flagged.tolist(),
            "calibration": self.calibration.tolist(),
        }


def score_axis(every: Sequence[Floats]) -> Axis:
    """Log where scores span decades and none is negative: below 0 a log scale shows nothing."""
    pooled = np.concatenate(every)
    positive = pooled[pooled > 0]
    if positive.size == 0 or pooled.min() < 0 or positive.max() <= _LOG_RANGE * np.quantile(positive, 0.01):
        return Axis(log=False, floor=float(pooled.min()))
    return Axis(log=True, floor=float(max(positive.min(), np.quantile(positive, 0.001) / 10)))


def histogram(scores: Floats, flagged: Mask, calibration: Floats, threshold: float, axis: Axis) -> Histogram:
    candidates, held = axis.place(scores), axis.place(calibration)
    pooled = np.concatenate([candidates, held])
    low, high = pooled.min(), pooled.max()
    if low == high:
        low, high = (low / 2, high * 2) if axis.log else (low - 0.5, high + 0.5)
    edges = np.geomspace(low, high, SCORE_BINS + 1) if axis.log else np.linspace(low, high, SCORE_BINS + 1)
    edges[0], edges[-1] = low, high
    if low < threshold < high:
        edges[1 + int(np.abs(edges[1:-1] - threshold).argmin())] = threshold
    return Histogram(
        edges,
        kept=np.histogram(candidates[~flagged], edges)[0],
        flagged=np.histogram(candidates[flagged], edges)[0],
        calibration=np.histogram(held, edges)[0],
    )
