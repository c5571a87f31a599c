"""Ways to make one p-value of a panel's: the joint rank test, and the classical Simes and Cauchy to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from models.calibration import Float64s, Floats, JointTest
from models.calibration.per_class import PanelTest

Combine = Literal["joint", "simes", "cauchy"]


def panel_test(calibration: Floats, combine: Combine = "joint", weights: Sequence[float] | None = None) -> PanelTest:
    """The test of a panel. calibration: (m, t), scores of clean images. weights: (t,), see `JointTest`.

    With t = 1 there is nothing to combine, and every way is `conformal_p_values`.
    """
    if combine == "joint" or np.shape(calibration)[1:] == (1,):
        return JointTest(calibration, weights)
    return CombinedTest(calibration, combine, weights)


class CombinedTest:
    """A classical combination of p-values as the score of one more conformal test, so that it needs no assumption.

    calibration: (m, t), scores of clean images under t tests; weights: (t,), see `JointTest`.
    Simes's own level holds for tests that are independent or positively dependent, Cauchy's only for small α. Here
    neither is relied upon: the combined value is ranked among the calibration images' combined values. Valid at every
    m and under any dependence, for its p-value is never below that of full conformal prediction: the calibration
    images' ranks leave the new image out, which makes them look as suspicious as they can. It may exceed it by about
    1/(α·m) of its size at α.
    Raises ValueError where a score is not finite or weights are not t positive numbers.
    Source: Simes 1986, Benjamini & Hochberg 1997 (weights); Liu & Xie 2020 (Cauchy). Deviation: calibrated.
    """

    def __init__(self, calibration: Floats, combine: Combine, weights: Sequence[float] | None = None) -> None:
        self._joint = JointTest(calibration, weights)
        self.num_calibration, self.num_tests = self._joint.num_calibration, self._joint.num_tests
        self._combine = cauchy if combine == "cauchy" else simes
        self._calibration = np.sort(self._combined(self._joint.ranks / (self.num_calibration + 1)))

    def p_values(self, scores: Floats) -> tuple[Float64s, Float64s]:
        """scores: (n, t). Returns the combined p-values (n,) and each test's own (n, t)."""
        own = self._joint.own_p_values(scores)
        counted = 1 + np.searchsorted(self._calibration, self._combined(own), side="right")
        return counted / (self.num_calibration + 1), own

    def levels(self, alpha: float) -> Float64s:
        """Those of the joint test: how small an own p-value alone is rare enough among clean images, (t,)."""
        return self._joint.levels(alpha)

    def _combined(self, p_values: Float64s) -> Float64s:
        return self._combine(p_values - 0.5 / (self.num_calibration + 1), self._joint.weights)


def simes(p_values: Float64s, weights: Float64s) -> Float64s:
    """min over k of p₍ₖ₎ / (the share of weight of the k smallest), (n,). p_values: (n, t); weights: (t,), sum 1."""
    order = np.argsort(p_values, axis=1, kind="stable")
    shares = np.cumsum(weights[order], axis=1)
    ratios: Float64s = np.take_along_axis(p_values, order, axis=1) / shares
    return np.asarray(ratios.min(axis=1))


def cauchy(p_values: Float64s, weights: Float64s) -> Float64s:
    """½ − arctan(Σ weight · tan((½ − p)·π)) / π, (n,). p_values: (n, t) in (0, 1); weights: (t,), sum 1."""
    return np.asarray(0.5 - np.arctan(np.tan((0.5 - p_values) * np.pi) @ weights) / np.pi)
