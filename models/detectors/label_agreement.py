"""Whether the images most like an image, in a classifier's features, carry its label."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt

SEES = (
    "Images whose neighbours in feature space carry another label: flips, and triggers where the features come from "
    "a classifier that has not learnt them."
)
BLIND_TO = (
    "Poison that lies among images of its own label: clean-label attacks, triggers that the features have learnt, and "
    "wrong labels so many in one place that they are each other's neighbours."
)

Floats = npt.NDArray[np.floating]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]

NOT_INDEXED = -1
"""The row of a scored image that is not in the index."""

QUERIES_AT_ONCE = 256
FOLD = 32
SPARE = 8
SQUARED_DIAMETER = 4.0
BANDWIDTH = 0.5
"""Of the kernel, in squared distances to the k-th neighbour."""


@dataclass(frozen=True, eq=False)
class LabelAgreement:
    """Labelled features of a bounded sample, sorted by label, on the unit sphere.

    features: (m, d); labels: (m,), ascending; rows: (m,), by which a scored image finds itself; k ≥ 1.
    """

    features: Float32s
    labels: Labels
    rows: Rows
    k: int

    @classmethod
    def fit(cls, features: Floats, labels: Labels, k: int = 10, *, rows: Rows | None = None) -> Self:
        """features: (m, d); labels: (m,); rows: (m,), any distinct numbers ≥ 0, by default 0 … m − 1.

        Memory and time of scoring grow with m. Raises ValueError where shapes do not fit, a value is not finite,
        k < 1 or m ≤ k.
        """
        unit = _on_sphere(features)
        own = np.arange(len(unit)) if rows is None else rows
        if labels.shape != (len(unit),) or own.shape != labels.shape:
            raise ValueError(f"{len(unit)} features do not fit {labels.shape} labels and {own.shape} rows")
        if not 1 <= k < len(unit):
            raise ValueError(f"k must lie between 1 and {len(unit) - 1}, not {k}")
        order = np.argsort(labels, kind="stable")
        return cls(unit[order], labels[order].astype(np.int64), own[order].astype(np.int64), k)

    def score(self, features: Floats, labels: Labels, *, rows: Rows | None = None) -> Float32s:
        """log Σ_other − log Σ_own, in nats, of the kernel exp(−‖x − x_i‖² / (½ r²)) over neighbours.

        features: (n, d); labels: (n,); rows: (n,), an image that has its row in the index is no neighbour of its own;
        -1, the default, for one that is not in it. Returns (n,). Each sum runs over the k nearest of its kind and r is
        the distance to the k-th nearest of any: a vote among the k nearest by closeness, which goes on being decided
        by the further ones where it is unanimous. Above 0 the other labels have the majority.
        Raises ValueError where shapes do not fit or a value is not finite.
        Source: Papernot & McDaniel 2018 (deep k-nearest neighbours); Peri et al. 2020. Deviation: one layer, a kernel.
        """
        unit = _on_sphere(features)
        own = np.full(len(unit), NOT_INDEXED) if rows is None else rows
        if labels.shape != (len(unit),) or own.shape != labels.shape or unit.shape[1] != self.features.shape[1]:
            raise ValueError(f"features {unit.shape} do not fit {labels.shape} labels, {own.shape} rows, or the index")
        columns = self._columns(own)
        scores = np.empty(len(unit), dtype=np.float32)
        order = np.argsort(labels, kind="stable")
        for block in _blocks_of_one_label(labels[order]):
            queries = order[block]
            scores[queries] = self._score_block(unit[queries], int(labels[queries[0]]), columns[queries])
        return scores

    def _columns(self, rows: Rows) -> Rows:
        """Where each of `rows` is in the index; -1 where it is not."""
        order = np.argsort(self.rows, kind="stable")
        place = order[np.minimum(np.searchsorted(self.rows, rows, sorter=order), len(order) - 1)]
        return np.where(self.rows[place] == rows, place, NOT_INDEXED)

    def _score_block(self, queries: Float32s, label: int, columns: Rows) -> Float32s:
        similarity = queries @ self.features.T
        indexed = np.flatnonzero(columns >= 0)
        similarity[indexed, columns[indexed]] = -np.inf
        first, last = np.searchsorted(self.labels, [label, label + 1])
        own = self._nearest(queries, similarity[:, first:last], int(first))
        similarity[:, first:last] = -np.inf
        other = self._nearest(queries, similarity, 0)
        radius = np.sort(np.concatenate([own, other], axis=1), axis=1)[:, self.k - 1 : self.k]
        width = np.maximum(BANDWIDTH * radius, 1e-9)
        return (_log_sum_exp(-other / width) - _log_sum_exp(-own / width)).astype(np.float32)

    def _nearest(self, queries: Float32s, similarity: Float32s, offset: int) -> Float64s:
        """Squared distances (b, k), ascending, to the nearest of the columns; 4, the largest, where there are fewer.

        A matrix product rounds by its shape, so it only nominates; the distances are computed pair by pair, and the
        score of an image does not depend on what it is scored with.
        """
        nominated = _largest(similarity, min(self.k + SPARE, similarity.shape[1]))
        allowed = np.isfinite(np.take_along_axis(similarity, nominated, axis=1))
        difference = (queries[:, None] - self.features[offset + nominated]).astype(np.float64)
        squared = np.where(allowed, np.square(difference).sum(axis=2), SQUARED_DIAMETER)
        missing = np.full((len(queries), max(0, self.k - squared.shape[1])), SQUARED_DIAMETER)
        nearest: Float64s = np.sort(np.concatenate([squared, missing], axis=1), axis=1)[:, : self.k]
        return nearest


def _blocks_of_one_label(sorted_labels: Labels) -> list[slice]:
    edges = np.flatnonzero(np.diff(sorted_labels)) + 1
    bounds = [0, *edges.tolist(), len(sorted_labels)]
    return [
        slice(start, min(start + QUERIES_AT_ONCE, end))
        for begin, end in pairwise(bounds)
        for start in range(begin, end, QUERIES_AT_ONCE)
    ]


def _largest(values: Float32s, count: int) -> npt.NDArray[np.intp]:
    """Columns (b, count) of the largest of each row, in no order.

    Columns are folded 32 to one by their maximum: the largest `count` lie within the `count` folds of largest maximum,
    and a partition of these few costs a tenth of one of all.
    """
    folds = values.shape[1] // FOLD
    if count == values.shape[1]:
        return np.broadcast_to(np.arange(count), values.shape)
    if count >= folds:
        return np.argpartition(values, values.shape[1] - count, axis=1)[:, values.shape[1] - count :]
    folded = values[:, : folds * FOLD].reshape(len(values), FOLD, folds).max(axis=1)
    best = np.argpartition(folded, folds - count, axis=1)[:, folds - count :]
    inside = (best[:, None, :] + folds * np.arange(FOLD)[None, :, None]).reshape(len(values), -1)
    beyond = np.broadcast_to(np.arange(folds * FOLD, values.shape[1]), (len(values), values.shape[1] - folds * FOLD))
    candidates = np.concatenate([inside, beyond], axis=1)
    found = np.take_along_axis(values, candidates, axis=1)
    kept = np.argpartition(found, found.shape[1] - count, axis=1)[:, found.shape[1] - count :]
    return np.take_along_axis(candidates, kept, axis=1)


def _log_sum_exp(values: Float64s) -> Float64s:
    """Over the last axis of (b, k)."""
    largest = values.max(axis=1)
    total: Float64s = largest + np.log(np.exp(values - largest[:, None]).sum(axis=1))
    return total


def _on_sphere(features: Floats) -> Float32s:
    unit = np.ascontiguousarray(features, dtype=np.float32)
    if unit.ndim != 2 or not np.isfinite(unit).all():
        raise ValueError(f"features must be finite numbers of shape (n, d), not {unit.shape}")
    norm = np.sqrt(np.square(unit).sum(axis=1, keepdims=True))
    return np.asarray(unit / np.maximum(norm, np.float32(1e-12)), dtype=np.float32)
