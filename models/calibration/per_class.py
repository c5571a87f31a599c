"""P-values among the calibration images of the given label only: α holds class by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.calibration.conformal import Float64s, Floats, conformal_p_values

Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.bool_]


class PanelTest(Protocol):
    """One conformal p-value out of the scores of several tests. num_calibration: what it counts, images or groups."""

    num_calibration: int
    num_tests: int

    def p_values(self, scores: Floats) -> tuple[Float64s, Float64s]:
        """scores: (n, t). The joint p-values (n,) and each test's own (n, t)."""
        ...

    def levels(self, alpha: float) -> Float64s:
        """The own p-value up to which each test speaks, where the one p-value flags at α, (t,)."""
        ...

    def thresholds(self, levels: Float64s) -> Float64s:
        """Of each test the score beyond which its own p-value is at most its level, (t,); inf where none is."""
        ...


def class_p_values(scores: Floats, labels: Labels, calibration: Floats, calibration_labels: Labels) -> Float64s:
    """`conformal_p_values` among the calibration samples of the same label.

    scores, labels: (n,). calibration, calibration_labels: (m,). Returns (n,); 1 where no calibration sample has the
    label. For a clean sample, P(p <= α) <= α whatever its label, where the whole set's p-values only hold α over all
    labels together. Raises ValueError where a score is not finite or lengths differ.
    Source: Vovk et al. 2005, section 4.5 (Mondrian conformal prediction).
    """
    _check_lengths(len(scores), labels, len(calibration), calibration_labels)
    p = np.ones(len(scores))
    for label in np.unique(labels):
        rows = labels == label
        p[rows] = conformal_p_values(scores[rows], calibration[calibration_labels == label])
    return p


class PerClassTest:
    """One `PanelTest` a class, each calibrated by that class's images."""

    def __init__(self, labels: Labels, make: Callable[[Rows], PanelTest], num_tests: int) -> None:
        """labels: (m,), of the calibration images; make: the test of t = num_tests of one class's, a mask (m,)."""
        self.num_tests = num_tests
        self._tests = {int(label): make(labels == label) for label in np.unique(labels)}

    def p_values(self, scores: Floats, labels: Labels) -> tuple[Float64s, Float64s]:
        """scores: (n, t); labels: (n,). Joint p-values (n,) and own (n, t); 1 where no calibration image has the label.

        Raises ValueError where shapes do not fit or a score is not finite.
        """
        _check_lengths(len(scores), labels)
        joint, own = np.ones(len(scores)), np.ones((len(scores), self.num_tests))
        for label, rows in self._rows(labels):
            joint[rows], own[rows] = self._tests[label].p_values(scores[rows])
        return joint, own

    def levels(self, alpha: float, labels: Labels) -> Float64s:
        """The own p-value up to which each test speaks against an image of its label, (n, t)."""
        levels = np.zeros((len(labels), self.num_tests))
        for label, rows in self._rows(labels):
            levels[rows] = self._tests[label].levels(alpha)
        return levels

    def thresholds(self, alpha: float) -> Float64s:
        """The scores beyond which each test speaks against an image of any class, (t,); inf where it never does."""
        lines = [test.thresholds(test.levels(alpha)) for test in self._tests.values()]
        return np.max(lines, axis=0) if lines else np.full(self.num_tests, np.inf)

    def _rows(self, labels: Labels) -> list[tuple[int, npt.NDArray[np.bool_]]]:
        return [(int(label), labels == label) for label in np.unique(labels) if int(label) in self._tests]


def _check_lengths(n: int, labels: Labels, m: int = 0, calibration_labels: Labels | None = None) -> None:
    if labels.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), not {labels.shape}")
    if calibration_labels is not None and calibration_labels.shape != (m,):
        raise ValueError(f"calibration labels must have shape ({m},), not {calibration_labels.shape}")
