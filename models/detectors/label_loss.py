"""How badly, or how suspiciously well, an image's label fits what a classifier sees in it.

Logits that are log probabilities do as well as any: nothing here depends on a constant added to a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

SEES = (
    "Labels that a classifier disbelieves: flips, and triggers that the classifier has not learnt. "
    "Its lower tail sees labels believed far more firmly than is usual in their class, as a learnt trigger makes them."
)
BLIND_TO = (
    "Poison with a fitting label (clean-label attacks, perturbations that change no answer), and in the upper tail "
    "every trigger that the classifier was trained on: such poison has the lowest loss of all."
)

Floats = npt.NDArray[np.floating]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

SMALLEST_PROBABILITY = 1e-38
FEWEST_OF_A_CLASS = 10
NORMAL_MAD = 1.4826


def as_logits(probabilities: Floats) -> Float64s:
    """log p of probabilities (n, c), with 0 raised to the smallest normal float32."""
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), SMALLEST_PROBABILITY))


def label_log_odds(logits: Floats, labels: Labels) -> Float64s:
    """log p(label) − log(1 − p(label)) in nats, exact where the probability rounds to 0 or 1.

    logits: (n, c), c ≥ 2; labels: (n,). Raises ValueError where they do not fit or a logit is not finite.
    """
    z = np.ascontiguousarray(logits, dtype=np.float64)
    if z.ndim != 2 or z.shape[1] < 2 or labels.shape != z.shape[:1]:
        raise ValueError(f"logits must have shape (n, classes ≥ 2) and fit the labels, not {z.shape}, {labels.shape}")
    if not np.isfinite(z).all():
        raise ValueError("logits must be finite numbers")
    if len(z) and not (labels.min() >= 0 and labels.max() < z.shape[1]):
        raise ValueError(f"labels must lie in 0 … {z.shape[1] - 1}")
    of_label = labels[:, None] == np.arange(z.shape[1])
    others = np.where(of_label, -np.inf, z)
    largest = others.max(axis=1)
    log_sum: Float64s = largest + np.log(np.exp(others - largest[:, None]).sum(axis=1))
    return np.asarray(z[np.arange(len(z)), labels] - log_sum, dtype=np.float64)


def label_loss(logits: Floats, labels: Labels) -> Float32s:
    """−log p(label | x) in nats: (n, c), (n,) to (n,). Raises ValueError as `label_log_odds` does."""
    return np.logaddexp(0, -label_log_odds(logits, labels)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class LabelOverfit:
    """The other tail: log-odds of the label above its class's, in robust standard deviations of that class.

    centre, scale: (c,), median and 1.4826 × median absolute deviation of the log-odds of each class's images.
    """

    centre: Float64s
    scale: Float64s

    @classmethod
    def fit(cls, logits: Floats, labels: Labels) -> Self:
        """logits: (m, c); labels: (m,), m ≥ 1, poison among them or not. A class of fewer than 10 takes all classes'.

        Raises ValueError as `label_log_odds` does, or where there are no images.
        """
        odds = label_log_odds(logits, labels)
        if not len(odds):
            raise ValueError("an overfit score cannot be fitted on no images")
        centre, scale = (np.full(logits.shape[1], value) for value in _centre_and_scale(odds))
        for label in np.unique(labels):
            own = odds[labels == label]
            if len(own) >= FEWEST_OF_A_CLASS:
                centre[label], scale[label] = _centre_and_scale(own)
        return cls(centre, scale)

    def score(self, logits: Floats, labels: Labels) -> Float32s:
        """(n, c), (n,) to (n,), in standard deviations. Raises ValueError as `label_log_odds` does."""
        return ((label_log_odds(logits, labels) - self.centre[labels]) / self.scale[labels]).astype(np.float32)


def _centre_and_scale(odds: Float64s) -> tuple[float, float]:
    centre = float(np.median(odds))
    return centre, max(NORMAL_MAD * float(np.median(np.abs(odds - centre))), 1e-6)
