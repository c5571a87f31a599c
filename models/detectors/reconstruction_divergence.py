"""How far a classifier's answer moves when an image is replaced by its reconstruction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SEES = (
    "Perturbations made against this classifier or one like it, where the autoencoder undoes them: "
    "the answer changes with the reconstruction."
)
BLIND_TO = (
    "Poison whose reconstruction is answered alike: wrong labels, triggers that survive the autoencoder or that the "
    "classifier does not know, perturbations against an unlike classifier. Poor reconstructions of clean images alarm."
)

Floats = npt.NDArray[np.floating]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]


def kl_divergence(logits: Floats, reconstructed: Floats, *, temperature: float = 1.0) -> Float32s:
    """KL(f(x) ‖ f(AE(x))) in nats, softmax at `temperature`.

    logits, reconstructed: (n, c), of the images and of their reconstructions. Returns (n,), ≥ 0.
    Raises ValueError where shapes differ, a logit is not finite, or temperature ≤ 0.
    Source: Badjie et al. 2023, section 3; Meng & Chen 2017 (MagNet), section 4.2.
    """
    p, q = _log_softmax_pair(logits, reconstructed, temperature)
    return _kl(p, q).astype(np.float32)


def jensen_shannon(logits: Floats, reconstructed: Floats, *, temperature: float = 10.0) -> Float32s:
    """½ KL(p ‖ m) + ½ KL(q ‖ m), m = ½ (p + q), p and q softmax at `temperature`; in nats, in [0, log 2].

    logits, reconstructed: (n, c). Returns (n,). A high temperature tells apart answers that are both certain.
    Raises ValueError as `kl_divergence` does. Source: Meng & Chen 2017 (MagNet), section 4.2, T = 10 and 40.
    """
    p, q = _log_softmax_pair(logits, reconstructed, temperature)
    middle = np.logaddexp(p, q) - np.log(2)
    return np.clip((_kl(p, middle) + _kl(q, middle)) / 2, 0, np.log(2)).astype(np.float32)


def _log_softmax_pair(logits: Floats, reconstructed: Floats, temperature: float) -> tuple[Float64s, Float64s]:
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    if logits.shape != reconstructed.shape or logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must have one shape (n, classes), not {logits.shape} and {reconstructed.shape}")
    if not (np.isfinite(logits).all() and np.isfinite(reconstructed).all()):
        raise ValueError("logits must be finite numbers")
    return _log_softmax(logits, temperature), _log_softmax(reconstructed, temperature)


def _log_softmax(logits: Floats, temperature: float) -> Float64s:
    """With the largest term kept out of the sum, so that log p of a class that is all but certain is not lost."""
    z = np.ascontiguousarray(logits, dtype=np.float64) / temperature
    rows, best = np.arange(len(z)), z.argmax(axis=1)
    shifted = z - z[rows, best][:, None]
    rest = np.exp(shifted)
    rest[rows, best] = 0
    return np.asarray(shifted - np.log1p(rest.sum(axis=1))[:, None], dtype=np.float64)


def _kl(log_p: Float64s, log_q: Float64s) -> Float64s:
    """Σ p log(p/q) − p + q, which is the same sum where p and q each add up to 1, and has no negative term to cancel.

    Answers that are both certain differ by less than float64 resolves in the textbook sum; here they stay apart.
    """
    p, ratio = np.exp(log_p), log_q - log_p
    near = np.abs(ratio) < 1
    small = np.where(near, ratio, 0)
    terms = np.where(near, p * (np.expm1(small) - small), np.exp(log_q) - p - p * ratio)
    divergence: Float64s = np.maximum(terms, 0).sum(axis=1)
    return divergence
