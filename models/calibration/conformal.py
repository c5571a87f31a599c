"""One score against clean scores: p-values, the rates that so many of them can promise, thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Float64s = npt.NDArray[np.float64]
Ranks = npt.NDArray[np.int64]

SAMPLES = "calibration samples"


class AlphaTooSmall(ValueError):
    """An error rate that so few calibration samples cannot promise; `smallest` is what they can."""

    def __init__(self, alpha: float, n: int, unit: str = SAMPLES) -> None:
        self.alpha, self.n, self.smallest = alpha, n, smallest_alpha(n)
        super().__init__(
            f"alpha {alpha:g} cannot be promised with {n} {unit}: the smallest that can is 1/{n + 1}"
            f" = {self.smallest:.3g}; alpha {alpha:g} needs {samples_needed(alpha)}"
        )


class ClassesTooSmall(AlphaTooSmall):
    """An error rate that some classes' calibration samples cannot promise, class by class; `classes` names them."""

    def __init__(self, alpha: float, counts: dict[str, int], unit: str = SAMPLES) -> None:
        self.classes = tuple(counts)
        super().__init__(alpha, min(counts.values()))
        shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:10])
        more = f" and {len(counts) - 10} more" if len(counts) > 10 else ""
        self.args = (
            f"alpha {alpha:g} cannot be promised class by class: {shown}{more} have fewer than the"
            f" {samples_needed(alpha)} {unit} it needs; the smallest alpha that every class can promise is"
            f" 1/{self.n + 1} = {self.smallest:.3g}",
        )


def samples_needed(alpha: float) -> int:
    """How many calibration samples promise `alpha`."""
    n = max(0, math.ceil(1 / alpha) - 1)
    return n if ranks_flagged(alpha, n) else n + 1


def smallest_alpha(m: int) -> float:
    """The smallest rate that `m` calibration samples can promise: 1/(m + 1)."""
    if m < 0:
        raise ValueError(f"a sample count cannot be {m}")
    return 1 / (m + 1)


def check_alpha(alpha: float, n: int, unit: str = SAMPLES) -> None:
    """Raise ValueError if `alpha` is outside (0, 1), AlphaTooSmall if it is below 1/(n + 1). unit: of n, in words."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    if ranks_flagged(alpha, n) == 0:
        raise AlphaTooSmall(alpha, n, unit)


def check_alpha_per_class(alpha: float, counts: Mapping[str, int], unit: str = SAMPLES) -> None:
    """Raise ClassesTooSmall if a class has too few calibration samples to promise `alpha`.

    counts: of each class by its name; unit: of what, in words.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    short = {name: count for name, count in counts.items() if ranks_flagged(alpha, count) == 0}
    if short:
        raise ClassesTooSmall(alpha, short, unit)


def conformal_p_values(scores: Floats, calibration: Floats) -> Float64s:
    """p = (1 + #{calibration >= score}) / (m + 1).

    scores: (n,). calibration: (m,), m ≥ 0, in any order; clean samples that nothing was fitted on.
    Returns (n,), float64 in [1/(m + 1), 1]. Flag where p <= α: P(flagged) <= α for a sample exchangeable with the
    calibration samples. Ties count against the calibration (as "at least as suspicious"), so that they stay on the
    safe side. Raises ValueError where a score is not finite.
    Source: Vovk et al. 2005, section 2.2, without the random tie-breaking.
    """
    sorted_scores = np.sort(finite(calibration, "calibration scores"))
    below = np.searchsorted(sorted_scores, finite(scores, "scores"), side="left")
    return (1 + len(sorted_scores) - below) / (len(sorted_scores) + 1)


def threshold_at_fpr(calibration: Floats, *, fpr: float) -> float:
    """The smallest threshold that flags a share of at most `fpr` of clean samples, in expectation.

    calibration: (m,) scores of held-out clean samples. Returns a value in their unit; flag where score > threshold,
    which is where the conformal p-value is <= fpr. Raises ValueError if fpr is outside (0, 1) or a score is not
    finite, AlphaTooSmall if fpr < 1/(m + 1).
    """
    scores = finite(calibration, "calibration scores")
    check_alpha(fpr, len(scores))
    return float(np.sort(scores)[len(scores) - ranks_flagged(fpr, len(scores))])


def infer_threshold(scores: Floats, *, percentage: float) -> float:
    """The smallest score that at least `percentage` % of `scores` do not exceed; flag where score > threshold.

    scores: (n,), n ≥ 1. Raises ValueError if there are none, one is not finite, or percentage is outside (0, 100).
    Source: Badjie et al., `infer_threshold`.
    """
    if not 0 < percentage < 100:
        raise ValueError(f"percentage must lie between 0 and 100, not {percentage}")
    if len(scores) == 0:
        raise ValueError("a threshold cannot be inferred from no scores")
    return float(np.quantile(finite(scores, "scores"), percentage / 100, method="inverted_cdf"))


def ranks_flagged(alpha: float, n: int) -> int:
    """The largest k with k/(n + 1) <= alpha, as floating point has it: the same comparison that flags a p-value."""
    k = math.floor(alpha * (n + 1))
    while (k + 1) / (n + 1) <= alpha:
        k += 1
    while k / (n + 1) > alpha:
        k -= 1
    return k


def finite(scores: Floats, what: str, dimensions: int = 1) -> Float64s:
    """`scores` in float64. Raises ValueError where their shape has not so many dimensions, or one is not finite."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != dimensions:
        raise ValueError(f"{what} must have shape {'(n,)' if dimensions == 1 else '(n, t)'}, not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{what} must be finite numbers; {np.count_nonzero(~np.isfinite(values))} are not")
    return values
