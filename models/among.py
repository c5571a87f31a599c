"""Calibrates a panel on the bulk of the candidates: how rare an image's scores are among them. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.bulk import MAX_POISON, bulk_calibration
from models.calibration import Float64s, Floats, JointTest, conformal_p_values
from models.calibration.conformal import finite, smallest_alpha
from models.calibration.grouped import Combination
from models.calibration.joint import positions, shares

SUSPECTED, STAYS_SUSPECTED = 0.01, 0.02
"""A candidate with an estimated p-value of at most so much is no longer compared with; then it takes more to be again.

A clean image left out lies beyond all that are left, as poison does, and where one detector alone sees the poison their
measures tie: at one limit for both, as many of the clean as it allows would bring all poison back."""

ROUNDS = 8
MOST = 100_000
"""Candidates that are compared with: of more, evenly spaced ones."""


class AmongCandidates:
    """How suspicious images are beside the candidates, and how suspicious the reference's would be.

    calibration: (m, t), candidates: (n, t), the scores of clean images and of candidates under t tests, m, n ≥ 50.
    combine, weights: see `GroupedTest`. chosen: the calibration images are candidates chosen for looking clean.
    An image's measure is 1 / `combine` of the shares of candidates that score as high as it under each test. Whatever
    moves all scores of a test, or the clean images' whole distribution of them, moves these shares little, and the
    measure of the reference's images needs one map onto the bulk of the candidates', not one a test: a test of few
    distinct values cannot be mapped, and errors of several maps add up. Poison would make its own scores look common:
    what looks suspicious is left out of those compared with, at first beside the reference, then by the measure itself,
    until nothing changes or ROUNDS times.
    Where the reference was chosen, more of the clean than of poison may be suspected at first, so none stays suspected.
    calibration: (m,), the measure of the reference's images, as it would be of candidates. Rates calibrated on it are
    estimates, and rest on what `bulk_calibration` assumes of the measure.
    Raises ValueError where there are fewer images, a score is not finite, or weights are not t positive numbers.
    """

    def __init__(
        self,
        calibration: Floats,
        candidates: Floats,
        combine: Combination,
        weights: Sequence[float] | None = None,
        *,
        chosen: bool = False,
    ) -> None:
        reference = finite(calibration, "calibration scores", dimensions=2)
        scores = finite(candidates, "candidates", dimensions=2)[:: max(1, -(-len(candidates) // MOST))]
        self._combine, self._weights = combine, shares(weights, reference.shape[1])
        stays = SUSPECTED if chosen else STAYS_SUSPECTED
        self._sorted = np.sort(reference, axis=0)
        suspected = _suspected(self.measure(scores), self.measure(reference))
        for _ in range(ROUNDS):
            self._sorted = np.sort(scores[~suspected], axis=0)
            measured = self.measure(scores)
            self.calibration: Float64s = bulk_calibration(self.measure(reference), measured).mapped
            before = suspected
            suspected = _suspected(measured, self.calibration, before, stays)
            if (suspected == before).all():
                break
        self._own = JointTest(self._sorted)

    def measure(self, scores: Floats) -> Float64s:
        """scores: (k, t). Returns (k,), higher the more suspicious. Raises ValueError where a score is not finite."""
        values, n = finite(scores, "scores", dimensions=2), len(self._sorted)
        places = positions(self._sorted, values)
        there = np.take_along_axis(self._sorted, np.minimum(places, n - 1), axis=0) == values
        ranks = n - places + ~there  # among those compared with and itself, of which it may be one
        return np.asarray(1 / self._combine((ranks - 0.5) / (n + 1), self._weights))

    def own_p_values(self, scores: Floats) -> Float64s:
        """scores: (k, t). Each test's own, among the candidates that are compared with, (k, t)."""
        return self._own.own_p_values(scores)

    def thresholds(self, levels: Float64s) -> Float64s:
        """Of each test the score beyond which its own p-value is at most its level, (t,); inf where none is."""
        possible = levels >= smallest_alpha(len(self._sorted))
        return self._own.thresholds(np.where(possible, levels, 0.0))


def _suspected(
    measured: Float64s, calibration: Float64s, before: npt.NDArray[np.bool_] | None = None, stays: float = SUSPECTED
) -> npt.NDArray[np.bool_]:
    """(n,): at most the MAX_POISON most suspicious."""
    p_values = conformal_p_values(measured, calibration)
    found = p_values <= SUSPECTED
    if before is not None:
        found |= before & (p_values <= stays)
    most = int(MAX_POISON * len(measured))
    if np.count_nonzero(found) > most:
        found[np.argsort(-measured, kind="stable")[most:]] = False
    return np.asarray(found)
