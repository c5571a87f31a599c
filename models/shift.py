"""Are the candidates like the reference? Looks at the bulk of their scores, where poison is not.

Poison may fill the upper tail of a test's scores, so the tail tells nothing about the camera or the codec. Below it a
clean candidate set has the reference's distribution function F, or (1 − π)·F where a share π of poison lies above.
Numpy only. m calibration images, n candidates, k points of comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.bulk import FEWEST as FEWEST
from models.bulk import MAX_POISON, enough
from models.bulk import BulkMap as BulkMap
from models.bulk import bulk_calibration as bulk_calibration
from models.calibration import Float64s, Floats

Groups = npt.NDArray[Any]

BULK = np.arange(0.05, 0.61, 0.05)
"""Where the distributions are compared: shares of the reference's scores below."""

FALSE_ALARMS = 0.01
SMALLEST_DISTANCE = 0.02
"""A shift that moves a smaller share of the bulk moves α by less than the luck of the calibration draw does."""

DRAWS = 4000


@dataclass(frozen=True)
class Shift:
    """What a comparison of the bulks found.

    found: p_value is at most 1 % (over the number of tests compared), and the distance large enough to matter.
    distance: the largest gap of the two distribution functions over the bulk, in [0, 1], allowing for poison above it.
    ratio: typical score of the candidates' bulk over the reference's; None where scores are not all positive.
    direction: how the candidates' bulk scores. share_above: the share of candidates, at most 30 %, that the bulk lacks:
    poison, or part of a shift.
    sample_calibration, sample_candidates: how many independent images the sets are worth, given their groups.
    """

    found: bool
    p_value: float
    distance: float
    ratio: float | None
    direction: Literal["higher", "lower", "mixed"]
    share_above: float
    sample_calibration: float
    sample_candidates: float


def detect_shift(
    calibration: Floats,
    candidates: Floats,
    *,
    groups_calibration: Groups | None = None,
    groups_candidates: Groups | None = None,
    tests: int = 1,
    seed: int = 0,
) -> Shift:
    """Is the candidates' bulk distributed as the reference's?

    calibration: (m,), candidates: (n,), scores of one test, m, n ≥ 50. groups: of each, what object an image shows;
    images of a group count as one where they agree. Without groups of the candidates their images are taken to agree
    as much as the reference's. tests: how many tests of the same sets are compared; they share the false alarms.
    Compares F at the reference's 5 … 60 % points, up to a factor in [0.7, 1]. The p-value is of the largest
    standardised gap, by simulation from the estimated covariance with as many degrees of freedom as there are groups.
    It sees no shift of the tail alone, and few that raise scores by less than 0.4 of their logarithm's standard
    deviation, for 30 % of poison could look the same. Under 20 groups it raises more false alarms than 1 %.
    Raises ValueError where there are fewer scores, one is not finite, or groups do not fit.
    """
    reference, scores = enough(calibration, "calibration scores"), enough(candidates, "candidates")
    points = np.unique(np.quantile(reference, BULK, method="inverted_cdf"))
    of_reference = _Shares.of(reference, points, groups_calibration)
    of_candidates = _Shares.of(scores, points, groups_candidates)
    if groups_candidates is None:
        of_candidates = of_candidates.inflated(of_reference.design_effect)
    factor = _factor(of_reference.shares, of_candidates.shares)
    gaps = of_candidates.shares - factor * of_reference.shares
    rng = np.random.default_rng(np.random.PCG64(seed))
    errors = of_reference.drawn(rng), of_candidates.drawn(rng)
    p_value = max(_p_value(of_reference, of_candidates, errors, assumed) for assumed in {1.0, float(factor)})
    distance = float(np.abs(gaps).max())
    return Shift(
        found=p_value * tests <= FALSE_ALARMS and distance >= SMALLEST_DISTANCE,
        p_value=p_value,
        distance=distance,
        ratio=_ratio(reference, scores, float(factor)),
        direction=_direction(of_candidates.shares - of_reference.shares),
        share_above=1 - float(factor),
        sample_calibration=len(reference) / of_reference.design_effect,
        sample_candidates=len(scores) / of_candidates.design_effect,
    )


@dataclass(frozen=True, eq=False)
class _Shares:
    """The shares of a sample at or below each point, (k,), and how sure they are."""

    shares: Float64s
    covariance: Float64s  # (k, k), of the shares
    groups: int
    design_effect: float  # how many images of the sample are worth one independent image

    @classmethod
    def of(cls, scores: Float64s, points: Float64s, groups: Groups | None) -> _Shares:
        n = len(scores)
        shares = np.searchsorted(np.sort(scores), points, side="right") / n
        alone = (np.minimum.outer(shares, shares) - np.outer(shares, shares)) / n
        if groups is None:
            return cls(shares, alone, n, 1.0)
        if len(groups) != n:
            raise ValueError(f"{len(groups)} groups do not fit {n} scores")
        _, of_group = np.unique(groups, return_inverse=True)
        number = int(of_group.max()) + 1
        if number < 2:
            raise ValueError("a single group shows nothing of how groups differ")
        below = np.array([np.bincount(of_group[scores <= point], minlength=number) for point in points]).T
        apart = below - np.outer(np.bincount(of_group), shares)
        together = (apart**2).sum() / n**2 * number / (number - 1)
        effect = max(1.0, float(together / max(np.trace(alone), np.finfo(float).tiny)))
        # One effect for all points: at the lowest ones few groups have images, and say little of their own variance.
        return cls(shares, alone * effect, number, effect)

    def inflated(self, effect: float) -> _Shares:
        groups = max(2, round(self.groups / effect))
        return _Shares(self.shares, self.covariance * effect, groups, self.design_effect * effect)

    def drawn(self, rng: np.random.Generator) -> Float64s:
        """Errors of the shares, (draws, k), with tails as heavy as so few groups make them."""
        values, vectors = np.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0))
        freedom = self.groups - 1
        scale = np.sqrt(rng.chisquare(freedom, size=(DRAWS, 1)) / freedom)
        return np.asarray(rng.normal(size=(DRAWS, len(values))) @ root.T / scale)


def _factor(reference: Float64s, candidates: Float64s) -> Float64s:
    """The share of clean candidates that explains the bulk best, (...,). Both (..., k)."""
    fitted = (reference * candidates).sum(axis=-1) / (reference**2).sum(axis=-1)
    return np.asarray(np.clip(fitted, 1 - MAX_POISON, 1))


def _p_value(reference: _Shares, candidates: _Shares, errors: tuple[Float64s, Float64s], factor: float) -> float:
    """How often sets that differ by a share 1 − `factor` of poison only would show so large a gap."""
    spread = np.sqrt(np.diag(candidates.covariance) + factor**2 * np.diag(reference.covariance))
    spread = np.maximum(spread, 1e-12)

    def largest(of_reference: Float64s, of_candidates: Float64s) -> Float64s:
        fitted = _factor(of_reference, of_candidates)[..., None]
        return np.asarray((np.abs(of_candidates - fitted * of_reference) / spread).max(axis=-1))

    drawn = largest(reference.shares + errors[0], factor * reference.shares + errors[1])
    seen = largest(reference.shares, candidates.shares)
    return float((1 + np.count_nonzero(drawn >= seen)) / (1 + DRAWS))


def _ratio(reference: Float64s, candidates: Float64s, factor: float) -> float | None:
    """Geometric mean over the bulk of matching quantiles, candidates' over reference's."""
    if reference.min() <= 0 or candidates.min() <= 0:
        return None
    apart = np.log(np.quantile(candidates, factor * BULK)) - np.log(np.quantile(reference, BULK))
    return math.exp(float(apart.mean()))


def _direction(gaps: Float64s) -> Literal["higher", "lower", "mixed"]:
    """More candidates at or below a point means that they score lower."""
    largest = np.abs(gaps).max()
    if gaps.max() > largest / 2 and gaps.min() < -largest / 2:
        return "mixed"
    return "lower" if gaps.sum() > 0 else "higher"
