"""Patches that recur: found without a network, wherever they lie, and no clean image is blamed for its neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from models.attacks.triggers import Patch
from models.detectors import recurring_patch
from models.detectors.recurring_patch import RecurringPatch

SIDE, COUNT, TRUSTED, POISONED = 24, 1200, 200, 40
Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def textures(seed: int, n: int, side: int = SIDE, channels: int = 3) -> np.ndarray:
    """Noise smoothed over a few pixels: every image different, its windows of all kinds."""
    noise = np.random.default_rng(seed).integers(0, 256, (n, side + 2, side + 2, channels)).astype(np.float64)
    smooth = sum(noise[:, r : r + side, c : c + side] for r in range(3) for c in range(3)) / 9
    return np.clip((smooth - 128) * 2.5 + 128, 0, 255).astype(np.uint8)


def case(stamp: Callable[[np.ndarray], np.ndarray], channels: int = 3) -> Case:
    """Images of which the last are trusted and the first poisoned, their labels believed as little as a tenth of the
    clean candidates' are: (images, surprise, trusted, poison)."""
    images, rows = textures(1, COUNT, channels=channels), np.arange(COUNT)
    trusted, poison = rows >= COUNT - TRUSTED, rows < POISONED
    images[poison] = stamp(images[poison])
    doubtful = (np.random.default_rng(2).random(COUNT) < 0.1) & ~trusted
    return images, np.where(poison | doubtful, 0.98, 0.03), trusted, poison


def at_random(images: np.ndarray) -> np.ndarray:
    """The chequered patch, somewhere else in each image."""
    stamped, rng = images.copy(), np.random.default_rng(3)
    square = ((np.indices((3, 3)).sum(axis=0) % 2 == 0) * 255).astype(np.uint8)[..., None]
    for image in stamped:
        row, column = rng.integers(0, SIDE - 3, 2)
        image[row : row + 3, column : column + 3] = square
    return stamped


def judged(given: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half fits, the other half is judged: its scores, its marks of trust and of poison."""
    images, surprise, trusted, poison = given
    fits = np.arange(COUNT) % 2 == 0
    fitted = RecurringPatch.fit(images[fits], surprise[fits], trusted[fits])
    return fitted.score(images[~fits]), trusted[~fits], poison[~fits]


def auroc(given: Case) -> float:
    scores, trusted, poison = judged(given)
    return float(roc_auc_score(poison[~trusted], scores[~trusted]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "stamp",
    [Patch().stamp, Patch(5, "top_left", 4, ((255, 255, 0),)).stamp, at_random],
    ids=["chequered", "square", "anywhere"],
)
def test_a_patch_that_recurs_is_found(stamp: Callable[[np.ndarray], np.ndarray], channels: int) -> None:
    assert auroc(case(stamp, channels)) > 0.99


def test_a_patch_of_a_large_image_is_found_where_its_sides_are_averaged_down() -> None:
    given = case(Patch().stamp)
    large = given[0].repeat(5, axis=1).repeat(5, axis=2)
    assert large.shape[1] > recurring_patch.LARGEST_SIDE
    assert auroc((large, *given[1:])) > 0.99


def test_a_watermark_whose_labels_are_as_good_as_any_is_no_evidence() -> None:
    images, _, trusted, marked = case(Patch().stamp)
    surprise = np.where((np.arange(COUNT) % 10 == 0) & ~trusted, 0.98, 0.03)
    assert auroc((images, surprise, trusted, marked)) < 0.7


def test_what_trusted_images_show_as_often_is_no_evidence() -> None:
    images, surprise, trusted, poison = case(Patch().stamp)
    images[trusted] = Patch().stamp(images[trusted])
    assert auroc((images, surprise, trusted, poison)) < 0.7


def test_clean_candidates_score_as_trusted_images_do() -> None:
    scores, trusted, poison = judged(case(Patch().stamp))
    clean = scores[~trusted & ~poison]
    assert 0.04 < (clean > np.quantile(scores[trusted], 0.9)).mean() < 0.19
    assert (scores[poison] > scores[trusted].max()).mean() > 0.9


def test_the_deviance_is_that_of_counts() -> None:
    """40 images of 100 candidates show a code, none of 9 trusted: expected are 100 · 1/10, or the 40 and one more."""
    weights = np.where(np.arange(100) < 40, 0.9, 0.1)
    expected = 41 * weights.mean()
    for trusted in (9, 0):
        found = recurring_patch._evidence(np.array([40.0]), np.array([36.0]), np.array([0.0]), weights, trusted)
        assert found == pytest.approx([36 * np.log(36 / expected) - (36 - expected)])
    rarer = recurring_patch._evidence(np.array([40.0]), np.array([36.0]), np.array([8.0]), weights, 9)
    assert rarer.tolist() == [0.0]


def test_a_patch_is_found_where_nobody_vouches_for_an_image() -> None:
    images, surprise, _, poison = case(Patch().stamp)
    assert auroc((images, surprise, np.zeros(COUNT, np.bool_), poison)) > 0.99


def test_a_score_is_the_same_alone_and_in_shards() -> None:
    images, surprise, trusted, _ = case(Patch().stamp)
    fitted = RecurringPatch.fit(images, surprise, trusted)
    everything = fitted.score(images)
    shards = [fitted.score(images[start : start + 77]) for start in range(0, COUNT, 77)]
    np.testing.assert_array_equal(np.concatenate(shards), everything)
    np.testing.assert_array_equal(fitted.score(images[5:6]), everything[5:6])


def test_images_without_a_window_and_sets_without_candidates_score_nothing() -> None:
    tiny = textures(0, 10, side=2)
    none = np.zeros(10, np.bool_)
    assert not RecurringPatch.fit(tiny, np.full(10, 0.5), none).score(tiny).any()
    images = textures(0, 10)
    assert not RecurringPatch.fit(images, np.full(10, 0.5), ~none).score(images).any()
    empty = RecurringPatch.fit(images[:0], np.zeros(0), none[:0])
    assert empty.score(images).tolist() == [0.0] * 10


def test_images_that_do_not_fit_are_refused() -> None:
    images, surprise, trusted, _ = case(Patch().stamp)
    fitted = RecurringPatch.fit(images, surprise, trusted)
    with pytest.raises(ValueError, match=r"not \(24, 24, 3\)"):
        fitted.score(images[:, :20])
    with pytest.raises(ValueError, match="uint8"):
        fitted.score(images.astype(np.float32))
    with pytest.raises(ValueError, match="for each image"):
        RecurringPatch.fit(images, surprise[:5], trusted)
