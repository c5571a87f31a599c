"""Probabilities that mean what they say: one temperature fitted on held-out images, and how well it makes them hold.

Numpy only. n images, c classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.calibration import Float64s, Floats

BINS = 15
COLDEST, HOTTEST = 0.05, 20.0
HALVINGS = 60
FLOOR = 1e-12
"""Probabilities under it count as it: float32 softmaxes are 0 where they are merely small."""

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reliability:
    """Images by the probability of their answer, in equal steps: how many, their mean probability, how many right.

    ece: the mean over images of |share right - mean probability| of their bin. Source: Guo et al. 2017, section 2.
    """

    counts: list[int]
    confidence: list[float]
    accuracy: list[float]
    ece: float

    def to_json(self) -> dict[str, Any]:
        return {"counts": self.counts, "confidence": self.confidence, "accuracy": self.accuracy, "ece": self.ece}


def at_temperature(probabilities: Floats, temperature: float) -> Float64s:
    """softmax(log p / τ), (n, c): above 1 nearer to even, below 1 further from it; the order of classes stays.

    The numbers are the same to the last bit whatever the other images are. At τ = 1 they are returned as they are.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if temperature == 1.0:
        return p
    powers = np.exp((_logs(p) - _logs(p.max(axis=1, keepdims=True))) / temperature)
    scaled: Float64s = powers / powers.sum(axis=1, keepdims=True)
    return scaled


def fit_temperature(probabilities: Floats, labels: Labels) -> float:
    """The τ in [0.05, 20] at which the labels are likeliest.

    probabilities: (n, c), n ≥ 1; labels: (n,). The mean negative log likelihood is convex in 1/τ: bisection finds it.
    Raises ValueError where the arrays do not fit. Source: Guo et al. 2017, section 4.2.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or labels.shape != p.shape[:1] or not len(p):
        raise ValueError(f"want labels of {p.shape[:1]} images and at least one, not {labels.shape}")
    logs = _logs(p)
    on_label = logs[np.arange(len(p)), labels]
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(HALVINGS):
        inverse = (low + high) / 2
        slope = float(((at_temperature(p, 1 / inverse) * logs).sum(axis=1) - on_label).mean())
        low, high = (low, inverse) if slope > 0 else (inverse, high)
    return float(2 / (low + high))


def crossed(probabilities: Floats, labels: Labels, *, seed: int) -> Float64s:
    """Each half of the images at the temperature that the other half fits, (n, c): nobody is judged by himself."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    scaled = np.asarray(probabilities, dtype=np.float64).copy()
    for own, other in (halves, halves[::-1]):
        if len(own) and len(other):
            scaled[own] = at_temperature(scaled[own], fit_temperature(np.asarray(probabilities)[other], labels[other]))
    return scaled


def reliability(probabilities: Floats, labels: Labels, *, bins: int = BINS) -> Reliability:
    """Of the answers argmax p. probabilities: (n, c); labels: (n,)."""
    p = np.asarray(probabilities, dtype=np.float64)
    confidence, right = p.max(axis=1), (p.argmax(axis=1) == labels).astype(np.float64)
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = np.maximum(counts, 1)
    mean_confidence = np.bincount(place, confidence, minlength=bins) / filled
    accuracy = np.bincount(place, right, minlength=bins) / filled
    ece = float((counts * np.abs(accuracy - mean_confidence)).sum() / max(len(labels), 1))
    return Reliability(counts.tolist(), mean_confidence.tolist(), accuracy.tolist(), ece)


def _logs(p: Float64s) -> Float64s:
    return np.asarray(np.log(np.maximum(p, FLOOR)))
