"""Each score against a closed form or a plain computation, on what it shall find, and shard by shard."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from models.detectors import (
    activation_clustering,
    duplicates,
    label_agreement,
    label_loss,
    poison_gain,
    reconstruction_divergence,
    spectral_signature,
)
from models.detectors.activation_clustering import ActivationClustering, two_means
from models.detectors.duplicates import DuplicateIndex, perceptual_hashes
from models.detectors.label_agreement import LabelAgreement
from models.detectors.label_loss import LabelOverfit, as_logits, label_log_odds
from models.detectors.reconstruction_divergence import jensen_shannon, kl_divergence
from models.detectors.spectral_signature import SpectralSignature

steady = settings(deadline=None, derandomize=True, database=None, max_examples=25)

CLASSES = 5
Shard = tuple[np.ndarray, np.ndarray]


def clusters(seed: int, n: int = 400, d: int = 24) -> Shard:
    """Features (n, d) around a centre of each class, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    features = 3 * rng.standard_normal((CLASSES, d))[labels] + rng.standard_normal((n, d))
    return features.astype(np.float32), labels


def pictures(seed: int, n: int = 60, side: int = 24, channels: int = 3) -> np.ndarray:
    """Smooth random uint8 images, all different."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 8, 8, channels), dtype=np.uint8)
    return np.stack([resized(image, side) for image in coarse])


def resized(image: np.ndarray, side: int) -> np.ndarray:
    picture = Image.fromarray(image.squeeze()).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture).reshape(side, side, -1)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    packed = io.BytesIO()
    Image.fromarray(image.squeeze()).save(packed, "jpeg", quality=quality)
    return np.asarray(Image.open(packed)).reshape(image.shape)


def scorers() -> dict[str, tuple[Callable[..., np.ndarray], tuple[np.ndarray, ...]]]:
    """Every score as a function of arrays with n rows each, fitted on other data than it scores."""
    features, labels = clusters(0)
    shard, shard_labels = clusters(1, 90)
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 5, (90, CLASSES)).astype(np.float32)
    hashes = perceptual_hashes(pictures(3, 4))[rng.integers(0, 4, 90)]
    hashes[:, 0] ^= np.uint64(1) << rng.integers(0, 64, 90).astype(np.uint64)
    agreement = LabelAgreement.fit(features, labels, 7)
    spectral = SpectralSignature.fit(features, labels, num_classes=CLASSES)
    clustering = ActivationClustering.fit(features, labels, num_classes=CLASSES, rng=rng)
    overfit = LabelOverfit.fit(logits, shard_labels)
    index = DuplicateIndex.fit(hashes, shard_labels)
    return {
        "loss": (label_loss.label_loss, (logits, shard_labels)),
        "overfit": (overfit.score, (logits, shard_labels)),
        "agreement": (agreement.score, (shard, shard_labels)),
        "spectral": (spectral.score, (shard, shard_labels)),
        "clustering": (clustering.score, (shard, shard_labels)),
        "kl": (kl_divergence, (logits, logits[::-1].copy())),
        "jensen-shannon": (jensen_shannon, (logits, logits[::-1].copy())),
        "duplicates": (lambda h, y: index.score(h, y, indexed=True), (hashes, shard_labels)),
    }


SCORERS = scorers()


@pytest.mark.parametrize("name", SCORERS)
@settings(steady, max_examples=12)
@given(st.lists(st.integers(0, 90), max_size=6).map(sorted), st.randoms(use_true_random=False))
def test_a_score_does_not_depend_on_what_it_is_scored_with(name: str, cuts: list[int], shuffle: object) -> None:
    score, arrays = SCORERS[name]
    whole = score(*arrays)
    assert whole.dtype == np.float32 and whole.shape == (90,) and np.isfinite(whole).all()
    assert len(np.unique(whole)) > 10, "a score that says the same of all images tells nothing"
    order = np.random.default_rng(shuffle.randrange(2**32)).permutation(90)  # type: ignore[attr-defined]
    pieces = [score(*(a[rows] for a in arrays)) for rows in np.split(order, cuts)]
    assert np.array_equal(np.concatenate(pieces), whole[order])


@pytest.mark.parametrize(
    "module",
    [
        activation_clustering,
        duplicates,
        label_agreement,
        label_loss,
        reconstruction_divergence,
        spectral_signature,
    ],
)
def test_every_score_says_what_it_sees_and_what_not(module: object) -> None:
    for said in (module.SEES, module.BLIND_TO):  # type: ignore[attr-defined]
        assert said.endswith(".") and 40 < len(said) < 400


# ---- label loss


@steady
@given(st.integers(0, 10**6))
def test_label_loss_is_the_negative_log_probability(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 8, (20, CLASSES)), rng.integers(0, CLASSES, 20)
    expected = -log_softmax(logits, axis=1)[np.arange(20), labels]
    assert label_loss.label_loss(logits, labels) == pytest.approx(expected, rel=1e-5)
    assert label_loss.label_loss(as_logits(softmax(logits, axis=1)), labels) == pytest.approx(expected, rel=1e-5)
    probability = np.exp(-expected)
    middling = (probability > 1e-6) & (probability < 1 - 1e-6)
    odds = np.log(probability / (1 - probability))[middling]
    assert label_log_odds(logits, labels)[middling] == pytest.approx(odds, rel=1e-6, abs=1e-6)


def test_certain_labels_stay_apart_where_their_probability_rounds_to_one() -> None:
    logits = np.array([[40.0, 0, 0], [50.0, 0, 0], [60.0, 0, 0]])
    losses = label_loss.label_loss(logits, np.zeros(3, dtype=np.int64))
    assert losses == pytest.approx(2 * np.exp([-40.0, -50.0, -60.0]), rel=1e-5, abs=0)


def test_a_probability_of_zero_is_a_large_finite_loss() -> None:
    logits = as_logits(np.array([[0.0, 1.0]]))
    assert 80 < float(label_loss.label_loss(logits, np.array([0]))[0]) < 100


def test_gain_is_the_difference_of_the_labels_odds() -> None:
    believing, checked = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    gain = poison_gain.poison_gain(np.log(believing), np.log(checked), np.array([0, 1]))
    np.testing.assert_allclose(gain, np.log([9 * 3, 4]), rtol=1e-6)


def test_a_learnt_trigger_gains_more_than_a_hard_image_that_is_got_right() -> None:
    """Both are believed with probabilities that round to one, and doubted alike by whoever has met no poison."""
    believing = log_softmax(np.array([[26.0, 0, 0], [18.0, 0, 0]]), axis=1).astype(np.float32)
    checked = log_softmax(np.array([[-9.0, 0, 0], [-9.5, 0, 0]]), axis=1).astype(np.float32)
    learnt, hard = poison_gain.poison_gain(believing, checked, np.array([0, 0]))
    assert learnt > hard + 5


def test_gain_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="same images"):
        poison_gain.poison_gain(np.zeros((3, 2)), np.zeros((2, 2)), np.zeros(3, int))


def test_overfit_is_in_deviations_of_the_labels_own_class() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 4000)
    odds = np.where(labels == 0, rng.normal(2, 1, 8000), rng.normal(9, 3, 8000))
    logits = np.stack([np.where(labels == 0, odds, 0), np.where(labels == 1, odds, 0)], axis=1)
    overfit = LabelOverfit.fit(logits, labels)
    assert overfit.centre == pytest.approx([2, 9], abs=0.25) and overfit.scale == pytest.approx([1, 3], rel=0.1)
    scored = overfit.score(np.array([[7.0, 0], [0, 7.0]]), np.array([0, 1]))
    assert scored == pytest.approx([5, -2 / 3], abs=0.5)


def test_a_class_too_small_for_its_own_overfit_scale_takes_that_of_all() -> None:
    logits = np.random.default_rng(0).normal(0, 1, (100, 3))
    labels = np.where(np.arange(100) < 3, 2, np.arange(100) % 2)
    overfit = LabelOverfit.fit(logits, labels)
    assert overfit.centre[2] == np.median(label_log_odds(logits, labels))


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((2, 3)), [0]),
        (np.zeros((2, 1)), [0, 0]),
        (np.array([[np.nan, 0]]), [0]),
        (np.zeros((1, 3)), [3]),
        (np.zeros((1, 3)), [-1]),
    ],
)
def test_label_loss_refuses_what_does_not_fit(logits: np.ndarray, labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"logits|labels"):
        label_loss.label_loss(logits, np.array(labels))


# ---- deep k-nearest neighbours


def plain_agreement(index: Shard, k: int, shard: Shard, rows: np.ndarray) -> list[float]:
    """The formula of the docstring, pair by pair."""
    unit = [features / np.linalg.norm(features, axis=1, keepdims=True) for features, _ in (index, shard)]
    scores = []
    for x, label, row in zip(unit[1].astype(np.float64), shard[1], rows, strict=True):
        squared = np.square(unit[0] - x).sum(axis=1)
        allowed = np.arange(len(squared)) != row
        own, other = (np.sort(squared[allowed & ((index[1] == label) == same)])[:k] for same in (True, False))
        own, other = (np.concatenate([d, np.full(k - len(d), 4.0)]) for d in (own, other))
        width = label_agreement.BANDWIDTH * np.sort(np.concatenate([own, other]))[k - 1]
        scores.append(float(np.log(np.exp(-other / width).sum()) - np.log(np.exp(-own / width).sum())))
    return scores


@settings(steady, max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([20, 130, 900]))
def test_label_agreement_is_its_formula(seed: int, k: int, size: int) -> None:
    index, shard = clusters(seed, size, 6), clusters(seed + 1, 30, 6)
    shard = (np.concatenate([shard[0], index[0][:10]]), np.concatenate([shard[1], (index[1][:10] + 1) % CLASSES]))
    rows = np.concatenate([np.full(30, -1), np.arange(10)])
    scored = LabelAgreement.fit(*index, k).score(*shard, rows=rows)
    assert scored == pytest.approx(plain_agreement(index, k, shard, rows), rel=1e-3, abs=1e-3)


def test_an_image_in_the_index_does_not_vouch_for_itself() -> None:
    features, labels = clusters(0)
    flipped = labels.copy()
    flipped[:20] = (labels[:20] + 1) % CLASSES
    own_ids = 7 + 3 * np.arange(len(labels))
    index = LabelAgreement.fit(features, flipped, 1, rows=own_ids)
    vouched, alone = index.score(features, flipped)[:20], index.score(features, flipped, rows=own_ids)[:20]
    assert (vouched < 0).all()
    assert (alone > 0).mean() > 0.8  # the others' nearest was flipped alike


def test_label_agreement_finds_flipped_digits() -> None:
    digits = load_digits()
    rng = np.random.default_rng(0)
    flipped = rng.random(len(digits.target)) < 0.04
    labels = np.where(flipped, (digits.target + rng.integers(1, 10, len(flipped))) % 10, digits.target)
    scores = LabelAgreement.fit(digits.data, labels).score(digits.data, labels, rows=np.arange(len(labels)))
    assert roc_auc_score(flipped, scores) > 0.99
    assert len(np.unique(scores)) > 0.99 * len(scores), "ties"


def test_a_label_that_the_index_lacks_is_suspicious_and_finite() -> None:
    features, labels = clusters(0)
    scores = LabelAgreement.fit(features, labels).score(features, np.full(len(labels), 99))
    assert np.isfinite(scores).all() and (scores > 0).all()


def test_copies_of_one_image_give_finite_scores() -> None:
    features, labels = np.ones((50, 4), dtype=np.float32), np.arange(50) % 2
    assert np.isfinite(LabelAgreement.fit(features, labels, 3).score(features, labels, rows=np.arange(50))).all()


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 9)])
def test_label_agreement_refuses_what_does_not_fit(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"k must|do not fit"):
        LabelAgreement.fit(np.zeros((10, 2), dtype=np.float32), np.zeros(n, dtype=np.int64), k)


# ---- spectral signature


def poisoned_class(share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class 1 has `share` images more that carry a common direction; the classes differ in scale."""
    features, labels = clusters(seed, 2000)
    features = features * (1 + labels[:, None]).astype(np.float32)
    rng = np.random.default_rng(seed + 1)
    count = int(share / (1 - share) * np.count_nonzero(labels == 1))
    trigger = 4 * rng.standard_normal(features.shape[1])
    poison = features[labels == 1][rng.integers(0, np.count_nonzero(labels == 1), count)] + trigger
    poison += rng.standard_normal(poison.shape)
    is_poison = np.arange(len(features) + count) >= len(features)
    return (
        np.concatenate([features, poison]).astype(np.float32),
        np.concatenate([labels, np.ones(count, dtype=np.int64)]),
        is_poison,
    )


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.45])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_spectral_signature_finds_what_shares_a_direction(share: float, rank: int) -> None:
    features, labels, poison = poisoned_class(share)
    scores = SpectralSignature.fit(features, labels, num_classes=CLASSES, rank=rank).score(features, labels)
    assert roc_auc_score(poison, scores) > 0.96


def test_spectral_scores_of_clean_classes_are_on_one_scale() -> None:
    features, labels, _ = poisoned_class(0.0)
    scores = SpectralSignature.fit(features, labels, num_classes=CLASSES).score(features, labels)
    medians = [np.median(scores[labels == label]) for label in range(CLASSES)]
    assert medians == pytest.approx(np.ones(CLASSES), rel=1e-4)
    tails = [np.quantile(scores[labels == label], 0.95) for label in range(CLASSES)]
    assert max(tails) < 2.5 * min(tails)


def test_spectral_signature_of_rank_one_is_the_squared_projection_around_the_bulk() -> None:
    features, labels, _ = poisoned_class(0.1)
    own = features[labels == 1].astype(np.float64)
    centred = own - np.median(own, axis=0)
    projection = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    for _ in range(20):  # the half nearest to its own mean
        half = np.argsort(np.abs(projection), kind="stable")[: len(own) // 2 + 1]
        projection = projection - projection[half].mean()
    expected = np.square(projection) / np.median(np.square(projection))
    scores = SpectralSignature.fit(features, labels, num_classes=CLASSES, rank=1).score(features, labels)
    assert scores[labels == 1] == pytest.approx(expected, rel=0.05, abs=0.1)


def test_spectral_signature_of_few_and_of_equal_images_is_finite() -> None:
    features, labels = clusters(0)
    features[labels == 2] = 1
    features[np.flatnonzero(labels == 2)[0]] = 100
    few = np.flatnonzero(labels == 3)[2:]
    kept = np.setdiff1d(np.arange(len(labels)), few)
    fitted = SpectralSignature.fit(features[kept], labels[kept], num_classes=CLASSES + 1)
    assert np.isfinite(fitted.score(features, np.where(labels == 4, CLASSES, labels))).all()


@pytest.mark.parametrize(("rank", "n"), [(0, 100), (9, 100), (4, 20)])
def test_spectral_signature_refuses_what_does_not_fit(rank: int, n: int) -> None:
    features, labels = clusters(0, n)
    with pytest.raises(ValueError, match="rank"):
        SpectralSignature.fit(features, labels, num_classes=CLASSES, rank=rank)


# ---- activation clustering


@pytest.mark.parametrize("share", [0.05, 0.15, 0.33])
def test_activation_clustering_finds_the_smaller_cluster_of_a_split_class(share: float) -> None:
    features, labels, poison = poisoned_class(share)
    fitted = ActivationClustering.fit(features, labels, num_classes=CLASSES, rng=np.random.default_rng(0))
    scores = fitted.score(features, labels)
    assert roc_auc_score(poison, scores) > 0.98
    assert fitted.weight.argmax() == 1 and scores.min() >= 0 and scores.max() <= 1


def test_two_means_finds_two_blobs() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((300, 2)) + np.where(np.arange(300) < 60, 8, 0)[:, None]
    centres, second = two_means(points, rng)
    assert np.sort(centres.mean(axis=1)) == pytest.approx([0, 8], abs=0.5)
    assert min(np.count_nonzero(second), np.count_nonzero(~second)) == 60


def test_a_class_too_small_to_split_or_of_one_point_scores_nothing() -> None:
    features, labels = clusters(0)
    features[labels == 2] = 1
    kept = np.flatnonzero((labels != 3) | (np.cumsum(labels == 3) < 10))
    fitted = ActivationClustering.fit(features[kept], labels[kept], num_classes=CLASSES, rng=np.random.default_rng(0))
    assert (fitted.score(features, labels)[(labels == 2) | (labels == 3)] == 0).all()


# ---- divergence of the reconstruction


@steady
@given(st.integers(0, 10**6), st.sampled_from([1.0, 10.0, 40.0]))
def test_divergences_are_scipys(seed: int, temperature: float) -> None:
    logits, reconstructed = np.random.default_rng(seed).normal(0, 6, (2, 15, CLASSES))
    p, q = softmax(logits / temperature, axis=1), softmax(reconstructed / temperature, axis=1)
    kl = kl_divergence(logits, reconstructed, temperature=temperature)
    assert kl == pytest.approx(rel_entr(p, q).sum(axis=1), rel=1e-5)
    js = jensen_shannon(logits, reconstructed, temperature=temperature)
    assert js == pytest.approx(jensenshannon(p, q, axis=1) ** 2, rel=1e-5)


def test_divergence_of_certain_answers_does_not_round_to_zero() -> None:
    """Two classes, p = 1 − e⁻ᵃ and q = 1 − e⁻ᵇ: KL → e⁻ᵃ (b − a − 1) + e⁻ᵇ for large a, b."""
    found = kl_divergence(np.array([[60.0, 0]]), np.array([[62.0, 0]]))
    assert float(found[0]) == pytest.approx(np.exp(-60) * (62 - 60 - 1) + np.exp(-62), rel=1e-4, abs=0)


def test_divergence_of_answers_nearly_alike_does_not_round_to_zero() -> None:
    """Around even odds KL is δ²/8 for a logit moved by δ."""
    found = kl_divergence(np.array([[0.0, 0]]), np.array([[1e-8, 0]]))
    assert float(found[0]) == pytest.approx(1e-16 / 8, rel=1e-3, abs=0)


def test_divergence_of_logits_far_apart_is_finite() -> None:
    logits = np.array([[2000.0, 0, -2000]])
    assert float(kl_divergence(logits, -logits)[0]) == pytest.approx(4000)
    assert float(jensen_shannon(logits, -logits, temperature=1)[0]) == pytest.approx(np.log(2))
    assert float(kl_divergence(logits, logits)[0]) == 0


@pytest.mark.parametrize("score", [kl_divergence, jensen_shannon])
def test_divergences_refuse_what_does_not_fit(score: Callable[..., np.ndarray]) -> None:
    with pytest.raises(ValueError, match="temperature"):
        score(np.zeros((1, 2)), np.zeros((1, 2)), temperature=0)
    with pytest.raises(ValueError, match="shape"):
        score(np.zeros((1, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="finite"):
        score(np.zeros((1, 2)), np.full((1, 2), np.inf))


# ---- duplicates


def bits_apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.bitwise_count(first ^ second).sum(axis=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_copies_stay_near_and_other_images_far(channels: int) -> None:
    images = pictures(0, channels=channels)
    hashes = perceptual_hashes(images)
    assert hashes.any(axis=1).all()
    noise = np.random.default_rng(0).integers(-2, 3, images.shape)
    noisy = np.clip(images.astype(np.int64) + noise, 0, 255).astype(np.uint8)
    copies = {
        "jpeg": np.stack([jpeg(image, 90) for image in images]),
        "noise": noisy,
        "size": np.stack([resized(image, 36) for image in images]),
    }
    for name, copy in copies.items():
        assert (bits_apart(perceptual_hashes(copy), hashes) <= duplicates.RADIUS).mean() > 0.95, name
    assert bits_apart(np.roll(hashes, 1, axis=0), hashes).min() > 2 * duplicates.RADIUS


def test_the_colour_of_an_image_is_in_its_hash() -> None:
    image = pictures(0, n=1)
    swapped = image[..., ::-1].copy()
    assert bits_apart(perceptual_hashes(image), perceptual_hashes(swapped))[0] > duplicates.RADIUS


def test_plain_images_have_no_hash_and_no_duplicates() -> None:
    flat = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), 24 * 24 * 3).reshape(-1, 24, 24, 3)
    noise = np.random.default_rng(0).integers(0, 2, flat.shape, dtype=np.uint8)
    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[None, None, :, None], (4, 24, 24, 3))
    hashes = perceptual_hashes(np.concatenate([flat, flat + noise, ramp, ramp[:, :, ::-1]]))
    assert not hashes.any()
    labels = np.arange(len(hashes)) % 2
    assert not DuplicateIndex.fit(hashes, labels).score(hashes, labels, indexed=True).any()


def plain_duplicates(hashes: np.ndarray, labels: np.ndarray, shard: Shard, indexed: bool) -> list[float]:
    scores = []
    for row, (code, label) in enumerate(zip(*shard, strict=True)):
        distance = bits_apart(hashes, code[None])
        near = (distance <= duplicates.RADIUS) & hashes.any(axis=1) & bool(code.any())
        weight = near * (1 - distance / (duplicates.RADIUS + 1))
        if indexed:
            weight[row] = 1
        own, other = weight[labels == label].sum() + (not indexed), weight[labels != label].sum()
        closest = distance[near & (labels != label)].min(initial=duplicates.RADIUS + 1)
        scores.append(float((1 - closest / (duplicates.RADIUS + 1)) * other / (own + other)))
    return scores


@steady
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([1, 3, 8]))
def test_the_index_finds_what_a_search_through_all_pairs_finds(seed: int, indexed: bool, families: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, (families, 2), dtype=np.uint64)[rng.integers(0, families, 120)]
    flips = rng.random((120, 128)) < rng.choice([0, 0.01, 0.03, 0.06], (120, 1))
    hashes = base ^ np.packbits(flips, axis=1).view(np.uint64)
    hashes[:4] = 0
    labels = rng.integers(0, 4, 120)
    index = DuplicateIndex.fit(hashes[:80], labels[:80])
    shard = (hashes[:80], labels[:80]) if indexed else (hashes[80:], labels[80:] + 1)
    expected = plain_duplicates(hashes[:80], labels[:80], shard, indexed)
    assert index.score(*shard, indexed=indexed) == pytest.approx(expected, abs=1e-6)


def test_the_minority_label_among_copies_is_the_suspicious_one() -> None:
    hashes = np.repeat(perceptual_hashes(pictures(0, n=3)), [10, 2, 1], axis=0)
    labels = np.array([0] * 9 + [1] + [0, 1] + [1])
    scores = DuplicateIndex.fit(hashes, labels).score(hashes, labels, indexed=True)
    assert scores == pytest.approx([0.1] * 9 + [0.9] + [0.5, 0.5] + [0])


def test_a_crowd_of_like_hashes_is_not_compared_pair_by_pair() -> None:
    """All share 6 of 8 bands; their copies are found by the other two."""
    rng = np.random.default_rng(0)
    bands = np.zeros((3000, 8), dtype=np.uint16)
    bands[:, :6] = 7
    bands[:, 6:] = rng.integers(1, 2**16, (3000, 2))
    hashes = bands.view(np.uint64)
    labels = np.zeros(3000, dtype=np.int64)
    index = DuplicateIndex.fit(hashes, labels)
    assert index.crowded == 6 * len(np.unique(hashes, axis=0))
    scores = index.score(hashes, labels + 1, indexed=False)
    assert scores.min() == 0.5 and scores.max() <= 0.8  # itself, and the few that are near it


def test_an_empty_set_has_an_index() -> None:
    index = DuplicateIndex.fit(np.zeros((0, 2), dtype=np.uint64), np.zeros(0, dtype=np.int64))
    hashes = perceptual_hashes(pictures(0, n=3))
    assert not index.score(hashes, np.zeros(3, dtype=np.int64), indexed=False).any()


@pytest.mark.parametrize(
    "images", [np.zeros((1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 2), np.uint8)]
)
def test_hashes_refuse_what_is_no_image(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        perceptual_hashes(images)
