"""Whether a class falls into two clusters in a classifier's features, and an image into the smaller one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from models.detectors.class_features import checked_features

SEES = (
    "Poison that forms a cluster of its own within its class, as a learnt trigger with a false label does: "
    "the smaller cluster of a class that splits cleanly."
)
BLIND_TO = (
    "Poison that is scattered or blends with its class, triggers that the features have not learnt, and which of two "
    "clusters is poison where they are of one size. A rare clean kind of image within a class looks like poison."
)

Floats = npt.NDArray[np.floating]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

DIMENSIONS = 10
FEWEST_OF_A_CLASS = 20
RESTARTS = 8
STEPS = 50
ROWS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class _Split:
    """One class: mean (d,), directions (r, d), the centres of its two clusters (2, r), smaller first, and how clean."""

    mean: Float64s
    directions: Float64s
    centres: Float64s
    weight: float


@dataclass(frozen=True, eq=False)
class ActivationClustering:
    """The split of each class: mean (c, d), directions (c, r, d), centres (c, 2, r), smaller first, weight (c,)."""

    mean: Float64s
    directions: Float64s
    centres: Float64s
    weight: Float64s

    @classmethod
    def fit(cls, features: Floats, labels: Labels, *, num_classes: int, rng: np.random.Generator) -> Self:
        """features: (m, d); labels: (m,) in 0 … num_classes − 1; rng starts the clusters.

        Each class: its first 10 principal components, 2-means, and the weight: separation × (1 − share of the
        smaller). A class of fewer than 20 images is not split and scores 0.
        Raises ValueError where shapes do not fit or a value is not finite.
        Source: Chen et al. 2018, section 4. Deviations: principal for independent components; a score for a verdict.
        """
        x = checked_features(features, labels, num_classes)
        d, r = x.shape[1], min(DIMENSIONS, x.shape[1])
        mean, directions = np.zeros((num_classes, d)), np.zeros((num_classes, r, d))
        centres, weight = np.zeros((num_classes, 2, r)), np.zeros(num_classes)
        for label in np.unique(labels):
            own = x[labels == label]
            if len(own) >= FEWEST_OF_A_CLASS:
                split = _split(own, r, rng)
                mean[label], directions[label] = split.mean, split.directions
                centres[label], weight[label] = split.centres, split.weight
        return cls(mean, directions, centres, weight)

    def score(self, features: Floats, labels: Labels) -> Float32s:
        """weight × ½ (1 + (distance to the larger − distance to the smaller) / the greater of both): in [0, 1].

        features: (n, d); labels: (n,). Returns (n,). An image amid the larger cluster scores 0 however clean the
        split: poison that 2-means left there is not to be taken for the least suspicious of all.
        Raises ValueError as `fit` does.
        """
        x = checked_features(features, labels, len(self.mean))
        scores = np.empty(len(x), dtype=np.float32)
        for start in range(0, len(x), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            own, residuals = labels[rows], x[rows] - self.mean[labels[rows]]
            # Row by row: a matrix product would round by how many images there are.
            reduced = np.stack([(residuals * axis[own]).sum(axis=1) for axis in self.directions.transpose(1, 0, 2)], 1)
            reduced = np.ascontiguousarray(reduced)
            smaller, larger = (_distance(reduced, self.centres[own, cluster]) for cluster in (0, 1))
            scores[rows] = self.weight[own] * (1 + _belonging(smaller, larger)) / 2
        return scores


def _split(own: Float64s, rank: int, rng: np.random.Generator) -> _Split:
    mean = own.mean(axis=0)
    _, vectors = np.linalg.eigh((own - mean).T @ (own - mean))
    directions = vectors[:, ::-1][:, :rank].T
    reduced = (own - mean) @ directions.T
    centres, second = two_means(reduced, rng)
    share = float(np.mean(second))
    smaller_first = centres[::-1] if share <= 0.5 else centres
    separation = _separation(reduced, smaller_first, second if share <= 0.5 else ~second)
    return _Split(mean, directions, smaller_first, separation * (1 - min(share, 1 - share)))


def two_means(points: Float64s, rng: np.random.Generator) -> tuple[Float64s, npt.NDArray[np.bool_]]:
    """Centres (2, r) and which of points (n, r) belong to the second: Lloyd's steps, the best of 8 starts.

    Source: Lloyd 1982; starts by Arthur & Vassilvitskii 2007.
    """
    fits = [_lloyd(points, _start(points, rng)) for _ in range(RESTARTS)]
    _, centres, member = min(fits, key=lambda fit: fit[0])
    return centres, member


def _start(points: Float64s, rng: np.random.Generator) -> Float64s:
    first = points[rng.integers(len(points))]
    squared = np.square(points - first).sum(axis=1)
    total = squared.sum()
    second = points[rng.choice(len(points), p=squared / total)] if total > 0 else first
    return np.stack([first, second])


def _lloyd(points: Float64s, centres: Float64s) -> tuple[float, Float64s, npt.NDArray[np.bool_]]:
    member = _second(points, centres)
    for _ in range(STEPS):
        if not 0 < np.count_nonzero(member) < len(points):
            break
        centres = np.stack([points[~member].mean(axis=0), points[member].mean(axis=0)])
        moved = _second(points, centres)
        if (moved == member).all():
            break
        member = moved
    return float(np.square(points - centres[member.astype(np.intp)]).sum()), centres, member


def _second(points: Float64s, centres: Float64s) -> npt.NDArray[np.bool_]:
    return np.asarray(_distance(points, centres[1]) < _distance(points, centres[0]), dtype=np.bool_)


def _separation(points: Float64s, centres: Float64s, member: npt.NDArray[np.bool_]) -> float:
    """Mean silhouette, by distances to centres; 0 where all points are one."""
    first, second = (_distance(points, centre) for centre in centres)
    return max(0.0, float(np.where(member, 1, -1) @ _belonging(first, second)) / len(points))


def _belonging(smaller: Float64s, larger: Float64s) -> Float64s:
    """In [-1, 1]: 1 at the centre of the smaller cluster, -1 at that of the larger."""
    return np.asarray((larger - smaller) / np.maximum(np.maximum(smaller, larger), 1e-12), dtype=np.float64)


def _distance(points: Float64s, centres: Float64s) -> Float64s:
    return np.asarray(np.sqrt(np.square(points - centres).sum(axis=1)), dtype=np.float64)
