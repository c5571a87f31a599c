"""What a pretrained encoder's features say of labels: a classifier for each fold, taught by the others."""

from __future__ import annotations

import numpy as np

from models.detectors.encoder_loss import EncoderLoss
from models.panel.pool import FOLDS, Bools, Float32s, Labels, Pool

ROUNDS = 2
"""Of taking in the images whose label the round before confirmed."""


def cross_fit_losses(pool: Pool, taught: Bools, known: Bools) -> tuple[EncoderLoss, ...]:
    """For each fold the classifier that judges it. taught, known: bool (n,) over the pool.

    The first round learns from `taught`, each other from what the one before confirmed; all learn from `known`.
    Raises ValueError where the pool was not encoded or nothing is taught.
    """
    encoded, rows = _encodings(pool), taught | known
    for _ in range(ROUNDS):
        fitted = tuple(_fit(pool, encoded, rows, fold) for fold in range(FOLDS))
        rows = (_believed(pool, encoded, fitted) == pool.labels) | known
    return fitted


def losses(pool: Pool, taught: Bools, known: Bools) -> Float32s:
    """−log p(label) of each image of the pool, (n,), by the classifier that has not seen it."""
    encoded, found = _encodings(pool), np.empty(len(pool), np.float32)
    for fold, part in enumerate(cross_fit_losses(pool, taught, known)):
        own = pool.folds == fold
        found[own] = part.score(encoded[own], pool.labels[own])
    return found


def _encodings(pool: Pool) -> Float32s:
    if pool.encoded is None:
        raise ValueError("encoder_loss needs an encoder")
    return pool.encoded


def _fit(pool: Pool, encoded: Float32s, rows: Bools, fold: int) -> EncoderLoss:
    others = rows & (pool.folds != fold)
    rows = others if others.any() else rows
    return EncoderLoss.fit(encoded[rows], pool.labels[rows], num_classes=pool.num_classes)


def _believed(pool: Pool, encoded: Float32s, fitted: tuple[EncoderLoss, ...]) -> Labels:
    found = np.empty(len(pool), np.int64)
    for fold, part in enumerate(fitted):
        own = pool.folds == fold
        found[own] = part.log_probabilities(encoded[own]).argmax(axis=1)
    return found
