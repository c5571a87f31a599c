"""Intervals of shares: what was seen may differ from what is so by this much."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from models.calibration.conformal import Float64s, check_alpha, ranks_flagged


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
    flagged = ranks_flagged(alpha, n_calibration)
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


def _confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    return confidence
