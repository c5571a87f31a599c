"""Flags over a whole set that hold the share of clean images among the flagged: Benjamini–Hochberg."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.calibration.conformal import Float64s, Floats, check_alpha, finite

ROUNDING = 1e-12
"""Relative slack of comparisons of p-values, which are ratios of whole numbers, with a rate times k/n."""


def benjamini_hochberg(p_values: Floats, *, rate: float) -> npt.NDArray[np.bool_]:
    """Which to flag so that, in expectation, at most a share `rate` of the flagged are clean; (n,) bool.

    p_values: (n,), each in (0, 1]. Flags the k smallest, k the largest with p₍ₖ₎ <= rate·k/n.
    Conformal p-values of one calibration set are not independent: an unlucky draw of it lowers them all. They are
    positively dependent (PRDS), and then the bound rate·(share of clean) holds at any n and m. That is proven for one
    fixed score; for p-values of `JointTest`, whose ranks count the image itself, it is measured, not proven.
    Raises ValueError if rate is outside (0, 1) or a p-value outside (0, 1].
    Source: Benjamini & Hochberg 1995; Benjamini & Yekutieli 2001 (PRDS); Bates et al. 2023, theorem 2 (conformal).
    """
    if not 0 < rate < 1:
        raise ValueError(f"a false-discovery rate must lie between 0 and 1, not {rate}")
    return adjusted_p_values(p_values) <= rate * (1 + ROUNDING)


def adjusted_p_values(p_values: Floats) -> Float64s:
    """The smallest false-discovery rate at which each would be flagged, (n,): min over k' ≥ k of p₍ₖ'₎·n/k'.

    p_values: (n,). Raises ValueError where one is outside (0, 1]. Source: Benjamini & Hochberg 1995 ("q-values").
    """
    p = finite(p_values, "p-values")
    if len(p) == 0:
        return p
    if p.min() <= 0 or p.max() > 1:
        raise ValueError("p-values must lie in (0, 1]")
    order = np.argsort(p, kind="stable")
    raw = p[order] * (len(p) / np.arange(1, len(p) + 1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1)
    return adjusted


def smallest_share(m: int, *, rate: float) -> float:
    """The share of a set that must be flagged together before anything can be, in (0, 1].

    No conformal p-value of m calibration samples is below 1/(m + 1), so k of n can be discovered at `rate` only where
    k/n ≥ 1/((m + 1)·rate): poison rarer than that passes whatever it scores.
    Raises AlphaTooSmall where that share exceeds 1, which is where rate < 1/(m + 1): nothing could ever be flagged.
    """
    check_alpha(rate, m)
    return min(1.0, 1 / ((m + 1) * rate))
