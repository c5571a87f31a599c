"""Calibration images of which several show one object: what counts as one, and whether rates hold."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.calibration import benjamini_hochberg
from models.calibration.grouped import GroupedTest
from models.combination import COMBINATIONS, Way, chosen_way, panel_test, power_mean

steady = settings(deadline=None, derandomize=True, database=None)

WAYS: tuple[Way, ...] = ("joint", "power_mean", "simes", "cauchy")
ALPHAS = (0.01, 0.05, 0.1)
OBJECTS, NEW, RESAMPLES = 300, 250, 250
POISON = 40


def drawn(rng: np.random.Generator, objects: int, *, largest: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """(scores (m, 4), groups (m,)): images of an object agree in most of what they score."""
    groups = np.repeat(np.arange(objects), rng.integers(1, largest + 1, objects))
    mix = np.array([[1, 0.8, -0.5, 0], [0, 0.6, 0.3, 0], [0, 0, 0.8, 0], [0, 0, 0, 1]])
    scores = (rng.normal(size=(objects, 4))[groups] + 0.4 * rng.normal(size=(len(groups), 4))) @ mix
    scores[:, 3] = np.round(scores[:, 3] * 2)
    return scores, groups


@cache
def outcomes(combine: Way) -> tuple[np.ndarray, np.ndarray]:
    """(clean p-values (r, n), false-discovery shares (r, 2) at 5 and 10 % with poison mixed in)."""
    rng = np.random.default_rng(21)
    clean, shares, found = np.empty((RESAMPLES, NEW)), np.empty((RESAMPLES, 2)), 0.0
    for draw in range(RESAMPLES):
        calibration, groups = drawn(rng, OBJECTS)
        scores = drawn(rng, NEW, largest=1)[0]
        test = panel_test(calibration, combine, groups=groups)
        clean[draw], _ = test.p_values(scores)
        scores[:POISON, draw % 2] += 8
        scores[:POISON:2, 3] += 5
        p, _ = test.p_values(scores)
        for place, rate in enumerate((0.05, 0.1)):
            flagged = benjamini_hochberg(p, rate=rate)
            shares[draw, place] = flagged[POISON:].sum() / max(1, flagged.sum())
            found += flagged[:POISON].mean() / (2 * RESAMPLES)
    assert found > 0.3, found
    return clean, shares


@pytest.mark.parametrize("combine", WAYS)
def test_of_images_of_new_objects_a_panel_flags_alpha(combine: Way) -> None:
    clean, shares = outcomes(combine)
    for alpha in ALPHAS:
        rates = (clean <= alpha).mean(axis=1)
        assert rates.mean() <= alpha + 2 * rates.std() / np.sqrt(RESAMPLES)
    assert (clean <= 0.05).mean() > 0.03
    for place, rate in enumerate((0.05, 0.1)):
        seen = shares[:, place]
        assert seen.mean() <= rate + 2 * seen.std() / np.sqrt(RESAMPLES)


def test_counting_each_image_for_itself_would_break_it() -> None:
    """What groups are for: 40 objects in some 400 images cannot promise 1 %, and with 100 objects it is held."""
    rng, rates = np.random.default_rng(25), []
    for _ in range(RESAMPLES):
        few, many = drawn(rng, 40, largest=20), drawn(rng, 100, largest=20)
        scores = drawn(rng, NEW, largest=1)[0]
        tests = panel_test(few[0]), panel_test(many[0]), panel_test(many[0], "power_mean", groups=many[1])
        rates.append([(test.p_values(scores)[0] <= 0.01).mean() for test in tests])
    mean, error = np.mean(rates, axis=0), np.std(rates, axis=0) / np.sqrt(RESAMPLES)
    assert mean[0] > 0.01 + 4 * error[0]
    assert mean[1] > 0.01 + 4 * error[1]
    assert mean[2] <= 0.01 + 2 * error[2]


@pytest.mark.parametrize("combine", ["power_mean", "cauchy"])
def test_groups_of_one_image_each_are_images(combine: Way) -> None:
    rng = np.random.default_rng(22)
    calibration, scores = rng.normal(size=(90, 3)).round(1), rng.normal(size=(70, 3)).round(1)
    alone, own_alone = panel_test(calibration, combine, (2, 1, 1)).p_values(scores)
    grouped = panel_test(calibration, combine, (2, 1, 1), rng.permutation(90))
    joint, own = grouped.p_values(scores)
    assert joint == pytest.approx(alone, rel=1e-9)
    assert own == pytest.approx(own_alone, rel=1e-9)


SMALL = st.tuples(
    arrays(np.float64, (11, 2), elements=st.integers(-3, 3).map(float)),
    arrays(np.int64, 8, elements=st.integers(0, 3)),
)


@steady
@given(SMALL, st.sampled_from(WAYS))
def test_never_below_the_p_value_that_knows_the_whole_new_group(
    sample: tuple[np.ndarray, np.ndarray], combine: Way
) -> None:
    """The new group's three images are the last. Of each the symmetric measure counts other groups' images alone."""
    scores, groups = sample
    combined, everyone = COMBINATIONS[combine], np.concatenate([groups, [9, 9, 9]])
    _, of_image, sizes = np.unique(everyone, return_inverse=True, return_counts=True)
    weight, number = 1 / sizes[of_image], len(sizes)
    other = everyone[:, None] != everyone[None]
    at_least = scores[:, None] <= scores[None]
    counted = ((at_least & other[:, :, None]) * weight[None, :, None]).sum(axis=1)
    values = combined((counted + 0.5) / number, np.array([0.5, 0.5]))
    joint, own = GroupedTest(scores[:8], groups, combined).p_values(scores[8:])
    for place in range(3):
        oracle = weight[values < values[8 + place] * (1 - 1e-9)].sum() / number
        assert joint[place] >= oracle - 1e-9
        shares = (at_least[8 + place, :8] * weight[:8, None]).sum(axis=0)
        assert own[place] == pytest.approx((1 + shares) / number, rel=1e-6)


def test_equal_scores_count_against_the_calibration() -> None:
    test = GroupedTest(np.zeros((7, 2)), np.array([0, 0, 0, 0, 1, 1, 2]), power_mean)
    for each in test.p_values(np.zeros((1, 2))):
        assert each == pytest.approx(1, rel=1e-9)
    joint, _ = test.p_values(np.array([[0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]))
    assert joint == pytest.approx([1 / 4, 1 / 4, 1], rel=1e-9)


def test_only_the_share_of_a_group_counts() -> None:
    """A thousand images of one object more change nothing of what it counts; nor does the order of the images."""
    rng = np.random.default_rng(23)
    calibration, groups = drawn(rng, 60)
    scores = drawn(rng, 50, largest=1)[0]
    often = np.concatenate([np.arange(len(groups)), *[np.flatnonzero(groups == 7)] * 1000])
    mixed = rng.permutation(often)
    few, many = (GroupedTest(calibration[rows], groups[rows], power_mean) for rows in (slice(None), mixed))
    assert many.num_calibration == few.num_calibration == 60
    for one, other in zip(few.p_values(scores), many.p_values(scores), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_detector_speaks_beyond_its_threshold_and_nowhere_else() -> None:
    rng = np.random.default_rng(24)
    calibration, groups = drawn(rng, 120)
    scores = np.concatenate([drawn(rng, 300)[0], calibration])
    test = GroupedTest(calibration, groups, power_mean)
    own = test.p_values(scores)[1]
    for alpha in (0.0083, 0.02, 0.05, 0.3):
        levels = test.levels(alpha)
        assert ((own <= levels) == (scores > test.thresholds(levels))).all()
    assert np.isinf(test.thresholds(test.levels(0.008))).all()


def test_one_test_has_nothing_to_combine() -> None:
    calibration, groups = np.array([[3.0], [2.0], [2.0], [1.0]]), np.array(["a", "a", "b", "c"])
    joint, own = panel_test(calibration, "power_mean", groups=groups).p_values(np.array([[4.0], [2.5], [2.0], [0.0]]))
    assert joint.tolist() == own[:, 0].tolist()
    assert joint == pytest.approx([1 / 4, 1.5 / 4, 3 / 4, 1], rel=1e-9)


def test_of_groups_the_power_mean_is_chosen_whatever_room_alpha_leaves() -> None:
    assert chosen_way("auto", 0.01, 100, 6, exact=False) == chosen_way("auto", None, 100, 6, exact=False)
    assert chosen_way("auto", 0.01, 100, 6, exact=False) == "power_mean" != chosen_way("auto", 0.01, 100, 6)
    assert chosen_way("joint", 0.01, 100, 6, exact=False) == "joint"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="groups must have shape"):
        GroupedTest(np.zeros((3, 2)), np.zeros(2), power_mean)
    test = GroupedTest(np.zeros((3, 2)), np.array([1, 1, 2]), power_mean)
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        test.p_values(np.zeros((3, 1)))
    with pytest.raises(ValueError, match="must be finite"):
        test.p_values(np.array([[np.nan, 1.0]]))
