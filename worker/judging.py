"""From a panel's scores to flags, by the rule the user chose. Pure arithmetic over `models`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.calibration import infer_threshold, smallest_alpha, smallest_share, wilson_interval
from models.shift import Shift
from models.specs import CalibrationSpec, SanitiseSpec
from worker.calibrating import Calibrated, calibrate, discoveries, shifts_between
from worker.scored import Detectors, Scored

Rule = Literal["conformal", "false_discovery", "threshold", "inferred_threshold"]


@dataclass(frozen=True, eq=False)
class Judgement:
    """Flags of every candidate, with what they rest on. n candidates, m calibration images, t detectors."""

    panel: Detectors
    candidates: Scored
    reference: Scored  # the calibration images, as they were scored
    calibration: Scored  # the same; in the candidates' units where it calibrates on them and a shift is likely
    p_values: NDArray[np.float64]  # (n,), of the panel; of the filter alone under a threshold
    flagged: NDArray[np.bool_]  # (n,)
    spoke: NDArray[np.bool_]  # (n, t): the detectors that each flagged image owes its flag to, at least one
    rule: Rule
    rate: float | None  # asked for, of either kind; None under a threshold
    level: float | None  # the p-value up to which images are flagged; 0 where nothing is; None under a threshold
    thresholds: NDArray[np.float64]  # (t,): the score beyond which each detector speaks; inf where it never does
    test: Calibrated

    @property
    def threshold(self) -> float | None:
        """Flagged where the one detector's score exceeds it; None where it is not one score's line that decides."""
        one_line = len(self.panel.names) == 1 and self.test.per_class is None and self.test.among is None
        alone = self.rate is None or one_line
        return self.filter_threshold if alone else None

    @property
    def filter_threshold(self) -> float:
        """The filter's score beyond which it speaks against an image of any class; the highest seen where none."""
        highest = max(self.scores.max(initial=-np.inf), self.calibration_scores.max(initial=-np.inf))
        return float(self.thresholds[0] if np.isfinite(self.thresholds[0]) else highest)

    @property
    def alpha(self) -> float | None:
        """Promised share of clean images flagged, under the conformal rule only."""
        return self.rate if self.rule == "conformal" else None

    @property
    def scores(self) -> NDArray[np.float32]:
        """The filter's, which is the first detector, (n,)."""
        return self.candidates.scores[:, 0]

    @property
    def calibration_scores(self) -> NDArray[np.float32]:
        """The filter's, which is the first detector, (m,)."""
        return self.calibration.scores[:, 0]

    @property
    def num_calibration(self) -> int:
        return len(self.calibration.scores)

    @cached_property
    def shifts(self) -> dict[str, Shift]:
        """By detector; empty where there are too few images to tell."""
        return shifts_between(self.reference, self.candidates, self.panel)

    @property
    def shift(self) -> Shift | None:
        """The clearest of the detectors' shifts; None where there are too few images to tell."""
        return min(self.shifts.values(), key=lambda s: (not s.found, s.p_value, -s.distance), default=None)

    @property
    def rates_are(self) -> Literal["held", "estimated"]:
        """Held only where α was promised for candidates like the reference, they look like it, and no two calibration
        images that count as two show the same."""
        shifted = self.shift is not None and self.shift.found
        dependent = self.reference.shares_objects and self.test.groups is None
        held = self.rate is not None and self.test.among is None and not shifted and not dependent
        return "held" if held else "estimated"

    @property
    def smallest_alpha(self) -> float:
        return smallest_alpha(self.test.fewest)

    @property
    def smallest_share(self) -> float | None:
        """Share of the candidates below which no poison can be discovered; None under the other rules."""
        if self.rule != "false_discovery" or self.rate is None:
            return None
        return smallest_share(self.test.most, rate=self.rate)

    @cached_property
    def calibration_flagged(self) -> dict[str, Any]:
        """What share of the trusted images, held out of every fit, the same rule flags."""
        count = int(self._calibration_flags().sum())
        low, high = wilson_interval(count, self.num_calibration)
        return {"share": count / self.num_calibration, "low": low, "high": high, "n": self.num_calibration}

    def _calibration_flags(self) -> NDArray[np.bool_]:
        if self.level is not None:
            return np.asarray(self.test.of_calibration() <= self.level)
        return self.flags(self.calibration.scores)

    def own_p_values(self, places: slice | NDArray[np.intp]) -> NDArray[np.float64]:
        """Of each detector alone, of the k candidates at those places, (k, t)."""
        return self.test.own_p_values(self.candidates.at(places))

    def flags(self, scores: NDArray[np.float32], labels: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """Whether each of other images would be flagged, (k,). scores: (k, t), or (k,) of one detector."""
        given = Scored.of(scores, labels)
        if self.level is not None:
            return np.asarray(self.test.p_values(given) <= self.level)
        return np.asarray(given.scores[:, 0] > self.filter_threshold)


def judge(
    candidates: Scored | NDArray[np.float32],
    calibration: Scored | NDArray[np.float32],
    spec: SanitiseSpec,
    panel: Detectors | None = None,
    *,
    sifted: bool = False,
) -> Judgement:
    """sifted: the calibration images were chosen among the candidates, for looking clean.

    Raises AlphaTooSmall where the calibration set, or a class of it, cannot promise the rate asked for.
    """
    judged, reference = Scored.of(candidates), Scored.of(calibration)
    panel = panel or Detectors.unnamed(judged.scores.shape[1])
    test = calibrate(reference, judged, spec.calibration, panel, sifted=sifted)
    make = partial(
        Judgement,
        panel=panel,
        candidates=judged,
        reference=reference,
        calibration=test.calibration,
        rate=spec.calibration.rate,
        test=test,
    )
    if spec.calibration.rate is None:
        return _by_threshold(make, judged, test, spec.calibration)
    p_values = test.p_values(judged)
    rule: Rule = "conformal"
    level = spec.calibration.rate
    if spec.calibration.false_discovery_rate is not None:
        rule, level = "false_discovery", discoveries(p_values, level)
    flagged = np.asarray(p_values <= level)
    spoke = test.spoke(judged, flagged, level)
    lines = test.thresholds(level)
    return make(p_values=p_values, flagged=flagged, spoke=spoke, rule=rule, level=level, thresholds=lines)


def _by_threshold(
    make: Callable[..., Judgement],
    judged: Scored,
    test: Calibrated,
    given: CalibrationSpec,
) -> Judgement:
    """The filter's score alone decides; what else the panel saw is only shown."""
    rule: Rule = "threshold"
    line = given.threshold
    if given.infer_threshold is not None:
        rule = "inferred_threshold"
        line = infer_threshold(test.calibration.scores[:, 0], percentage=given.infer_threshold.percentage)
    lines = np.array([line, *[np.inf] * (judged.scores.shape[1] - 1)], dtype=np.float64)
    flagged = np.asarray(judged.scores[:, 0] > float(lines[0]))
    spoke = np.zeros(judged.scores.shape, dtype=bool)
    spoke[:, 0] = flagged
    return make(
        p_values=test.own_p_values(judged)[:, 0], flagged=flagged, spoke=spoke, rule=rule, level=None, thresholds=lines
    )
