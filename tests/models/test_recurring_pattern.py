"""Patterns that recur: blends, stripes and stamps are found by their template, and clean classes show none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from models.attacks.triggers import Blend, Patch, Stripes, Trigger
from models.detectors.recurring_pattern import RecurringPattern
from tests.models.test_recurring_patch import textures

SIDE, COUNT, CLASSES, TARGET = 24, 1600, 4, 1
POISONED = 60


def case(trigger: Trigger | None, *, side: int = SIDE, channels: int = 3) -> tuple[np.ndarray, ...]:
    """Images, labels, surprise, poison: of a class's 400 a tenth have labels that nobody believes, though clean."""
    rng = np.random.default_rng(4)
    images, labels = textures(5, COUNT, side=side, channels=channels), rng.integers(0, CLASSES, COUNT)
    poison = np.arange(COUNT) < POISONED
    if trigger is not None:
        images[poison], labels[poison] = trigger.stamp(images[poison]), TARGET
    return images, labels, np.where(poison | (rng.random(COUNT) < 0.1), 0.95, 0.05), poison


def judged(given: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and poison of the half that did not fit."""
    images, labels, surprise, poison = given
    fits = np.arange(COUNT) % 2 == 0
    fitted = RecurringPattern.fit(images[fits], labels[fits], surprise[fits], num_classes=CLASSES)
    return fitted.score(images[~fits], labels[~fits]), poison[~fits]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("trigger", [Blend(0.15), Stripes(), Patch()], ids=["blend", "stripes", "patch"])
def test_a_pattern_that_recurs_is_found(trigger: Trigger, channels: int) -> None:
    scores, poison = judged(case(trigger, channels=channels))
    assert roc_auc_score(poison, scores) > 0.98


def test_what_covers_a_large_image_is_found_in_small() -> None:
    scores, poison = judged(case(Stripes(), side=80))
    assert roc_auc_score(poison, scores) > 0.98


def test_a_clean_class_has_no_template_to_speak_of() -> None:
    """Chance lifts no wave: images of classes without a pattern score nothing at all."""
    images, labels, surprise, _ = case(None)
    fitted = RecurringPattern.fit(images, labels, surprise, num_classes=CLASSES)
    assert np.count_nonzero(fitted.templates) < 0.005 * fitted.templates.size


def test_the_template_of_stripes_is_their_wave() -> None:
    images, labels, surprise, _ = case(Stripes(frequency=6))
    template = RecurringPattern.fit(images, labels, surprise, num_classes=CLASSES).templates[TARGET]
    strength = np.square(template).sum(axis=(2, 3))
    assert np.unravel_index(int(strength.argmax()), strength.shape) == (0, 6)
    assert strength[0, 6] > 0.8
    assert np.square(template).sum() == pytest.approx(1, abs=1e-5)


def test_a_score_is_the_same_alone_and_in_shards() -> None:
    images, labels, surprise, _ = case(Blend(0.15))
    fitted = RecurringPattern.fit(images, labels, surprise, num_classes=CLASSES)
    everything = fitted.score(images, labels)
    shards = [fitted.score(images[at : at + 77], labels[at : at + 77]) for at in range(0, COUNT, 77)]
    np.testing.assert_array_equal(np.concatenate(shards), everything)
    np.testing.assert_array_equal(fitted.score(images[5:6], labels[5:6]), everything[5:6])
    assert np.abs(everything).max() <= 1


def test_classes_too_small_or_all_alike_have_no_template() -> None:
    images, labels, _, _ = case(Blend(0.15))
    few = np.flatnonzero(labels == 2)[:9]
    fitted = RecurringPattern.fit(images[few], labels[few], np.full(9, 0.5), num_classes=CLASSES)
    assert not fitted.score(images, labels).any()
    for surprise in (0.0, 1.0):
        assert not RecurringPattern.fit(images, labels, np.full(COUNT, surprise), num_classes=CLASSES).templates.any()
    empty = RecurringPattern.fit(images[:0], labels[:0], np.zeros(0), num_classes=CLASSES)
    assert not empty.score(images, labels).any()


def test_images_that_do_not_fit_are_refused() -> None:
    images, labels, surprise, _ = case(None)
    fitted = RecurringPattern.fit(images, labels, surprise, num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"not \(24, 24, 3\)"):
        fitted.score(images[:, :20], labels)
    with pytest.raises(ValueError, match="for each image"):
        RecurringPattern.fit(images, labels[:5], surprise, num_classes=CLASSES)
