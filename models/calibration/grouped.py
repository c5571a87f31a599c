"""A panel's one p-value where several calibration images show one object, and are no independent draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.calibration.conformal import Float64s, Floats, Ranks, finite, smallest_alpha
from models.calibration.joint import positions, shares

Groups = npt.NDArray[Any]
Combination = Callable[[Float64s, Float64s], Float64s]
"""(n, t) values in (0, 1) and the tests' shares (t,) to one value an image, (n,); monotone in each."""

UNIT = 1 << 32
"""What a group weighs. Its images share it evenly, rounded down to whole numbers, so that sums are exact: of a group of
k images no more than k parts in 2³² are lost."""


class GroupedTest:
    """One conformal p-value out of several tests, where a group of calibration images counts as one.

    calibration: (m, t), the scores of m clean images under t tests. groups: (m,), any values; what a new image shows is
    in none of them. weights: (t,), see `JointTest`.
    An image of a group says as much as its share of the group, so p = (1 + Σ of the groups' shares at least as
    suspicious) / (G + 1), G groups. How suspicious an image is, `combine` makes of the shares of *other* groups that
    score at least as high under each test: a new image has no other of its group there, so none is counted for a
    calibration image either.
    P(p <= α) <= α for an image drawn from a new group, where groups are exchangeable, and the images within each; at
    every G, under any dependence of the tests. For were the other images of the new group known, the p-value that
    counts them would be valid, as any symmetric measure's is. They are not; without them the calibration images look as
    suspicious as they can, and its own group counts whole, which only raises p.
    With groups of one image each it is `CombinedTest`.
    Raises ValueError where a score is not finite, groups do not fit, or weights are not t positive numbers.
    Source: Lee, Barber & Willett 2023, "Distribution-free inference with hierarchical data" (one score). Deviation:
    several tests, combined by ranks that leave the image's own group out.
    """

    def __init__(
        self, calibration: Floats, groups: Groups, combine: Combination, weights: Sequence[float] | None = None
    ) -> None:
        scores = finite(calibration, "calibration scores", dimensions=2)
        m, self.num_tests = scores.shape
        if np.shape(groups) != (m,):
            raise ValueError(f"groups must have shape ({m},), not {np.shape(groups)}")
        _, of_image, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        self.num_calibration = len(sizes)
        self._combine, self._weights = combine, shares(weights, self.num_tests)
        weight = (UNIT // sizes)[of_image]
        self._sorted = np.sort(scores, axis=0)
        self._above = np.stack([_summed(weight[np.argsort(column, kind="stable")]) for column in scores.T], axis=1)
        own = np.stack([_within(column, of_image) for column in scores.T], axis=1) * weight[:, None]
        values = self._combined(self._counted(scores) - own)
        order = np.argsort(values, kind="stable")
        self._values, self._summed = values[order], np.concatenate([[0], np.cumsum(weight[order])])

    def p_values(self, scores: Floats) -> tuple[Float64s, Float64s]:
        """scores: (n, t). Returns the combined p-values (n,) and each test's own (n, t).

        Raises ValueError where t does not fit or a score is not finite.
        """
        if np.ndim(scores) != 2 or np.shape(scores)[1] != self.num_tests:
            raise ValueError(f"scores must have shape (n, {self.num_tests}), not {np.shape(scores)}")
        counted = self._counted(finite(scores, "scores", dimensions=2))
        own = self._p_value(counted)
        if self.num_tests == 1:
            return own[:, 0], own
        return self._p_value(self._summed[np.searchsorted(self._values, self._combined(counted), side="right")]), own

    def levels(self, alpha: float) -> Float64s:
        """At most α itself: what a detector finds as rare as that it says, though others may not agree, (t,)."""
        return np.full(self.num_tests, alpha if alpha >= smallest_alpha(self.num_calibration) else 0.0)

    def thresholds(self, levels: Float64s) -> Float64s:
        """Of each test the score beyond which its own p-value is at most its level, (t,); inf where none is."""
        lines = np.full(self.num_tests, np.inf)
        for column, level in enumerate(levels):
            rare = np.flatnonzero(self._p_value(self._above[1:, column]) <= level)
            if len(rare):
                lines[column] = self._sorted[rare[0], column]
        return lines

    def _counted(self, values: Float64s) -> Ranks:
        """Of each image under each test the groups' shares that score at least as high, in UNIT, (n, t)."""
        return np.take_along_axis(self._above, positions(self._sorted, values), axis=0)

    def _combined(self, counted: Ranks) -> Float64s:
        return self._combine((counted + UNIT // 2) / (UNIT * (self.num_calibration + 1)), self._weights)

    def _p_value(self, counted: Ranks) -> Float64s:
        return np.asarray((UNIT + counted) / (UNIT * (self.num_calibration + 1)))


def _summed(weights: Ranks) -> Ranks:
    """(m + 1,): the sum from each place on."""
    return np.concatenate([np.cumsum(weights[::-1])[::-1], [0]])


def _within(scores: Float64s, groups: Ranks) -> Ranks:
    """How many images of its own group, itself among them, score at least as high as each, (m,)."""
    order = np.lexsort((scores, groups))
    group, score = groups[order], scores[order]
    starts = np.concatenate([[True], (group[1:] != group[:-1]) | (score[1:] != score[:-1])])[: len(order)]
    first_equal = np.flatnonzero(starts)[np.cumsum(starts) - 1]
    counted = np.empty(len(order), np.int64)
    counted[order] = np.searchsorted(group, group, side="right") - first_equal
    return counted
