"""How far an image lies, in a classifier's features, along the directions in which its class is torn apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from models.detectors.class_features import checked_features

SEES = (
    "Poison that is a minority of its class and shares something that the features have learnt, above all a trigger: "
    "it pulls the spectrum of the class apart."
)
BLIND_TO = (
    "Poison that shares nothing (scattered flips are seen faintly), triggers that the features have not learnt, and "
    "poison that is half of its class or more, where the clean images look like the minority."
)

Floats = npt.NDArray[np.floating]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

FEWEST_PER_DIRECTION = 5
ROWS_AT_ONCE = 4096
CORE_STEPS = 10
AMPLIFICATION = 4.0
LARGEST_SCORE = 1e30
"""Where most of a class is one point, all else is infinitely far from it; a float32 holds this."""
CHI_SQUARE_MEDIANS = (0.4549, 1.3863, 2.3660, 3.3567, 4.3515, 5.3481, 6.3458, 7.3441)
"""Median of the squared norm of a standard normal vector of 1 … 8 dimensions."""


@dataclass(frozen=True, eq=False)
class SpectralSignature:
    """‖A_y (x − m_y)‖²: centre (c, d), and factor (c, r, d) which projects, whitens, weighs and scales."""

    centre: Float64s
    factor: Float64s

    @classmethod
    def fit(cls, features: Floats, labels: Labels, *, num_classes: int, rank: int = 4) -> Self:
        """features: (m, d); labels: (m,) in 0 … num_classes − 1; rank: in 1 … 8, how many directions count,
        1 in the paper.

        Per class: the top singular directions around the median; along these, centred on and whitened by the mean and
        covariance of the tightest half, so that a minority neither moves the one nor hides in the other; with
        rank > 1 weighted by what remains of the spectrum; scaled so that the median image scores 1.
        A class of fewer than 5 images a direction takes the pooled directions of all.
        Raises ValueError where shapes do not fit, a value is not finite, or there are too few images in all.
        Source: Tran et al. 2018, algorithm 1; rank > 1 after Hayase et al. 2021 (SPECTRE). Deviations: the median for
        the mean, a robust scale, and the tightest half (fast MCD, Rousseeuw & Van Driessen 1999) for their filter.
        """
        x = checked_features(features, labels, num_classes)
        if not 1 <= rank <= min(len(CHI_SQUARE_MEDIANS), x.shape[1]):
            raise ValueError(f"rank must lie between 1 and {min(len(CHI_SQUARE_MEDIANS), x.shape[1])}, not {rank}")
        fewest = FEWEST_PER_DIRECTION * rank + 1
        if len(x) < fewest:
            raise ValueError(f"a spectral signature of rank {rank} needs {fewest} images, not {len(x)}")
        centre = np.tile(np.median(x, axis=0), (num_classes, 1))
        for label in np.unique(labels):
            centre[label] = np.median(x[labels == label], axis=0)
        residuals = x - centre[labels]
        factor = np.tile(_signature(residuals, rank)[1], (num_classes, 1, 1))
        for label in np.unique(labels):
            own = labels == label
            if np.count_nonzero(own) >= fewest:
                moved, factor[label] = _signature(residuals[own], rank)
                centre[label] += moved
        return cls(centre, factor)

    def score(self, features: Floats, labels: Labels) -> Float32s:
        """(n, d), (n,) to (n,), 1 for the median image of a class. Raises ValueError as `fit` does."""
        x = checked_features(features, labels, len(self.centre))
        scores = np.empty(len(x), dtype=np.float32)
        for start in range(0, len(x), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            own, residuals = labels[rows], x[rows] - self.centre[labels[rows]]
            # Row by row: a matrix product would round by how many images there are.
            projections = [(residuals * direction[own]).sum(axis=1) for direction in self.factor.transpose(1, 0, 2)]
            scores[rows] = np.minimum(np.sum(np.square(projections), axis=0), LARGEST_SCORE)
        return scores


def _signature(residuals: Float64s, rank: int) -> tuple[Float64s, Float64s]:
    """Of one class's residuals (m, d): where its bulk is centred, (d,), and its factor, (rank, d)."""
    _, directions = np.linalg.eigh(residuals.T @ residuals)
    top = directions[:, ::-1][:, :rank]
    projections = residuals @ top
    middle, whitening = _bulk(projections)
    white = (projections - middle) @ whitening
    weights = _spectral_weights(white.T @ white / len(white))
    size = np.square(white @ weights).sum(axis=1)
    factor = (top @ whitening @ weights).T / np.sqrt(max(float(np.median(size)), 1e-12))
    return np.asarray(top @ middle, dtype=np.float64), np.asarray(factor, dtype=np.float64)


def _bulk(projections: Float64s) -> tuple[Float64s, Float64s]:
    """Mean (r,) and inverse square root of the covariance (r, r) of the tightest half of projections (m, r).

    The half is grown from the shortest one along each direction, and from that around the median, and the least
    spread of these is kept. A median alone is drawn to a minority of a third or more, and its covariance hides it.
    """
    half = len(projections) // 2 + 1
    starts = [_shortest_half(axis, half) for axis in projections.T]
    spread = np.maximum(np.median(np.abs(projections), axis=0), 1e-12)
    starts.append(np.argsort(np.square(projections / spread).sum(axis=1), kind="stable")[:half])
    fits = [_concentrate(projections, core) for core in starts]
    _, middle, inverse_root = min(fits, key=lambda fit: fit[0])
    distance = np.square((projections - middle) @ inverse_root).sum(axis=1)
    consistency = CHI_SQUARE_MEDIANS[projections.shape[1] - 1] / max(float(np.median(distance)), 1e-12)
    return middle, inverse_root * np.sqrt(consistency)


def _concentrate(projections: Float64s, core: npt.NDArray[np.intp]) -> tuple[float, Float64s, Float64s]:
    """Log determinant, mean and inverse root of the covariance of a half that concentration steps tighten."""
    for _ in range(CORE_STEPS):
        middle, inverse_root, log_determinant = _moments(projections[core])
        distance = np.square((projections - middle) @ inverse_root).sum(axis=1)
        core = np.argsort(distance, kind="stable")[: len(core)]
    return log_determinant, middle, inverse_root


def _moments(points: Float64s) -> tuple[Float64s, Float64s, float]:
    """Mean (r,), inverse square root of the covariance (r, r) and its log determinant of points (m, r)."""
    middle = points.mean(axis=0)
    values, vectors = np.linalg.eigh((points - middle).T @ (points - middle) / len(points))
    values = np.maximum(values, max(float(values.max()) * 1e-6, 1e-18))
    return middle, np.asarray(vectors / np.sqrt(values) @ vectors.T, dtype=np.float64), float(np.log(values).sum())


def _shortest_half(axis: Float64s, half: int) -> npt.NDArray[np.intp]:
    order = np.argsort(axis, kind="stable")
    width = axis[order[half - 1 :]] - axis[order[: len(order) - half + 1]]
    start = int(width.argmin())
    return order[start : start + half]


def _spectral_weights(covariance: Float64s) -> Float64s:
    """Square root of exp(a (Σ − 1)/‖Σ − 1‖) over its trace: directions of excess variance weigh more.

    An excess below 1, which a clean class has by chance, is not blown up to 1.
    """
    values, vectors = np.linalg.eigh(covariance)
    excess = np.clip((values - 1) / max(float(values.max()) - 1, 1.0), -1, 1)
    weights = np.exp(AMPLIFICATION * (excess - 1))
    return np.asarray(vectors * np.sqrt(weights / weights.sum()) @ vectors.T, dtype=np.float64)
