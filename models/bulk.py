"""Maps the reference's scores onto the candidates' by their bulk, where poison is not. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.calibration import Float64s, Floats
from models.calibration.conformal import finite

MAX_POISON = 0.3
"""The largest share of candidates that may be poison."""

FEWEST = 50
"""With fewer scores a bulk tells nothing."""

EDGES = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98])
"""Shares of the reference's scores below the edges of the cells in which candidates are counted."""

POWERS = np.exp(np.linspace(-0.45, 0.45, 13))
FLOORS = np.concatenate([-np.array([0.9, 0.7, 0.5, 0.25]), [0], np.array([0.25, 0.5, 1, 2, 4, 8, 16])])
CENTRES = np.linspace(0.3, 0.62, 41)
POWER_SPREAD, POISON_MEAN, FLOOR_SPREAD = 0.2, 0.05, 3.0
"""What is likely before the candidates are seen: a power near 1, little poison, any floor. It decides where few images
leave a stretch of the upper tail, a floor under the lower one and poison above hard to tell apart."""


@dataclass(frozen=True, eq=False)
class BulkMap:
    """How the reference's scores become the candidates': s ↦ gain·(s/typical)^power + floor.

    typical: the reference's median. share_above: estimated share of candidates above what clean ones score.
    mapped: (m,), the calibration scores as the candidates' images would have scored. Where `logs` is false some scores
    are not positive: the map is of exp((score − median)/typical), typical the reference's interquartile range.
    """

    gain: float
    power: float
    floor: float
    typical: float
    logs: bool
    share_above: float
    mapped: Float64s


@dataclass(frozen=True)
class _Guess:
    """power and floor as above, the floor in units of the mapped 5 % point without it; centre: of the median, a log."""

    cost: float
    power: float
    floor: float
    centre: float
    share: float


def bulk_calibration(calibration: Floats, candidates: Floats) -> BulkMap:
    """The reference's scores as they would be had its images come the candidates' way.

    calibration: (m,), candidates: (n,), scores of one test, m, n ≥ 50. Of a panel, each test is mapped by itself.
    Assumes that at least 70 % of the candidates are clean, that poison lies beyond nearly all clean scores of this test
    or among them as clean ones do, and that the shift has three parts: a gain and a power (another contrast or blur),
    and a floor (noise of a codec or of rounding, which lifts low scores and leaves high ones). They and the share of
    poison are those that make the counts of candidates between mapped quantiles of the reference most likely, all
    poison counted beyond the last. Rates calibrated on `mapped` are estimates.
    Where the bulk of either is one value, as of scores that count, nothing can be told from it and nothing is mapped.
    Raises ValueError where there are fewer scores, or one is not finite.
    """
    reference, scores = enough(calibration, "calibration scores"), enough(candidates, "candidates")
    logs = bool(reference.min() > 0 and scores.min() > 0)
    low, middle, high = np.quantile(reference, [0.25, 0.5, 0.75])
    if high == low or np.ptp(np.quantile(scores, [0.2, 0.6])) == 0:
        return BulkMap(1.0, 1.0, 0.0, 1.0, logs, 0.0, reference.copy())
    typical = float(middle if logs else high - low)
    x, y = (np.log(reference / typical), np.log(scores)) if logs else (reference / typical, scores / typical)
    offset = float(np.median(x))
    points, ordered = np.quantile(x, EDGES) - offset, np.sort(y)
    sample = 1 / (1 / len(x) + 1 / len(y))
    guess = _best(points, ordered, sample, POWERS, FLOORS, np.quantile(ordered, CENTRES))
    for width in (0.5, 0.2):
        guess = _refined(guess, points, ordered, sample, width)
    base = float(guess.floor * np.exp(guess.power * points[0]))
    scale = guess.centre - np.log1p(base)
    lifted = np.maximum(scale + _lifted(guess.power * (x - offset), np.asarray(base)), ordered[0])
    mapped = np.exp(lifted) if logs else lifted * typical
    gain = float(np.exp(scale if logs else scale - offset))
    return BulkMap(gain, guess.power, gain * float(base), typical, logs, guess.share, np.asarray(mapped))


def _lifted(logs: Float64s, floors: Float64s) -> Float64s:
    """log(exp(logs) + floors), for floors > −1, where no such number exists a very low one."""
    high, low = np.maximum(logs, 0), np.minimum(logs, 0)
    above = high + np.log1p(floors * np.exp(-high))
    return np.where(logs > 0, above, np.log(np.maximum(np.exp(low) + floors, 1e-300)))


def _refined(guess: _Guess, points: Float64s, ordered: Float64s, sample: float, width: float) -> _Guess:
    """The best in the neighbourhood of a guess, `width` of the first search's steps to either side."""
    steps = np.linspace(-width, width, 7)
    powers = guess.power * np.exp(steps * 0.075)
    floors = guess.floor + steps * max(0.25, abs(guess.floor)) * 0.5
    at = np.searchsorted(ordered, guess.centre) / len(ordered)
    shares = np.clip(at + np.linspace(-width, width, 21) * 0.03, 0, 1)
    centres = np.append(np.quantile(ordered, shares), guess.centre)
    return min(guess, _best(points, ordered, sample, powers, floors[floors > -1], centres), key=lambda g: g.cost)


def _best(
    points: Float64s, ordered: Float64s, sample: float, powers: Float64s, floors: Float64s, centres: Float64s
) -> _Guess:
    """The likeliest of all. points: (k,), logs of the reference's quantiles over its median; ordered: (n,), logs."""
    power, floor = (axis.ravel() for axis in np.meshgrid(powers, floors, indexing="ij"))
    base = floor * np.exp(power * points[0])
    shapes = _lifted(power[:, None] * points, base[:, None]) - np.log1p(base)[:, None]
    edges = shapes[:, :, None] + centres  # neighbours in memory are neighbours in value: they are found faster
    below = np.searchsorted(ordered, edges, side="right").swapaxes(1, 2) / len(ordered)
    shares = np.clip(1 - below[..., -1] / EDGES[-1], 0, MAX_POISON)
    prior = (np.log(power) / POWER_SPREAD) ** 2 / 2 + (np.log1p(floor) / FLOOR_SPREAD) ** 2 / 2
    costs = sample * _divergence(below, shares) + shares / POISON_MEAN + prior[:, None]
    shape, centre = np.unravel_index(np.argmin(costs), costs.shape)
    found = costs[shape, centre], power[shape], floor[shape], centres[centre], shares[shape, centre]
    return _Guess(*(float(value) for value in found))


def _divergence(below: Float64s, shares: Float64s) -> Float64s:
    """KL of the cells' shares of candidates from those expected with a share of poison in the last, (…).

    below: (…, k), the share of candidates under each edge; shares: (…).
    """
    clean = np.diff(EDGES, prepend=0, append=1)
    seen = np.diff(below, axis=-1, prepend=0, append=1)
    last = seen[..., -1]
    expected = seen[..., :-1] @ np.log(clean[:-1]) + (1 - last) * np.log1p(-shares)
    expected += last * np.log((1 - shares) * clean[-1] + shares)
    return np.asarray((seen * np.log(np.maximum(seen, 1e-12))).sum(axis=-1) - expected)


def enough(scores: Floats, what: str) -> Float64s:
    """Raises ValueError where there are fewer than `FEWEST`, or one is not finite."""
    values = finite(scores, what)
    if len(values) < FEWEST:
        raise ValueError(f"{len(values)} {what} are too few to tell a shift: at least {FEWEST} are needed")
    return values
