"""A panel's one p-value: α and the false-discovery rate over many calibration draws, for each way of combining."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from models.calibration import JointTest, benjamini_hochberg, conformal_p_values
from models.combination import COMBINATIONS, Way, cauchy, chosen_way, panel_test, power_mean, simes

steady = settings(deadline=None, derandomize=True, database=None)

WAYS: tuple[Way, ...] = ("joint", "power_mean", "simes", "cauchy")
ALPHAS = (0.01, 0.05, 0.1)
M, N, RESAMPLES = 1000, 500, 400
POISON = 50


@cache
def outcomes(combine: Way, weighted: bool) -> tuple[np.ndarray, np.ndarray]:
    """(clean p-values (r, n), false-discovery shares (r, 2) at 5 and 10 % with poison mixed in).

    Four tests of mixed correlation, one heavy-tailed, one with many ties; the poison moves one or two of them.
    """
    rng = np.random.default_rng(11)
    weights = (4.0, 2.0, 1.0, 1.0) if weighted else None
    mix = np.array([[1, 0.8, -0.5, 0], [0, 0.6, 0.3, 0], [0, 0, 0.8, 0], [0, 0, 0, 1]])
    clean, shares, found = np.empty((RESAMPLES, N)), np.empty((RESAMPLES, 2)), 0.0
    for draw in range(RESAMPLES):
        scores = rng.normal(size=(M + N, 4)) @ mix
        scores[:, 2] = np.exp(2 * scores[:, 2])
        scores[:, 3] = np.round(scores[:, 3] * 2)
        test = panel_test(scores[:M], combine, weights)
        clean[draw], _ = test.p_values(scores[M:])
        scores[M : M + POISON, draw % 2] += 6
        scores[M : M + POISON : 2, 3] += 4
        p, _ = test.p_values(scores[M:])
        for place, rate in enumerate((0.05, 0.1)):
            flagged = benjamini_hochberg(p, rate=rate)
            shares[draw, place] = flagged[POISON:].sum() / max(1, flagged.sum())
            found += flagged[:POISON].mean() / (2 * RESAMPLES)
    assert found > 0.5, found
    return clean, shares


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("combine", WAYS)
def test_of_clean_images_a_panel_flags_alpha(combine: Way, weighted: bool) -> None:
    clean, _ = outcomes(combine, weighted)
    for alpha in ALPHAS:
        rates = (clean <= alpha).mean(axis=1)
        assert rates.mean() <= alpha + 2 * rates.std() / np.sqrt(RESAMPLES)
        assert rates.mean() >= (0.9 if combine == "joint" else 0.7) * alpha


@pytest.mark.parametrize("combine", WAYS)
def test_of_a_panels_discoveries_at_most_the_rate_is_clean(combine: Way) -> None:
    _, shares = outcomes(combine, False)
    for place, rate in enumerate((0.05, 0.1)):
        seen = shares[:, place]
        assert seen.mean() <= rate + 2 * seen.std() / np.sqrt(RESAMPLES)
        assert seen.mean() > 0.3 * rate


def test_any_detector_at_alpha_on_its_own_would_break_it() -> None:
    """What the combination is for."""
    rng = np.random.default_rng(12)
    calibration, scores = rng.normal(size=(1000, 4)), rng.normal(size=(5000, 4))
    _, own = panel_test(calibration).p_values(scores)
    assert np.mean((own <= 0.05).any(axis=1)) > 0.15


@pytest.mark.parametrize("combine", WAYS)
def test_one_detector_has_nothing_to_combine(combine: Way) -> None:
    rng = np.random.default_rng(13)
    calibration, scores = rng.normal(size=(60, 1)), rng.normal(size=(40, 1))
    joint, own = panel_test(calibration, combine).p_values(scores)
    expected = conformal_p_values(scores[:, 0], calibration[:, 0])
    assert joint.tolist() == own[:, 0].tolist() == expected.tolist()


SMALL = st.tuples(
    arrays(np.float64, (3, 2), elements=st.integers(-3, 3).map(float)),
    arrays(np.float64, (9, 2), elements=st.integers(-3, 3).map(float)),
)


@steady
@given(SMALL, st.sampled_from(sorted(set(COMBINATIONS) - {"joint"})))
def test_a_combination_is_never_below_full_conformal_prediction(
    sample: tuple[np.ndarray, np.ndarray], combine: Way
) -> None:
    scores, calibration = sample
    joint, own = panel_test(calibration, combine).p_values(scores)
    combined = COMBINATIONS[combine]
    for place, image in enumerate(scores):
        together = np.vstack([calibration, image])
        ranks = np.stack([[np.sum(column >= value) for value in column] for column in together.T], axis=1)
        values = combined((ranks - 0.5) / len(together), np.array([0.5, 0.5]))
        assert joint[place] >= np.mean(values <= values[-1])
    assert own.tolist() == JointTest(calibration).p_values(scores)[1].tolist()


@steady
@given(arrays(np.float64, st.integers(1, 6), elements=st.floats(0.001, 0.999)))
def test_simes_is_the_least_adjusted_p_value(p: np.ndarray) -> None:
    even = np.full(len(p), 1 / len(p))
    assert simes(p[None], even)[0] == pytest.approx(stats.false_discovery_control(p).min(), rel=1e-9)


def test_cauchy_of_equal_p_values_is_their_value() -> None:
    p = np.array([[0.03] * 3, [0.5] * 3, [0.99] * 3])
    assert cauchy(p, np.array([0.5, 0.3, 0.2])) == pytest.approx([0.03, 0.5, 0.99])


def test_a_more_suspicious_score_never_has_a_larger_p_value() -> None:
    rng = np.random.default_rng(14)
    calibration, scores = rng.normal(size=(200, 3)), rng.normal(size=(300, 3))
    for combine in WAYS:
        test = panel_test(calibration, combine, (2, 1, 1))
        before, _ = test.p_values(scores)
        after, _ = test.p_values(scores + np.array([0, 0.5, 0]))
        assert (after <= before).all()
        assert (after < before).any()


def test_a_power_mean_of_equal_p_values_is_their_value_and_lies_between_the_smallest_and_the_largest() -> None:
    p = np.array([[0.03] * 3, [0.5] * 3, [0.99] * 3])
    assert power_mean(p, np.array([0.5, 0.3, 0.2])) == pytest.approx([0.03, 0.5, 0.99])
    mixed = np.array([[0.001, 0.4, 0.9]])
    (found,) = power_mean(mixed, np.full(3, 1 / 3))
    assert 0.001 < found < 0.9
    assert found == pytest.approx(((0.001**-0.5 + 0.4**-0.5 + 0.9**-0.5) / 3) ** -2)


def test_the_power_mean_hears_detectors_that_agree_and_one_that_is_sure() -> None:
    """Poison that moves three of five tests a little is found more often than by the joint test, what moves one far is
    found by both; with too few calibration images beyond α that one is lost, which is what `auto` is for."""
    rng = np.random.default_rng(15)
    agreed: dict[Way, list[float]] = {"joint": [], "power_mean": []}
    sure: dict[Way, list[float]] = {"joint": [], "power_mean": []}
    lost = []
    for _ in range(20):
        calibration, faint, far = rng.normal(size=(999, 5)), rng.normal(size=(400, 5)), rng.normal(size=(400, 5))
        faint[:, 1:4] += 1.5
        far[:, 0] += 20
        for way in agreed:
            test = panel_test(calibration, way)
            agreed[way].append(float((test.p_values(faint)[0] <= 0.02).mean()))
            sure[way].append(float((test.p_values(far)[0] <= 0.02).mean()))
        lost.append(float((panel_test(calibration[:150], "power_mean").p_values(far)[0] <= 0.02).mean()))
    assert np.mean(agreed["power_mean"]) > np.mean(agreed["joint"]) + 0.05
    assert min(np.mean(sure["power_mean"]), np.mean(sure["joint"])) > 0.99
    assert np.mean(lost) < 0.9


@pytest.mark.parametrize(
    ("alpha", "num_calibration", "num_tests", "way"),
    [
        (0.01, 999, 5, "power_mean"),
        (0.01, 998, 5, "joint"),
        (0.01, 999, 6, "joint"),
        (0.05, 79, 2, "power_mean"),
        (0.05, 150, 5, "joint"),
    ],
)
def test_auto_chooses_by_what_alpha_leaves_each_detector(
    alpha: float, num_calibration: int, num_tests: int, way: Way
) -> None:
    assert chosen_way("auto", alpha, num_calibration, num_tests) == way


def test_auto_without_an_alpha_is_the_power_mean_and_a_named_way_is_itself() -> None:
    assert chosen_way("auto", None, 100, 9) == "power_mean"
    for way in WAYS:
        assert chosen_way(way, None, 1, 9) == chosen_way(way, 0.5, 10**6, 2) == way
