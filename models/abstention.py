"""When the served model answers null: MC-dropout uncertainty and the detector's score as one conformal p-value.

Numpy only, so that the gateway computes it without torch. k dropout passes, n images, c classes, d features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from models.calibration import Float64s, Floats, JointTest, check_alpha, smallest_alpha

Reason = Literal["perturbed", "uncertain"]

PROFILE_SHARE = 0.25
"""Share of the calibration images that make the class profiles, where profiles are not given."""

SMALLEST_PROBABILITY = 1e-6
PRIOR_IMAGES = 1.0


class InvalidCalibration(ValueError):
    """Calibration data that no abstention can be computed from."""


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Of n images: nats (n,) of entropy, mutual information and KL(p̄ ‖ q_ĉ); mean probabilities p̄ (n, c)."""

    entropy: Float64s
    mutual_information: Float64s
    kl: Float64s
    mean_probabilities: Float64s


@dataclass(frozen=True, eq=False)
class AbstentionCalibration:
    """What clean images score. Row i of `kl_scores` (m,) and `detector_scores` (m,) are of the same image.

    profiles: (c, c), row c is q_c, the mean probabilities of class c; no entry is 0.
    """

    profiles: Float64s
    kl_scores: Float64s
    detector_scores: Float64s | None

    def __post_init__(self) -> None:
        _check_profiles(self.profiles)
        scores = [self.kl_scores] if self.detector_scores is None else [self.kl_scores, self.detector_scores]
        if any(s.shape != (self.n,) or not np.isfinite(s).all() for s in scores) or self.n == 0:
            raise InvalidCalibration("calibration scores must be finite, at least one, and as many of each kind")

    @property
    def n(self) -> int:
        """How many images calibrate."""
        return int(self.kl_scores.size)

    @property
    def smallest_alpha(self) -> float:
        """The smallest α that `decide` accepts."""
        return smallest_alpha(self.n)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able object that `from_json` makes the same numbers of, to the last bit."""
        detector = None if self.detector_scores is None else self.detector_scores.tolist()
        return {"profiles": self.profiles.tolist(), "kl_scores": self.kl_scores.tolist(), "detector_scores": detector}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raises InvalidCalibration where a part is missing or malformed."""
        try:
            detector = data["detector_scores"]
            return cls(
                np.array(data["profiles"], dtype=np.float64),
                np.array(data["kl_scores"], dtype=np.float64),
                None if detector is None else np.array(detector, dtype=np.float64),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidCalibration(f"malformed abstention calibration: {error!r}") from error

    @cached_property
    def test(self) -> JointTest:
        """Detector (where there is one) and uncertainty as one test; made once, for a gateway asks it often."""
        kinds = [self.kl_scores] if self.detector_scores is None else [self.detector_scores, self.kl_scores]
        return JointTest(np.stack(kinds, axis=1))


@dataclass(frozen=True, eq=False)
class Decision:
    """Of n images: the answer, or why there is none.

    label_index: (n,) int64, argmax of p̄ whether abstained or not. p_value: (n,), of both tests together; abstained
    where it is <= α. p_uncertain, p_perturbed: (n,), of each test alone (None without a detector): not to be compared
    with α one by one, for two tests refuse up to twice as many clean images.
    """

    label_index: npt.NDArray[np.int64]
    abstained: npt.NDArray[np.bool_]
    reason: list[Reason | None]
    p_value: Float64s
    p_uncertain: Float64s
    p_perturbed: Float64s | None
    uncertainty: Uncertainty


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
    passes = _passes(probabilities)
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
    return Uncertainty(entropy, information, _kl_to_profile(mean, profiles), mean)


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


def calibrate_abstention(
    probabilities: Floats,
    labels: npt.NDArray[np.int64],
    detector_scores: Floats | None,
    *,
    seed: int,
    profiles: Floats | None = None,
) -> AbstentionCalibration:
    """Calibrate on held-out clean images that neither student nor detector was fitted on.

    probabilities: (k, n, c); labels: (n,) int64; detector_scores: (n,), or None where there is no detector.
    profiles: (c, c) made from other images (of training, say). Without them a random quarter of the images, drawn from
    `seed`, makes the profiles and the rest calibrates: an image that shapes its own profile lies closer to it than a
    new one, and α would not hold.
    Raises InvalidCalibration where the arrays do not fit together or fewer than two images are given.
    """
    passes = _passes(probabilities)
    n = passes.shape[1]
    if n < 2 or labels.shape != (n,) or (detector_scores is not None and np.shape(detector_scores) != (n,)):
        raise InvalidCalibration(f"want two or more images with labels and scores, not {n}, {labels.shape}")
    mean = passes.mean(axis=0)
    rows = np.arange(n)
    if profiles is None:
        order = np.random.Generator(np.random.PCG64(seed)).permutation(n)
        shaping = round(PROFILE_SHARE * n)
        profiles, rows = class_profiles(mean[order[:shaping]], labels[order[:shaping]]), np.sort(order[shaping:])
    return AbstentionCalibration(
        profiles=np.asarray(profiles, dtype=np.float64),
        kl_scores=_kl_to_profile(mean[rows], np.asarray(profiles, dtype=np.float64)),
        detector_scores=None if detector_scores is None else np.asarray(detector_scores, dtype=np.float64)[rows],
    )


def decide(
    probabilities: Floats, detector_scores: Floats | None, calibration: AbstentionCalibration, *, alpha: float
) -> Decision:
    """Answer or abstain; clean images exchangeable with the calibration are refused with probability at most `alpha`.

    probabilities: (k, n, c); detector_scores: (n,), given exactly where the calibration has them.
    An image's decision does not depend on the others in the batch.
    Raises ValueError where alpha is outside (0, 1) or the arrays do not fit, AlphaTooSmall under 1/(m + 1).
    """
    return decide_on(uncertainty(probabilities, calibration.profiles), detector_scores, calibration, alpha=alpha)


def decide_on(
    found: Uncertainty, detector_scores: Floats | None, calibration: AbstentionCalibration, *, alpha: float
) -> Decision:
    """As `decide`, on uncertainty that is computed already against the calibration's profiles."""
    check_alpha(alpha, calibration.n)
    if (detector_scores is None) != (calibration.detector_scores is None):
        raise ValueError("detector scores must be given exactly where the calibration has them")
    scores = [found.kl] if detector_scores is None else [np.asarray(detector_scores, dtype=np.float64), found.kl]
    if any(kind.shape != found.kl.shape for kind in scores):
        raise ValueError(f"want {found.kl.size} detector scores, not shape {scores[0].shape}")
    p_value, p_each = calibration.test.p_values(np.stack(scores, axis=1))
    p_uncertain, p_perturbed = p_each[:, -1], None if detector_scores is None else p_each[:, 0]
    abstained = p_value <= alpha
    perturbed = np.zeros_like(abstained) if p_perturbed is None else p_perturbed <= p_uncertain
    return Decision(
        label_index=found.mean_probabilities.argmax(axis=1).astype(np.int64),
        abstained=abstained,
        reason=[_reason(bool(a), bool(p)) for a, p in zip(abstained, perturbed, strict=True)],
        p_value=p_value,
        p_uncertain=p_uncertain,
        p_perturbed=p_perturbed,
        uncertainty=found,
    )


def _reason(abstained: bool, perturbed: bool) -> Reason | None:
    if not abstained:
        return None
    return "perturbed" if perturbed else "uncertain"


def _passes(probabilities: Floats) -> Float64s:
    passes = np.asarray(probabilities, dtype=np.float64)
    if passes.ndim != 3 or 0 in (passes.shape[0], passes.shape[2]):
        raise ValueError(f"probabilities must have shape (passes, n, classes), not {passes.shape}")
    return passes


def _entropy(probabilities: Float64s) -> Float64s:
    """Over the last axis, in nats; 0 log 0 = 0."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    entropy: Float64s = -(probabilities * logs).sum(axis=-1)
    return entropy


def _kl_to_profile(mean: Float64s, profiles: Floats) -> Float64s:
    """KL(p̄ ‖ q_ĉ) of each row of p̄ (n, c), in nats."""
    cross = -(mean * np.log(profiles[mean.argmax(axis=1)])).sum(axis=-1)
    kl: Float64s = cross - _entropy(mean)
    return kl


def _check_profiles(profiles: Float64s) -> None:
    if profiles.ndim != 2 or profiles.shape[0] != profiles.shape[1] or not profiles.size:
        raise InvalidCalibration(f"profiles must have shape (c, c), not {profiles.shape}")
    if not (profiles > 0).all() or not np.allclose(profiles.sum(axis=1), 1):
        raise InvalidCalibration("the rows of profiles must be positive and sum to 1")
