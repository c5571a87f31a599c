"""Uncertainty against closed forms, and abstention against its promise on clean and foreign images."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from models.abstention import (
    AbstentionCalibration,
    InvalidCalibration,
    calibrate_abstention,
    class_profiles,
    decide,
    dropout_masks,
    uncertainty,
)
from models.calibration import AlphaTooSmall, realised_rate_bounds
from models.reliability import fit_temperature

Draw = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.float64]]


def images(rng: np.random.Generator, n: int, classes: int = 10, passes: int = 6) -> Draw:
    """Softmaxes of an imperfect model, labels of unequal frequency, detector scores that go with the uncertainty."""
    labels = np.minimum(rng.geometric(0.2, n) - 1, classes - 1)
    sharpness = rng.gamma(4.0, 1.5, n)
    logits = rng.normal(size=(passes, n, classes)) + (rng.normal(size=(n, classes)))
    logits[:, np.arange(n), labels] += sharpness
    odds = np.exp(logits - logits.max(axis=2, keepdims=True))
    return odds / odds.sum(axis=2, keepdims=True), labels, rng.gamma(2.0, 1.0, n) - 0.3 * sharpness


def test_masks_are_scaled_reproducible_and_drop_their_share() -> None:
    masks = dropout_masks(64, 500, 0.3, seed=7)
    assert masks.shape == (64, 500)
    assert masks.dtype == np.float32
    assert set(np.unique(masks)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs((masks == 0).mean() - 0.3) < 4 * np.sqrt(0.21 / masks.size)
    assert (masks == dropout_masks(64, 500, 0.3, seed=7)).all()
    assert (masks != dropout_masks(64, 500, 0.3, seed=8)).any()
    assert (dropout_masks(3, 5, 0.0, seed=0) == 1).all()


def test_masks_are_the_same_on_every_machine() -> None:
    """Frozen: a served model must drop the features that its calibration dropped."""
    assert (dropout_masks(2, 8, 0.5, seed=0) / 2).astype(int).tolist() == FROZEN_MASKS


FROZEN_MASKS = [[1, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 0, 1, 0]]


@pytest.mark.parametrize("wrong", [(0, 5, 0.5), (5, 0, 0.5), (5, 5, 1.0), (5, 5, -0.1)])
def test_masks_that_make_no_sense_are_refused(wrong: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="no masks"):
        dropout_masks(*wrong, seed=0)


def test_uncertainty_of_two_passes_that_contradict_each_other() -> None:
    """Two certain passes for different classes: all uncertainty is disagreement."""
    found = uncertainty(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), np.array([[0.9, 0.1], [0.2, 0.8]]))
    assert found.entropy[0] == pytest.approx(np.log(2))
    assert found.mutual_information[0] == pytest.approx(np.log(2))
    assert found.kl[0] == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))


def test_uncertainty_of_passes_that_agree() -> None:
    p = np.array([0.7, 0.2, 0.1])
    found = uncertainty(np.tile(p, (5, 1, 1)), np.tile(p, (3, 1)))
    assert found.entropy[0] == pytest.approx(stats.entropy(p))
    assert found.mutual_information[0] == pytest.approx(0, abs=1e-12)
    assert found.kl[0] == pytest.approx(0, abs=1e-12)
    assert found.mean_probabilities[0] == pytest.approx(p)


def test_kl_agrees_with_scipy() -> None:
    probabilities, labels, _ = images(np.random.default_rng(0), 50)
    found = uncertainty(probabilities, class_profiles(probabilities.mean(axis=0), labels))
    profiles = class_profiles(probabilities.mean(axis=0), labels)
    mean = probabilities.mean(axis=0)
    assert found.kl == pytest.approx(np.array([stats.entropy(p, profiles[p.argmax()]) for p in mean]))


def test_profiles_of_many_images_are_their_means() -> None:
    rng = np.random.default_rng(1)
    mean, labels = rng.dirichlet(np.ones(4), size=40_000), rng.integers(0, 4, 40_000)
    profiles = class_profiles(mean, labels)
    for label in range(4):
        assert profiles[label] == pytest.approx(mean[labels == label].mean(axis=0), abs=1e-3)


def test_profile_of_a_class_without_images_is_like_the_others_and_has_no_zero() -> None:
    mean = np.eye(5)[[0, 1, 2, 0, 1, 2]]
    profiles = class_profiles(mean, np.array([0, 1, 2, 0, 1, 2]))
    assert profiles.sum(axis=1) == pytest.approx(1)
    assert (profiles > 0).all()
    assert (profiles.argmax(axis=1) == np.arange(5)).all()
    assert profiles[4, 4] > 0.9, "the classes that are there are certain"
    assert class_profiles(np.empty((0, 3)), np.empty(0, dtype=np.int64)).argmax(axis=1).tolist() == [0, 1, 2]


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="labels under 3"):
        class_profiles(np.full((2, 3), 1 / 3), np.array([0, 3]))


@pytest.mark.parametrize(("detector", "given_profiles"), [(True, False), (False, True)])
def test_clean_images_are_refused_at_alpha_neither_more_nor_less(detector: bool, given_profiles: bool) -> None:
    """Over 250 draws of calibration and test images, the refused share is that of the beta-binomial law."""
    rng, n, n_test, draws = np.random.default_rng(5), 265, 80, 250
    training, training_labels, _ = images(rng, 300)
    profiles = class_profiles(training.mean(axis=0), training_labels) if given_profiles else None
    rates = {alpha: np.empty(draws) for alpha in (0.01, 0.05, 0.1)}
    m = n if given_profiles else n - 66
    for draw in range(draws):
        probabilities, labels, scores = images(rng, n + n_test)
        calibration = calibrate_abstention(
            probabilities[:, :n], labels[:n], scores[:n] if detector else None, seed=draw, profiles=profiles
        )
        assert calibration.n == m
        for alpha, found in rates.items():
            decision = decide(probabilities[:, n:], scores[n:] if detector else None, calibration, alpha=alpha)
            found[draw] = decision.abstained.mean()
    for alpha, found in rates.items():
        follows_the_law(found, alpha, m, n_test)


def follows_the_law(rates: npt.NDArray[np.float64], alpha: float, m: int, n_test: int) -> None:
    """Refused shares of n_test images, one for each draw of m calibration images."""
    low, high = realised_rate_bounds(alpha, m, n_test)
    flagged, inside = int(alpha * (m + 1) + 1e-9), int(((low <= rates) & (rates <= high)).sum())
    law = stats.betabinom(n_test, flagged, m + 1 - flagged)
    spread = 4 * law.std() / n_test / np.sqrt(len(rates))
    assert abs(rates.mean() - law.mean() / n_test) < spread
    assert rates.mean() <= alpha + spread
    assert stats.binomtest(inside, len(rates), 0.95, alternative="less").pvalue > 1e-3


def test_alpha_holds_where_most_classes_have_no_calibration_image() -> None:
    rng, rates = np.random.default_rng(6), []
    for draw in range(200):
        probabilities, labels, scores = images(rng, 120 + 60, classes=43)
        calibration = calibrate_abstention(probabilities[:, :120], labels[:120], scores[:120], seed=draw)
        rates.append(decide(probabilities[:, 120:], scores[120:], calibration, alpha=0.05).abstained.mean())
    law = stats.betabinom(60, 4, 91 - 4)
    assert abs(np.mean(rates) - law.mean() / 60) < 4 * law.std() / 60 / np.sqrt(200)


def test_foreign_and_perturbed_images_are_refused_with_the_reason() -> None:
    rng = np.random.default_rng(7)
    probabilities, labels, scores = images(rng, 400)
    calibration = calibrate_abstention(probabilities, labels, scores, seed=0)
    clean, _, _ = images(np.random.default_rng(8), 30)
    certain = np.full((6, 1, 10), 0.002)
    certain[:, :, 3] = 0.982
    perturbed = decide(np.tile(certain, (1, 30, 1)), np.full(30, 99.0), calibration, alpha=0.01)
    assert perturbed.abstained.all()
    assert set(perturbed.reason) == {"perturbed"}
    assert perturbed.p_perturbed is not None
    assert (perturbed.p_perturbed == 1 / 301).all()
    foreign = np.full_like(clean, 0.1)
    foreign[:, :, 2] += 1e-6
    uncertain = decide(foreign, np.full(30, float(np.median(scores))), calibration, alpha=0.05)
    assert uncertain.abstained.all()
    assert set(uncertain.reason) == {"uncertain"}
    assert uncertain.label_index.tolist() == [2] * 30
    calm = decide(np.tile(certain, (1, 30, 1)), np.full(30, float(np.median(scores))), calibration, alpha=0.05)
    assert not calm.abstained.any()
    assert set(calm.reason) == {None}


def test_a_decision_does_not_depend_on_the_batch() -> None:
    probabilities, labels, scores = images(np.random.default_rng(9), 300)
    calibration = calibrate_abstention(probabilities[:, :200], labels[:200], scores[:200], seed=0)
    together = decide(probabilities[:, 200:], scores[200:], calibration, alpha=0.1)
    for i in range(100):
        alone = decide(probabilities[:, 200 + i : 201 + i], scores[200 + i : 201 + i], calibration, alpha=0.1)
        assert alone.p_value[0] == together.p_value[i]
        assert alone.reason[0] == together.reason[i]
        assert alone.uncertainty.kl[0] == together.uncertainty.kl[i]
    assert (together.abstained == (together.p_value <= 0.1)).all()
    assert 0 < together.abstained.sum() < 100


@pytest.mark.parametrize("detector", [True, False])
def test_json_round_trip_is_exact_and_decides_the_same(detector: bool) -> None:
    probabilities, labels, scores = images(np.random.default_rng(10), 200)
    given = scores.astype(np.float32) if detector else None
    calibration = calibrate_abstention(probabilities, labels, given, seed=3)
    again = AbstentionCalibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert again.profiles.tobytes() == calibration.profiles.tobytes()
    assert again.kl_scores.tobytes() == calibration.kl_scores.tobytes()
    assert again.to_json() == calibration.to_json()
    before, after = (decide(probabilities, given, c, alpha=0.05) for c in (calibration, again))
    assert before.p_value.tobytes() == after.p_value.tobytes()
    assert before.reason == after.reason


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"profiles": [[1.0]], "kl_scores": [0.1]},
        {"profiles": [[0.5, 0.5], [0.0, 1.0]], "kl_scores": [0.1], "detector_scores": None},
        {"profiles": [[0.5, 0.5], [0.5]], "kl_scores": [0.1], "detector_scores": None},
        {"profiles": [[1.0]], "kl_scores": [0.1, 0.2], "detector_scores": [0.1]},
        {"profiles": [[1.0]], "kl_scores": [float("nan")], "detector_scores": None},
        {"profiles": [[1.0]], "kl_scores": [], "detector_scores": None},
    ],
)
def test_malformed_calibration_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(InvalidCalibration):
        AbstentionCalibration.from_json(broken)


def test_what_calibration_cannot_promise_is_refused() -> None:
    probabilities, labels, _ = images(np.random.default_rng(11), 100)
    calibration = calibrate_abstention(probabilities, labels, None, seed=0)
    assert calibration.n == 75
    with pytest.raises(AlphaTooSmall) as refused:
        decide(probabilities, None, calibration, alpha=0.01)
    assert refused.value.smallest == calibration.smallest_alpha == 1 / 76
    with pytest.raises(ValueError, match="exactly where"):
        decide(probabilities, np.zeros(100), calibration, alpha=0.1)
    with pytest.raises(InvalidCalibration, match="two or more"):
        calibrate_abstention(probabilities[:, :1], labels[:1], None, seed=0)
    with pytest.raises(InvalidCalibration):
        calibrate_abstention(probabilities, labels, np.zeros(3), seed=0)


def test_different_seeds_set_different_images_aside() -> None:
    probabilities, labels, _ = images(np.random.default_rng(12), 100)
    first, again, other = (calibrate_abstention(probabilities, labels, None, seed=s).kl_scores for s in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()


def test_further_scores_of_the_student_speak_and_alpha_still_holds() -> None:
    rng, rates = np.random.default_rng(13), []
    for draw in range(100):
        probabilities, labels, scores = images(rng, 265 + 80)
        far = {"unfamiliar": scores**2 + rng.normal(size=345)}
        calibration = calibrate_abstention(
            probabilities[:, :265],
            labels[:265],
            scores[:265],
            seed=draw,
            student_scores={"unfamiliar": far["unfamiliar"][:265]},
        )
        assert calibration.reasons == ("perturbed", "uncertain", "unfamiliar")
        found = decide(
            probabilities[:, 265:],
            scores[265:],
            calibration,
            alpha=0.05,
            student_scores={"unfamiliar": far["unfamiliar"][265:]},
        )
        rates.append(found.abstained.mean())
    law = stats.betabinom(80, 10, 200 - 10)
    assert abs(np.mean(rates) - law.mean() / 80) < 4 * law.std() / 80 / np.sqrt(100)
    with pytest.raises(ValueError, match="exactly where"):
        decide(probabilities, scores, calibration, alpha=0.05)
    foreign = decide(
        probabilities[:, :5],
        np.full(5, float(np.median(scores))),
        calibration,
        alpha=0.05,
        student_scores={"unfamiliar": np.full(5, 1e3)},
    )
    assert set(foreign.reason) == {"unfamiliar"}
    again = AbstentionCalibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert again.to_json() == calibration.to_json()


def test_per_class_the_rate_holds_for_each_answer() -> None:
    """Answers of class 0 score higher by nature: all together they bear the refusals, class by class they do not."""
    rng = np.random.default_rng(14)

    def draw(n: int) -> Draw:
        probabilities, labels, scores = images(rng, n, classes=3)
        answers = probabilities.mean(axis=0).argmax(axis=1)
        return probabilities, labels, scores + 5.0 * (answers == 0)

    rates = {True: [], False: []}  # type: dict[bool, list[float]]
    for seed in range(30):
        probabilities, labels, scores = draw(1200)
        for per_class in (True, False):
            calibration = calibrate_abstention(
                probabilities[:, :800], labels[:800], scores[:800], seed=seed, per_class=per_class
            )
            found = decide(probabilities[:, 800:], scores[800:], calibration, alpha=0.1)
            assert found.p_class is not None
            others = found.label_index != 0
            rates[per_class].append(float(found.abstained[others].mean()))
    assert abs(np.mean(rates[True]) - 0.1) < 0.02
    assert np.mean(rates[False]) < 0.08


def test_an_answer_with_too_few_images_to_promise_alpha_is_judged_by_all() -> None:
    probabilities, labels, _ = images(np.random.default_rng(15), 400, classes=40)
    calibration = calibrate_abstention(probabilities, labels, None, seed=0, per_class=True)
    found = decide(probabilities, None, calibration, alpha=0.02)
    few = calibration.answer_counts[found.label_index] < 49
    assert few.any()
    whole = decide(probabilities, None, calibrate_abstention(probabilities, labels, None, seed=0), alpha=0.02)
    assert np.array_equal(found.p_value[few], whole.p_value[few])
    assert whole.p_class is not None
    assert np.array_equal(found.p_value[~few], whole.p_class[~few])


def test_told_probabilities_are_at_the_calibrated_temperature() -> None:
    probabilities, labels, _ = images(np.random.default_rng(16), 2000)
    temperature = fit_temperature(probabilities.mean(axis=0), labels)
    calibration = calibrate_abstention(probabilities, labels, None, seed=0, temperature=temperature)
    assert temperature != 1.0
    found = decide(probabilities, None, calibration, alpha=0.05)
    assert np.array_equal(found.probabilities.argmax(axis=1), found.label_index)

    def likelihood(p: npt.NDArray[np.float64]) -> float:
        return float(np.log(p[np.arange(2000), labels]).mean())

    assert likelihood(found.probabilities) > likelihood(found.uncertainty.mean_probabilities)
