"""Ways to make one p-value of a panel's: the joint rank test, the power mean, and the classical Simes and Cauchy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from models.calibration import Float64s, Floats, JointTest
from models.calibration.conformal import ranks_flagged
from models.calibration.grouped import Combination, GroupedTest, Groups
from models.calibration.per_class import PanelTest

Way = Literal["joint", "power_mean", "simes", "cauchy"]
Combine = Literal["auto", "joint", "power_mean", "simes", "cauchy"]

ROOM_A_DETECTOR = 2
"""Calibration images beyond α that each detector needs for the power mean to believe it where it alone is sure."""


def chosen_way(
    combine: Combine, alpha: float | None, num_calibration: int, num_tests: int, *, exact: bool = True
) -> Way:
    """What `auto` stands for; any other way is itself.

    The power mean, but where α leaves less than ROOM_A_DETECTOR of the fewest calibration images that an image is
    compared with for each detector: what one detector is sure of is lost then among those that are not, and it is the
    joint test. Under a false-discovery rate (alpha None) the power mean: one detector's poison is discovered only where
    there is as much of it, or as many calibration images, as leave that room. And where the joint test has no exact
    count (exact=False), of groups and among candidates: there it would let as many pass as there are tests before an
    image that one of them alone finds the most suspicious. Chosen before any score is seen, which keeps α.
    """
    if combine != "auto":
        return combine
    room = alpha is None or alpha * (num_calibration + 1) >= ROOM_A_DETECTOR * num_tests
    return "power_mean" if room or not exact else "joint"


def panel_test(
    calibration: Floats,
    combine: Way = "joint",
    weights: Sequence[float] | None = None,
    groups: Groups | None = None,
) -> PanelTest:
    """The test of a panel. calibration: (m, t), scores of clean images. weights: (t,), see `JointTest`.

    groups: (m,), see `GroupedTest`; None where every image is its own.
    With t = 1 there is nothing to combine, and every way is `conformal_p_values`, or that of groups.
    """
    if groups is not None:
        return GroupedTest(calibration, groups, COMBINATIONS[combine], weights)
    if combine == "joint" or np.shape(calibration)[1:] == (1,):
        return JointTest(calibration, weights)
    return CombinedTest(calibration, COMBINATIONS[combine], weights)


class CombinedTest:
    """A combination of p-values as the score of one more conformal test, so that it needs no assumption.

    calibration: (m, t), scores of clean images under t tests; combine: one of COMBINATIONS; weights: (t,), see
    `JointTest`.
    Simes's own level holds for tests that are independent or positively dependent, Cauchy's only for small α, a power
    mean's only with a factor. Here none is relied upon: the combined value is ranked among the calibration images'
    combined values. Valid at every m and under any dependence, for its p-value is never below that of full conformal
    prediction: the calibration images' ranks leave the new image out, which makes them look as suspicious as they can.
    It may exceed it by about 1/(α·m) of its size at α.
    Raises ValueError where a score is not finite or weights are not t positive numbers.
    Source: Simes 1986, Benjamini & Hochberg 1997 (weights); Liu & Xie 2020 (Cauchy); Vovk & Wang 2020 (power means).
    Deviation: calibrated.
    """

    def __init__(self, calibration: Floats, combine: Combination, weights: Sequence[float] | None = None) -> None:
        self._joint = JointTest(calibration, weights)
        self.num_calibration, self.num_tests = self._joint.num_calibration, self._joint.num_tests
        self._combine = combine
        self._calibration = np.sort(self._combined(self._joint.ranks / (self.num_calibration + 1)))

    def p_values(self, scores: Floats) -> tuple[Float64s, Float64s]:
        """scores: (n, t). Returns the combined p-values (n,) and each test's own (n, t)."""
        own = self._joint.own_p_values(scores)
        counted = 1 + np.searchsorted(self._calibration, self._combined(own), side="right")
        return counted / (self.num_calibration + 1), own

    def levels(self, alpha: float) -> Float64s:
        """At most α itself: what a detector finds as rare as that it says, though others may not agree, (t,)."""
        flagged = ranks_flagged(alpha, self.num_calibration)
        return np.full(self.num_tests, min(1.0, flagged / (self.num_calibration + 1)))

    def thresholds(self, levels: Float64s) -> Float64s:
        """Of each test the score beyond which its own p-value is at most its level, (t,); inf where that is 0."""
        return self._joint.thresholds(levels)

    def _combined(self, p_values: Float64s) -> Float64s:
        return self._combine(p_values - 0.5 / (self.num_calibration + 1), self._joint.weights)


def power_mean(p_values: Float64s, weights: Float64s) -> Float64s:
    """(Σ weight · p^−½)^−2, (n,). p_values: (n, t) in (0, 1); weights: (t,), sum 1.

    Between the harmonic mean, which the smallest rules, and the geometric, where one small among several ordinary ones
    is lost: one test that is sure is believed, and several that agree are believed together.
    """
    total = weights[0] / np.sqrt(p_values[:, 0])
    for column in range(1, len(weights)):  # in this order: the same bits whatever the number of rows
        total = total + weights[column] / np.sqrt(p_values[:, column])
    return np.asarray(1 / np.square(total))


def simes(p_values: Float64s, weights: Float64s) -> Float64s:
    """min over k of p₍ₖ₎ / (the share of weight of the k smallest), (n,). p_values: (n, t); weights: (t,), sum 1."""
    order = np.argsort(p_values, axis=1, kind="stable")
    shares = np.cumsum(weights[order], axis=1)
    ratios: Float64s = np.take_along_axis(p_values, order, axis=1) / shares
    return np.asarray(ratios.min(axis=1))


def cauchy(p_values: Float64s, weights: Float64s) -> Float64s:
    """½ − arctan(Σ weight · tan((½ − p)·π)) / π, (n,). p_values: (n, t) in (0, 1); weights: (t,), sum 1."""
    return np.asarray(0.5 - np.arctan(np.tan((0.5 - p_values) * np.pi) @ weights) / np.pi)


def least(p_values: Float64s, weights: Float64s) -> Float64s:
    """min of p / weight, (n,), which is what the joint test ranks by. p_values: (n, t); weights: (t,), sum 1."""
    return np.asarray((p_values / weights).min(axis=1))


COMBINATIONS: dict[Way, Combination] = {"joint": least, "power_mean": power_mean, "simes": simes, "cauchy": cauchy}
"""Of the joint test what it ranks by, for where it has no exact count."""
