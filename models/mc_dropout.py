"""MC dropout in numpy, for the gateway: masks made from a seed, and what the passes under them say of an image.

k dropout passes, n images, c classes, d features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.calibration import Float64s, Floats

SMALLEST_PROBABILITY = 1e-6
PRIOR_IMAGES = 1.0


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Of n images: nats (n,) of entropy, mutual information and KL(p̄ ‖ q_ĉ); mean probabilities p̄ (n, c)."""

    entropy: Float64s
    mutual_information: Float64s
    kl: Float64s
    mean_probabilities: Float64s


def dropout_masks(passes: int, dim: int, dropout: float, seed: int) -> npt.NDArray[np.float32]:
    """Inverted-dropout masks (passes, dim): 0 with probability `dropout`, else 1/(1 - dropout).

    Made from the raw stream of PCG64, which numpy keeps the same across versions and machines.
    Raises ValueError unless passes, dim ≥ 1 and 0 <= dropout < 1.
    """
    if passes < 1 or dim < 1 or not 0 <= dropout < 1:
        raise ValueError(f"no masks for {passes} passes, {dim} features, dropout {dropout}")
    uniform = (np.random.PCG64(seed).random_raw(passes * dim) >> np.uint64(11)) * 2.0**-53
    kept = (uniform >= dropout).reshape(passes, dim)
    return kept.astype(np.float32) * np.float32(1 / (1 - dropout))


def uncertainty(probabilities: Floats, profiles: Floats) -> Uncertainty:
    """Entropy of p̄, mutual information of label and dropout mask, and KL(p̄ ‖ q_ĉ) with ĉ = argmax p̄.

    probabilities: (k, n, c), softmax at T = 1 of each dropout pass; profiles: (c, c) as from `class_profiles`.
    Raises ValueError where the shapes do not fit.
    Source: Gal & Ghahramani 2016 (MC dropout), Houlsby et al. 2011 (mutual information).
    """
    passes = as_passes(probabilities)
    return uncertainty_of(passes.mean(axis=0), _entropy(passes).mean(axis=0), profiles)


def uncertainty_of(mean_probabilities: Floats, pass_entropy: Floats, profiles: Floats) -> Uncertainty:
    """As `uncertainty`, from what is left of the passes: p̄ (n, c) and the mean of their entropies (n,), in nats.

    An image's numbers are the same to the last bit whatever the others are. Raises ValueError where shapes do not fit.
    """
    mean = np.asarray(mean_probabilities, dtype=np.float64)
    if mean.ndim != 2 or profiles.shape != (mean.shape[1],) * 2 or np.shape(pass_entropy) != (len(mean),):
        raise ValueError(f"probabilities {mean.shape} do not fit profiles of shape {profiles.shape} or the entropies")
    entropy = _entropy(mean)
    information = np.maximum(entropy - np.asarray(pass_entropy, dtype=np.float64), 0)
    return Uncertainty(entropy, information, _cross_entropy(mean, profiles) - entropy, mean)


def class_profiles(mean_probabilities: Floats, labels: npt.NDArray[np.int64]) -> Float64s:
    """q_c, the mean p̄ over images of class c, as row c of (c, c); rows sum to 1 and no entry is 0.

    mean_probabilities: p̄ (n, c), n ≥ 0; labels: (n,).
    Each class has one image more than was seen: what the average class looks like (as much on its label as all images
    have together, the rest spread evenly), so that few images, or none, still make a sensible profile.
    Raises ValueError where labels do not fit.
    """
    mean = np.asarray(mean_probabilities, dtype=np.float64)
    n, classes = mean.shape
    if labels.shape != (n,) or (n > 0 and not 0 <= labels.min() <= labels.max() < classes):
        raise ValueError(f"want {n} labels under {classes}")
    members = np.eye(classes)[labels]  # (n, c)
    on_label = (float((mean * members).sum()) + 0.5) / (n + 1)
    prior = np.full((classes, classes), (1 - on_label) / max(classes - 1, 1))
    np.fill_diagonal(prior, on_label)
    profiles = (members.T @ mean + PRIOR_IMAGES * prior) / (members.sum(axis=0)[:, None] + PRIOR_IMAGES)
    profiles = np.maximum(profiles, SMALLEST_PROBABILITY)
    smoothed: Float64s = profiles / profiles.sum(axis=1, keepdims=True)
    return smoothed


def as_passes(probabilities: Floats) -> Float64s:
    passes = np.asarray(probabilities, dtype=np.float64)
    if passes.ndim != 3 or 0 in (passes.shape[0], passes.shape[2]):
        raise ValueError(f"probabilities must have shape (passes, n, classes), not {passes.shape}")
    return passes


def _entropy(probabilities: Float64s) -> Float64s:
    """Over the last axis, in nats; 0 log 0 = 0."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    entropy: Float64s = -(probabilities * logs).sum(axis=-1)
    return entropy


def kl_to_profile(mean: Float64s, profiles: Floats) -> Float64s:
    """KL(p̄ ‖ q_ĉ) of each row of p̄ (n, c), in nats."""
    return np.asarray(_cross_entropy(mean, profiles) - _entropy(mean))


def _cross_entropy(mean: Float64s, profiles: Floats) -> Float64s:
    cross: Float64s = -(mean * np.log(profiles[mean.argmax(axis=1)])).sum(axis=-1)
    return cross
