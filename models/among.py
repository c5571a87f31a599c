"""Calibrates a panel on the bulk of the candidates: how rare an image's scores are among them. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.bulk import MAX_POISON, bulk_calibration, enough
from models.calibration import Float64s, Floats, JointTest, conformal_p_values
from models.calibration.conformal import finite, smallest_alpha
from models.calibration.grouped import Combination
from models.calibration.joint import positions, shares

Mask = npt.NDArray[np.bool_]

SUSPECTED, STAYS_OUT = 0.01, 0.005
"""A candidate with an estimated p-value of at most the first is no longer compared with. At most the second, by the
joint test beside the reference, and it never is again: what is left out ties, clean or poison, beyond all that are
left, and where one detector alone sees the poison, as many of the clean as one level allows would bring all of it
back."""

CLEAN_LEFT_OUT = 0.5
"""Of what is left out beside a reference chosen among the candidates, the share that is taken for clean."""

EDGE = 0.995
"""The share of those compared with that lies below what counts as far under a test."""
FARTHEST = 10
"""That an image may lie beyond those compared with under a test whose scores are all but equal among them: one that
counts has no unit of its own, and would drown the others."""

ROUNDING = 1 + 1e-9
ROUNDS = 8
MOST = 100_000
"""Candidates that are compared with: of more, so many drawn."""


class AmongCandidates:
    """How suspicious images are beside the candidates, and how suspicious the reference's would be.

    calibration: (m, t), candidates: (n, t), the scores of clean images and of candidates under t tests, m, n ≥ 50.
    combine, weights: see `GroupedTest`. chosen_by: (t,), the tests for whose sake the calibration images were chosen
    among the candidates, so that their own scores say nothing of how far clean ones go; none where not given.
    An image's measure is 1 / `combine` of the shares of candidates that score as high as it under each test. Whatever
    moves all scores of a test, or the clean images' whole distribution of them, moves these shares little, and the
    measure of the reference's images needs one map onto the bulk of the candidates', not one a test: a test of few
    distinct values cannot be mapped, and errors of several maps add up. Poison would make its own scores look common:
    what looks suspicious is left out of those compared with, at first beside the reference, then by the measure itself,
    until nothing changes or ROUNDS times.
    calibration: (m,), the measure of the reference's images, as it would be of candidates. Rates calibrated on it are
    estimates, and rest on what `bulk_calibration` assumes of the measure.
    clean_left_out: share of the candidates that is clean and left out for want of the like in a reference that was
    chosen; 0 of any other reference, beside which one in a hundred clean images is left out.
    Raises ValueError where there are fewer images, a score is not finite, or weights are not t positive numbers.
    """

    def __init__(
        self,
        calibration: Floats,
        candidates: Floats,
        combine: Combination,
        weights: Sequence[float] | None = None,
        *,
        chosen_by: Mask | None = None,
    ) -> None:
        reference, scores = finite(calibration, "calibration scores", dimensions=2), _bounded(candidates)
        enough(reference[:, 0], "calibration scores")
        self._combine, self._weights = combine, shares(weights, reference.shape[1])
        self._sorted = np.sort(reference, axis=0)
        measured = self.measure(scores)
        free = np.ones(len(self._weights), np.bool_) if chosen_by is None else ~chosen_by
        self._beyond = _Beyond(reference, self._weights, free)
        out = self._beyond.finds(scores)
        suspected = _most(out | _suspected(measured, self.measure(reference)), measured)
        for _ in range(ROUNDS):
            self._sorted = np.sort(scores[~suspected], axis=0)
            measured = self.measure(scores)
            self.calibration: Float64s = bulk_calibration(self.measure(reference), measured).mapped
            before, suspected = suspected, _most(out | _suspected(measured, self.calibration), measured)
            if (suspected == before).all():
                break
        self._own = JointTest(self._sorted)
        chosen = chosen_by is not None and bool(np.any(chosen_by))
        self.clean_left_out = CLEAN_LEFT_OUT * float(suspected.mean()) if chosen else 0.0
        self._edge, self._unit = self._scale(scores[suspected])
        self._farness = np.sort(self._far(scores[suspected]))
        self._clean = len(scores) - CLEAN_LEFT_OUT * np.count_nonzero(suspected)

    def amended(self, p_values: Float64s, scores: Floats) -> Float64s:
        """The measure's p-values (k,) of images (k, t), the clean that are left out counted among those as rare.

        Of what is left out, the farther from those compared with, the rarer: CLEAN_LEFT_OUT of those as far as an image
        are taken for clean. What the tests that chose nothing find beyond all of the reference keeps its own.
        """
        if not self.clean_left_out:
            return p_values
        values = finite(scores, "scores", dimensions=2)
        out = self.left_out(p_values, values)
        as_far = len(self._farness) - np.searchsorted(self._farness, self._far(values[out]), side="left")
        nearest = self.clean_left_out + _level(len(self.calibration))  # less than who is compared with
        rank = np.minimum(CLEAN_LEFT_OUT * np.maximum(as_far, 1) / self._clean, nearest)
        within = np.maximum(p_values[out], rank)
        found = np.minimum(p_values + self.clean_left_out, 1.0)
        found[out] = np.where(self._beyond.finds(values[out], at_last=True), p_values[out], within)
        return np.asarray(found)

    def left_out(self, p_values: Float64s, scores: Floats) -> Mask:
        """(k,): whether images of these scores (k, t) are no longer compared with. p_values: (k,), of the measure."""
        beyond = self._beyond.finds(finite(scores, "scores", dimensions=2))
        return np.asarray((p_values <= _level(len(self.calibration))) | beyond)

    def _scale(self, out: Float64s) -> tuple[Float64s, Float64s]:
        """Of each test: the far point of those compared with, and the unit beyond it. out: (o, t)."""
        n = len(self._sorted)
        middle, edge = self._sorted[n // 2], self._sorted[min(int(EDGE * n), n - 1)]
        widest = np.maximum(out.max(axis=0, initial=-np.inf), edge) - edge
        unit = np.maximum(edge - middle, widest / FARTHEST)
        return edge, np.where(unit > 0, unit, 1.0)

    def _far(self, scores: Float64s) -> Float64s:
        """How far scores (k, t) lie beyond nearly all that are compared with, over the tests, (k,)."""
        return np.asarray((np.maximum(scores - self._edge, 0) / self._unit).sum(axis=1))

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


def _bounded(candidates: Floats) -> Float64s:
    table = np.asarray(candidates)
    if len(table) > MOST:
        table = table[np.sort(np.random.default_rng(0).choice(len(table), MOST, replace=False))]
    return finite(table, "candidates", dimensions=2)


class _Beyond:
    """What the tests that did not choose the reference find beyond it. free: (t,), those tests."""

    def __init__(self, reference: Float64s, weights: Float64s, free: Mask) -> None:
        self._free = free
        self._least = np.count_nonzero(free) / (len(reference) + 1)
        self._joint = JointTest(reference[:, free], weights[free].tolist()) if free.any() else None

    def finds(self, scores: Float64s, *, at_last: bool = False) -> Mask:
        """scores: (k, t). at_last: only beyond all of the reference. Returns (k,)."""
        if self._joint is None:
            return np.zeros(len(scores), np.bool_)
        level = self._least if at_last else max(STAYS_OUT, self._least)
        return np.asarray(self._joint.p_values(scores[:, self._free])[0] <= level * ROUNDING)


def _suspected(measured: Float64s, calibration: Float64s) -> Mask:
    return np.asarray(conformal_p_values(measured, calibration) <= _level(len(calibration)))


def _level(count: int) -> float:
    """The p-value of who is suspected, beside so many calibration images."""
    return max(SUSPECTED, 2 / (count + 1))


def _most(suspected: Mask, measured: Float64s) -> Mask:
    """Of the suspected the MAX_POISON of all that are most suspicious."""
    most = int(MAX_POISON * len(measured))
    if np.count_nonzero(suspected) > most:
        least = np.argsort(np.where(suspected, -measured, np.inf), kind="stable")[most:]
        suspected = suspected.copy()
        suspected[least] = False
    return suspected
