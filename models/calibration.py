"""Scores to p-values, thresholds and intervals; numpy only. Higher scores are more suspicious throughout."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Float64s = npt.NDArray[np.float64]
Ranks = npt.NDArray[np.int64]

COMPARISONS_AT_ONCE = 1_000_000


class AlphaTooSmall(ValueError):
    """An error rate that so few calibration samples cannot promise; `smallest` is what they can."""

    def __init__(self, alpha: float, n: int) -> None:
        self.alpha, self.n, self.smallest = alpha, n, smallest_alpha(n)
        super().__init__(
            f"alpha {alpha:g} cannot be promised with {n} calibration samples: the smallest that can is 1/{n + 1}"
            f" = {self.smallest:.3g}; alpha {alpha:g} needs {math.ceil(1 / alpha) - 1} samples"
        )


def smallest_alpha(m: int) -> float:
    """The smallest rate that `m` calibration samples can promise: 1/(m + 1)."""
    if m < 0:
        raise ValueError(f"a sample count cannot be {m}")
    return 1 / (m + 1)


def check_alpha(alpha: float, n: int) -> None:
    """Raise ValueError if `alpha` is outside (0, 1), AlphaTooSmall if it is below 1/(n + 1)."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    if _ranks_flagged(alpha, n) == 0:
        raise AlphaTooSmall(alpha, n)


def conformal_p_values(scores: Floats, calibration: Floats) -> Float64s:
    """p = (1 + #{calibration >= score}) / (m + 1).

    scores: (n,). calibration: (m,), m ≥ 0, in any order; clean samples that nothing was fitted on.
    Returns (n,), float64 in [1/(m + 1), 1]. Flag where p <= α: P(flagged) <= α for a sample exchangeable with the
    calibration samples. Ties count against the calibration (as "at least as suspicious"), so that they stay on the
    safe side. Raises ValueError where a score is not finite.
    Source: Vovk et al. 2005, section 2.2, without the random tie-breaking.
    """
    sorted_scores = np.sort(_finite(calibration, "calibration scores"))
    below = np.searchsorted(sorted_scores, _finite(scores, "scores"), side="left")
    return (1 + len(sorted_scores) - below) / (len(sorted_scores) + 1)


class JointTest:
    """Several tests of one image as one conformal p-value, so that α stays α however many tests there are.

    calibration: (m, t), the scores of m clean images under t tests. An image is as suspicious as its most extreme rank
    among the calibration images and itself; where two images have the same, the test of the lower column is believed.
    That is full conformal prediction: the ranks of the calibration images count the new image too, which makes the
    m + 1 of them exchangeable and the p-value valid at every m, with no part of them set aside to calibrate the
    combination. With t = 1 it is `conformal_p_values`.
    Source: Vovk et al. 2005, section 2.2 (any symmetric conformity measure).
    """

    def __init__(self, calibration: Floats) -> None:
        columns = [_finite(column, "calibration scores") for column in np.asarray(calibration).T]
        self._columns = columns
        self._sorted = [np.sort(column) for column in columns]
        self._ranks = [
            len(column) - np.searchsorted(ordered, column, side="left")
            for column, ordered in zip(columns, self._sorted, strict=True)
        ]

    def p_values(self, scores: Floats) -> tuple[Float64s, Float64s]:
        """scores: (n, t). Returns the joint p-values (n,) and each test's own (n, t).

        Raises ValueError where t does not fit or a score is not finite.
        """
        if scores.ndim != 2 or scores.shape[1] != len(self._columns):
            raise ValueError(f"scores must have shape (n, {len(self._columns)}), not {scores.shape}")
        tests = [_finite(column, "scores") for column in scores.T]
        own = [1 + len(s) - np.searchsorted(s, t, side="left") for t, s in zip(tests, self._sorted, strict=True)]
        size = len(self._sorted[0]) + 1
        joint = np.empty(len(scores))
        block = max(1, COMPARISONS_AT_ONCE // size)
        for start in range(0, len(scores), block):
            rows = slice(start, start + block)
            joint[rows] = self._joint_ranks([t[rows] for t in tests], [r[rows] for r in own])
        return joint / size, np.stack(own, axis=1) / size

    def _joint_ranks(self, tests: list[Float64s], own: list[Ranks]) -> Ranks:
        """How many of the calibration images and the image itself are at least as suspicious as it, (n,)."""
        t = len(tests)
        key = np.min([t * ranks + j for j, ranks in enumerate(own)], axis=0)
        others = [
            t * (ranks + (test[:, None] >= column)) + j
            for j, (ranks, column, test) in enumerate(zip(self._ranks, self._columns, tests, strict=True))
        ]
        counted: Ranks = 1 + np.count_nonzero(np.min(others, axis=0) <= key[:, None], axis=1)
        return counted


def threshold_at_fpr(calibration: Floats, *, fpr: float) -> float:
    """The smallest threshold that flags a share of at most `fpr` of clean samples, in expectation.

    calibration: (m,) scores of held-out clean samples. Returns a value in their unit; flag where score > threshold,
    which is where the conformal p-value is <= fpr. Raises ValueError if fpr is outside (0, 1) or a score is not
    finite, AlphaTooSmall if fpr < 1/(m + 1).
    """
    scores = _finite(calibration, "calibration scores")
    check_alpha(fpr, len(scores))
    return float(np.sort(scores)[len(scores) - _ranks_flagged(fpr, len(scores))])


def infer_threshold(scores: Floats, *, percentage: float) -> float:
    """The smallest score that at least `percentage` % of `scores` do not exceed; flag where score > threshold.

    scores: (n,), n ≥ 1. Raises ValueError if there are none, one is not finite, or percentage is outside (0, 100).
    Source: Badjie et al., `infer_threshold`.
    """
    if not 0 < percentage < 100:
        raise ValueError(f"percentage must lie between 0 and 100, not {percentage}")
    if len(scores) == 0:
        raise ValueError("a threshold cannot be inferred from no scores")
    return float(np.quantile(_finite(scores, "scores"), percentage / 100, method="inverted_cdf"))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for a share of which `successes` of `n` were seen; (0, 1) where n = 0.

    Raises ValueError unless 0 <= successes <= n and 0 < confidence < 1. Source: Wilson 1927.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + _confidence(confidence)) / 2)
    share, weight = successes / n, n / (n + z * z)
    centre = weight * share + (1 - weight) / 2
    half = weight * z / n * math.sqrt(n * share * (1 - share) + z * z / 4)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == n else min(1.0, centre + half)


def realised_rate_bounds(
    alpha: float, n_calibration: int, n_test: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Central interval of the share of `n_test` clean samples that a conformal test at `alpha` flags.

    Exact where scores have no ties: the count is beta-binomial(n_test, k, n_calibration + 1 - k), k = ⌊α(n + 1)⌋,
    which holds both the luck of the calibration draw and that of the test draw.
    Returns shares in [0, 1]. Raises ValueError if n_test < 1, AlphaTooSmall if k = 0.
    Source: Vovk 2012, "Conditional validity of inductive conformal predictors".
    """
    check_alpha(alpha, n_calibration)
    if n_test < 1:
        raise ValueError(f"n_test must be at least 1, not {n_test}")
    tail = (1 - _confidence(confidence)) / 2
    flagged = _ranks_flagged(alpha, n_calibration)
    cumulative = np.cumsum(_beta_binomial(n_test, flagged, n_calibration + 1 - flagged))
    low, high = np.searchsorted(cumulative, [tail, 1 - tail])
    return float(low) / n_test, float(min(high, n_test)) / n_test


def _beta_binomial(n: int, a: int, b: int) -> Float64s:
    """Probabilities of 0 … n, by C(n, x) B(x + a, n - x + b) / B(a, b) with whole a, b ≥ 1."""
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + a + b)))))
    x = np.arange(n + 1)
    choose = log_factorial[n] - log_factorial[x] - log_factorial[n - x]
    beta = log_factorial[x + a - 1] + log_factorial[n - x + b - 1] - log_factorial[n + a + b - 1]
    norm = log_factorial[a - 1] + log_factorial[b - 1] - log_factorial[a + b - 1]
    probabilities: Float64s = np.exp(choose + beta - norm)
    return probabilities


def _ranks_flagged(alpha: float, n: int) -> int:
    """The largest k with k/(n + 1) <= alpha, as floating point has it: the same comparison that flags a p-value."""
    k = math.floor(alpha * (n + 1))
    while (k + 1) / (n + 1) <= alpha:
        k += 1
    while k / (n + 1) > alpha:
        k -= 1
    return k


def _confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    return confidence


def _finite(scores: Floats, what: str) -> Float64s:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{what} must have shape (n,), not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{what} must be finite numbers; {np.count_nonzero(~np.isfinite(values))} are not")
    return values
