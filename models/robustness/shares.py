"""Shares and means with their 95 % intervals: what every number of an evaluation is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.calibration import wilson_interval

STANDARD_ERRORS = 1.959964


@dataclass(frozen=True)
class Share:
    """`count` of `n`, with its 95 % Wilson interval."""

    count: int
    n: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """The mean of n values with its 95 % interval by the normal approximation; all 0 where n = 0."""

    mean: float
    low: float
    high: float
    n: int


def share(count: int, n: int) -> Share:
    """A share with its interval; 0 in (0, 1) where n = 0."""
    low, high = wilson_interval(count, n)
    return Share(count, n, count / n if n else 0.0, low, high)


def mean(values: npt.NDArray[np.floating]) -> Mean:
    """values: (n,). Of one value the interval is the value; of values none of which is negative it is not either."""
    n = len(values)
    if n == 0:
        return Mean(0.0, 0.0, 0.0, 0)
    middle = float(np.mean(values))
    error = STANDARD_ERRORS * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    low = middle - error
    return Mean(middle, max(low, 0.0) if np.min(values) >= 0 else low, middle + error, n)
