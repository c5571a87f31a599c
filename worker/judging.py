"""From scores to flags, by the rule the user chose. Pure arithmetic over `models.calibration`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.calibration import conformal_p_values, infer_threshold, smallest_alpha, threshold_at_fpr, wilson_interval
from models.specs import SanitiseSpec

Rule = Literal["conformal", "threshold", "inferred_threshold"]


@dataclass(frozen=True, eq=False)
class Judgement:
    """Flags of every candidate, with what they rest on."""

    scores: NDArray[np.float32]
    calibration_scores: NDArray[np.float32]
    p_values: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    rule: Rule
    threshold: float  # flagged where the score exceeds it
    alpha: float | None  # promised, under the conformal rule only

    @property
    def num_calibration(self) -> int:
        return len(self.calibration_scores)

    @property
    def rates_are(self) -> Literal["held", "estimated"]:
        return "held" if self.rule == "conformal" else "estimated"

    @property
    def smallest_alpha(self) -> float:
        return smallest_alpha(self.num_calibration)

    @property
    def calibration_flagged(self) -> dict[str, Any]:
        """What share of the trusted images, held out of every fit, the same threshold flags."""
        count = int(self.flags(self.calibration_scores).sum())
        low, high = wilson_interval(count, self.num_calibration)
        return {"share": count / self.num_calibration, "low": low, "high": high, "n": self.num_calibration}

    def flags(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.asarray(scores > self.threshold)


def judge(scores: NDArray[np.float32], calibration: NDArray[np.float32], spec: SanitiseSpec) -> Judgement:
    """Raises AlphaTooSmall where the calibration set cannot promise the rate asked for."""
    rule = spec.calibration
    alpha = rule.false_quarantine_rate
    kind: Rule
    if alpha is not None:
        kind, threshold = "conformal", threshold_at_fpr(calibration, fpr=alpha)
    elif rule.threshold is not None:
        kind, threshold = "threshold", rule.threshold
    elif rule.infer_threshold is not None:
        kind = "inferred_threshold"
        threshold = infer_threshold(calibration, percentage=rule.infer_threshold.percentage)
    else:
        raise ValueError("a calibration spec has one rule")
    p_values = conformal_p_values(scores, calibration)
    flagged = p_values <= alpha if alpha is not None else np.asarray(scores > threshold)
    return Judgement(scores, calibration, p_values, flagged, kind, float(threshold), alpha)
