"""P-values, thresholds and intervals against their definitions, scipy, and their own promises."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from models.calibration import (
    AlphaTooSmall,
    ClassesTooSmall,
    JointTest,
    PerClassTest,
    auroc,
    check_alpha,
    check_alpha_per_class,
    class_p_values,
    conformal_p_values,
    infer_threshold,
    realised_rate_bounds,
    smallest_alpha,
    threshold_at_fpr,
    wilson_interval,
)

steady = settings(deadline=None, derandomize=True, database=None)

COARSE = st.integers(-5, 5).map(float)  # few values, so that ties are many


def coarse_scores(least: int, most: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, st.integers(least, most), elements=COARSE)


@steady
@given(coarse_scores(0, 20), coarse_scores(0, 30))
def test_p_value_counts_calibration_scores_at_least_as_high(scores: np.ndarray, calibration: np.ndarray) -> None:
    p = conformal_p_values(scores, calibration)
    expected = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    assert p.tolist() == expected


@steady
@given(coarse_scores(0, 20), coarse_scores(19, 60), st.floats(0.05, 0.95))
def test_threshold_flags_exactly_what_the_p_value_flags(
    scores: np.ndarray, calibration: np.ndarray, fpr: float
) -> None:
    threshold = threshold_at_fpr(calibration, fpr=fpr)
    assert ((scores > threshold) == (conformal_p_values(scores, calibration) <= fpr)).all()


@pytest.mark.parametrize("n", [1, 3, 9, 19, 48, 99, 999, 12345])
def test_the_smallest_alpha_is_accepted_and_anything_less_is_refused(n: int) -> None:
    check_alpha(smallest_alpha(n), n)
    with pytest.raises(AlphaTooSmall, match=f"1/{n + 1}") as refused:
        check_alpha(smallest_alpha(n) * 0.999, n)
    assert (refused.value.n, refused.value.smallest) == (n, 1 / (n + 1))


def test_alpha_of_one_percent_needs_99_samples_and_the_error_says_so() -> None:
    check_alpha(0.01, 99)
    with pytest.raises(AlphaTooSmall, match="needs 99"):
        threshold_at_fpr(np.arange(98.0), fpr=0.01)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_alpha_outside_zero_to_one_is_no_alpha(alpha: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        check_alpha(alpha, 1000)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        conformal_p_values(np.array([bad]), np.arange(5.0))
    with pytest.raises(ValueError, match="finite"):
        conformal_p_values(np.arange(5.0), np.array([1.0, bad]))


def test_infer_threshold_passes_the_percentage_and_no_more_than_needed() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(200.0))
    assert infer_threshold(scores, percentage=95) == 189.0
    assert np.mean(scores > 189.0) == 0.05
    with pytest.raises(ValueError, match="percentage"):
        infer_threshold(scores, percentage=100)
    with pytest.raises(ValueError, match="no scores"):
        infer_threshold(scores[:0], percentage=50)


@steady
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_interval_agrees_with_scipy(counts: tuple[int, int], confidence: float) -> None:
    successes, n = counts
    oracle = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx((oracle.low, oracle.high), abs=1e-9)


def test_wilson_interval_of_nothing_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(3, 2)


@pytest.mark.parametrize(("alpha", "n", "n_test"), [(0.01, 99, 500), (0.05, 250, 1000), (0.1, 1000, 77), (0.5, 1, 3)])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_rate_bounds_are_the_beta_binomial_quantiles(alpha: float, n: int, n_test: int, confidence: float) -> None:
    flagged = int(alpha * (n + 1))
    counts = stats.betabinom(n_test, flagged, n + 1 - flagged)
    oracle = counts.ppf([(1 - confidence) / 2, (1 + confidence) / 2]) / n_test
    assert realised_rate_bounds(alpha, n, n_test, confidence) == pytest.approx(tuple(oracle), abs=1e-12)


def test_rate_bounds_at_the_size_of_a_benchmark() -> None:
    low, high = realised_rate_bounds(0.01, 2000, 35_000)
    assert 0.005 < low < 0.0075 < 0.0125 < high < 0.016


def test_realised_rates_fall_inside_their_bounds_as_often_as_promised() -> None:
    rng, inside, trials = np.random.default_rng(1), 0, 400
    low, high = realised_rate_bounds(0.05, 150, 300)
    for _ in range(trials):
        scores = rng.normal(size=450)
        rate = np.mean(conformal_p_values(scores[150:], scores[:150]) <= 0.05)
        inside += low <= rate <= high
    assert stats.binomtest(inside, trials, 0.95).pvalue > 1e-3 or inside / trials > 0.95


@steady
@given(coarse_scores(0, 20), coarse_scores(1, 30))
def test_one_test_alone_is_the_plain_conformal_test(scores: np.ndarray, calibration: np.ndarray) -> None:
    joint, own = JointTest(calibration[:, None]).p_values(scores[:, None])
    assert joint.tolist() == own[:, 0].tolist() == conformal_p_values(scores, calibration).tolist()


def full_conformal(image: np.ndarray, calibration: np.ndarray, weights: tuple[float, ...]) -> float:
    """The definition, spelled out: rank all m + 1 images among themselves, then count."""
    together = np.vstack([calibration, image])
    shares = np.array(weights) / sum(weights)
    keys = [
        min((sum(other[j] >= scores[j] for other in together) / shares[j], j) for j in range(together.shape[1]))
        for scores in together
    ]
    return sum(key <= keys[-1] for key in keys) / len(keys)


WEIGHTS = st.sampled_from([1.0, 2.0, 3.0, 0.5, 0.7])
PANELS = st.integers(1, 4).flatmap(
    lambda t: st.tuples(
        arrays(np.float64, (4, t), elements=COARSE),
        st.integers(1, 12).flatmap(lambda m: arrays(np.float64, (m, t), elements=COARSE)),
        st.tuples(*[WEIGHTS] * t),
    )
)


@settings(steady, max_examples=200)
@given(PANELS)
def test_joint_p_value_is_full_conformal_prediction(panel: tuple[np.ndarray, np.ndarray, tuple[float, ...]]) -> None:
    scores, calibration, weights = panel
    joint, own = JointTest(calibration, weights).p_values(scores)
    assert joint.tolist() == [full_conformal(image, calibration, weights) for image in scores]
    for column in range(scores.shape[1]):
        assert own[:, column].tolist() == conformal_p_values(scores[:, column], calibration[:, column]).tolist()


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_joint_p_values_of_a_larger_panel_are_full_conformal_too(digits: int) -> None:
    rng, weights = np.random.default_rng(5), (3.0, 1.0, 1.0, 2.0, 1.0)
    scores, calibration = (np.round(rng.normal(size=(rows, 5)) @ mix, digits) for rows, mix in correlated(rng, 15, 80))
    joint, _ = JointTest(calibration, weights).p_values(scores)
    assert joint.tolist() == [full_conformal(image, calibration, weights) for image in scores]


def correlated(rng: np.random.Generator, *rows: int) -> list[tuple[int, np.ndarray]]:
    mix = np.eye(5) + 0.5 * rng.normal(size=(5, 5))
    return [(count, mix) for count in rows]


@settings(steady, max_examples=200)
@given(PANELS, st.floats(0.05, 0.95))
def test_a_test_beyond_its_level_is_enough_and_none_beyond_is_not(
    panel: tuple[np.ndarray, np.ndarray, tuple[float, ...]], alpha: float
) -> None:
    """Exactly so without ties; a tie may only make the image more suspicious than its ranks alone."""
    scores, calibration, weights = panel
    test = JointTest(calibration, weights)
    joint, own = test.p_values(scores)
    beyond = (own <= test.levels(alpha)).any(axis=1)
    assert (joint <= alpha)[beyond].all()
    ties = (scores[:, None] == calibration[None]).any(axis=(1, 2))
    assert not (joint <= alpha)[~beyond & ~ties].any()


def test_a_weight_is_a_share_of_alpha() -> None:
    """Two tests that never agree: each flags its weight's share of what is flagged."""
    rng = np.random.default_rng(6)
    scores = rng.normal(size=(40_000, 2))
    test = JointTest(rng.normal(size=(39_999, 2)), (3, 1))
    joint, own = test.p_values(scores)
    first, second = (own[joint <= 0.04] <= test.levels(0.04)).mean(axis=0)
    assert first / second == pytest.approx(3, rel=0.25)
    assert test.levels(0.04) == pytest.approx([0.03, 0.01], rel=0.1)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, np.nan)])
def test_weights_that_are_not_one_positive_number_a_test_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="2 positive numbers"):
        JointTest(np.zeros((5, 2)), weights)


def test_a_large_panel_takes_no_comparison_of_every_image_with_every_other() -> None:
    """200,000 images, 4,000 calibration images and 6 tests would be 5e9 comparisons."""
    rng = np.random.default_rng(7)
    scores, calibration = rng.normal(size=(200_000, 6)), rng.normal(size=(4000, 6))
    start = time.process_time()
    joint, _ = JointTest(calibration).p_values(scores)
    assert time.process_time() - start < 2.5
    assert np.mean(joint <= 0.05) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("correlation", [-0.8, 0.0, 0.8])
def test_two_tests_together_keep_alpha(alpha: float, correlation: float) -> None:
    """Each test at α alone would flag about 2α; the joint one must flag α, neither more nor much less."""
    rng, trials, m, n = np.random.default_rng(2), 300, 199, 100
    rates = np.empty(trials)
    for trial in range(trials):
        scores = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=m + n)
        joint, _ = JointTest(scores[:m]).p_values(scores[m:])
        rates[trial] = np.mean(joint <= alpha)
    flagged = round(alpha * (m + 1))
    spread = stats.betabinom(n, flagged, m + 1 - flagged).std() / n / np.sqrt(trials)
    assert abs(rates.mean() - alpha) < 4 * spread


def test_a_joint_p_value_does_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(3)
    test, scores = JointTest(rng.normal(size=(50, 2))), rng.normal(size=(40, 2))
    together, _ = test.p_values(scores)
    assert together.tolist() == [float(test.p_values(scores[i : i + 1])[0][0]) for i in range(40)]


def test_an_image_beyond_all_calibration_in_the_first_test_has_the_smallest_p_value() -> None:
    calibration = np.random.default_rng(4).normal(size=(99, 2))
    joint, _ = JointTest(calibration).p_values(np.array([[10.0, 0.0], [10.0, 10.0], [0.0, 10.0]]))
    assert joint[:2].tolist() == [0.01, 0.01]
    assert joint[2] == 0.02, "one calibration image is the first test's most suspicious, and is believed first"


def test_scores_of_another_number_of_tests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        JointTest(np.zeros((5, 2))).p_values(np.zeros((3, 1)))


LABELLED = st.tuples(
    coarse_scores(0, 15).flatmap(lambda s: st.tuples(st.just(s), arrays(np.int64, len(s), elements=st.integers(0, 2)))),
    coarse_scores(0, 25).flatmap(lambda s: st.tuples(st.just(s), arrays(np.int64, len(s), elements=st.integers(0, 2)))),
)


@steady
@given(LABELLED)
def test_a_class_p_value_counts_its_own_class_only(
    sample: tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> None:
    (scores, labels), (calibration, calibration_labels) = sample
    p = class_p_values(scores, labels, calibration, calibration_labels)
    for value, score, label in zip(p, scores, labels, strict=True):
        same = calibration[calibration_labels == label]
        assert value == (1 + np.sum(same >= score)) / (len(same) + 1)
    test = PerClassTest(calibration_labels, lambda rows: JointTest(calibration[rows, None]), 1)
    joint, own = test.p_values(scores[:, None], labels)
    assert joint.tolist() == own[:, 0].tolist() == p.tolist()


def test_per_class_every_class_keeps_alpha_where_the_whole_set_does_not() -> None:
    """Class 1 scores higher than class 0: over all labels together it would pay for both."""
    rng, rates, together = np.random.default_rng(8), [], []
    for _ in range(300):
        labels = np.tile([0, 1], 250)
        scores = rng.normal(size=(500, 2)) + 2 * labels[:, None]
        test = PerClassTest(labels[:300], lambda rows, known=scores[:300]: JointTest(known[rows]), 2)
        flagged = test.p_values(scores[300:], labels[300:])[0] <= 0.05
        rates.append([flagged[labels[300:] == label].mean() for label in (0, 1)])
        whole = JointTest(scores[:300]).p_values(scores[300:])[0] <= 0.05
        together.append(whole[labels[300:] == 1].mean())
    standard_error = np.std(rates, axis=0) / np.sqrt(len(rates))
    assert (np.mean(rates, axis=0) <= 0.05 + 2 * standard_error).all()
    assert (np.mean(rates, axis=0) > 0.035).all()
    assert np.mean(together) > 0.08


def test_classes_with_too_few_calibration_samples_are_named_with_the_alpha_they_can_promise() -> None:
    counts = {"planes": 99, "cars": 24, "ships": 0}
    with pytest.raises(ClassesTooSmall, match=r"cars \(24\), ships \(0\)") as refused:
        check_alpha_per_class(0.01, counts)
    assert (refused.value.classes, refused.value.smallest) == (("cars", "ships"), 1.0)
    del counts["ships"]
    with pytest.raises(AlphaTooSmall, match="1/25"):
        check_alpha_per_class(0.01, counts)
    check_alpha_per_class(0.04, counts)


def test_labels_that_do_not_fit_the_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        class_p_values(np.zeros(3), np.zeros(2, np.int64), np.zeros(2), np.zeros(2, np.int64))


def test_auroc_of_small_cases() -> None:
    assert auroc([2, 3], [0, 1]) == 1
    assert auroc([0], [1]) == 0
    assert auroc([1, 1], [1]) == 0.5
    assert auroc([0, 2], [1]) == 0.5
    for positive, negative in (([], [1]), ([1], [])):
        with pytest.raises(ValueError, match="of both kinds"):
            auroc(positive, negative)


@steady
@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_auroc_is_the_share_of_pairs_in_order(positive: list[int], negative: list[int]) -> None:
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auroc(positive, negative) == pytest.approx(sum(pairs) / len(pairs))
