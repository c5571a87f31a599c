"""Calibrating on the candidates: rates of clean ones, and what becomes of poison, under shifts, ties and shares."""

from __future__ import annotations

import numpy as np
import pytest

from models.among import AmongCandidates
from models.bulk import bulk_calibration
from models.calibration import conformal_p_values
from models.combination import COMBINATIONS, panel_test, power_mean

M, N = 1000, 4000
MIX = np.array([[1, 0.8, -0.5, 0], [0, 0.6, 0.3, 0], [0, 0, 0.8, 0], [0, 0, 0, 1]])


def clean(rng: np.random.Generator, count: int, tests: int = 4) -> np.ndarray:
    """Scores of mixed correlation, one heavy-tailed, one of few distinct values."""
    scores = rng.normal(size=(count, 4)) @ MIX
    scores[:, 2] = np.exp(2 * scores[:, 2])
    scores[:, 3] = np.maximum(0, np.round(scores[:, 3] * 2))
    return scores[:, :tests]


def poisoned(rng: np.random.Generator, share: float, seen_by: int) -> tuple[np.ndarray, np.ndarray]:
    scores, is_poison = clean(rng, N), np.arange(N) < share * N
    for test in range(seen_by):
        scores[is_poison, test] = np.quantile(clean(rng, 20_000)[:, test], 0.995) * rng.uniform(1.1, 3, is_poison.sum())
    return scores, is_poison


def rates(
    reference: np.ndarray, scores: np.ndarray, is_poison: np.ndarray, chosen_by: np.ndarray | None = None
) -> tuple[float, float, float]:
    """(found at 5 %, clean flagged at 5 %, clean flagged at 2 %)."""
    among = AmongCandidates(reference, scores, power_mean, chosen_by=chosen_by)
    p = among.amended(conformal_p_values(among.measure(scores), among.calibration), scores)
    found = float((p[is_poison] <= 0.05).mean()) if is_poison.any() else 1.0
    return found, float((p[~is_poison] <= 0.05).mean()), float((p[~is_poison] <= 0.02).mean())


@pytest.mark.parametrize("seen_by", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.1, 0.2])
def test_whatever_the_share_of_poison_it_is_found_and_the_rate_stays_near(share: float, seen_by: int) -> None:
    rng, all_rates = np.random.default_rng(41), []
    for _ in range(5):
        scores, is_poison = poisoned(rng, share, seen_by)
        all_rates.append(rates(clean(rng, M), scores, is_poison))
    found, at_five, at_two = np.mean(all_rates, axis=0)
    assert found > 0.9
    assert 0.02 < at_five < 0.075
    assert at_two < 0.035


def test_what_moves_a_test_as_a_whole_moves_nothing() -> None:
    """Any increasing change of a test's scores, of reference and candidates alike, keeps every p-value."""
    rng = np.random.default_rng(42)
    reference, (scores, is_poison) = clean(rng, M), poisoned(rng, 0.05, 2)
    moved = [
        np.stack([np.exp(s[:, 0]), 5 * s[:, 1] - 3, np.log(s[:, 2]), s[:, 3]], axis=1) for s in (reference, scores)
    ]
    assert rates(*moved, is_poison) == rates(reference, scores, is_poison)


def test_a_test_of_few_values_breaks_one_map_a_test_but_not_this() -> None:
    """Why the measure is mapped and not the scores: the fourth test's bulk cannot be matched by a gain and a power."""
    rng, apart, together = np.random.default_rng(43), [], []
    for _ in range(5):
        reference, scores = clean(rng, M), clean(rng, N)
        reference[:, 3] = np.maximum(0, reference[:, 3] - (rng.random(M) < 0.1))
        mapped = bulk_calibration(reference[:, 3], scores[:, 3]).mapped
        apart.append((conformal_p_values(scores[:, 3], mapped) <= 0.05).mean())
        together.append(rates(reference, scores, np.zeros(N, bool))[1])
    assert np.mean(np.abs(np.array(apart) - 0.05)) > np.mean(np.abs(np.array(together) - 0.05))


def test_a_reference_chosen_for_looking_clean_keeps_the_rate_near() -> None:
    """Those that no test found suspicious when it last looked, which was through other networks: noise lies between."""
    rng, all_rates, beside_it = np.random.default_rng(44), [], []
    chosen_by = np.array([True, True, True, False])
    for _ in range(5):
        scores, is_poison = poisoned(rng, 0.05, 3)
        seen = scores + 2 * rng.normal(size=scores.shape) * np.std(clean(rng, N), axis=0)
        worst = np.max(np.argsort(np.argsort(seen[:, :3], axis=0), axis=0), axis=1)
        reference = scores[(worst < 0.7 * N) & ~is_poison]
        all_rates.append(rates(reference, scores, is_poison, chosen_by=chosen_by))
        beside_it.append((panel_test(reference, "power_mean").p_values(scores[~is_poison])[0] <= 0.05).mean())
    found, at_five, at_two = np.mean(all_rates, axis=0)
    assert found > 0.9
    assert at_five < 0.06
    assert at_two < 0.06
    assert at_five < 0.5 * np.mean(beside_it)


def test_half_of_what_a_chosen_reference_leaves_out_counts_as_clean_the_nearer_first() -> None:
    rng = np.random.default_rng(61)
    scores, is_poison = poisoned(rng, 0.05, 3)
    reference = scores[~is_poison & (scores[:, 0] < np.quantile(scores[:, 0], 0.8))]
    given, chosen = (
        AmongCandidates(reference, scores, power_mean, chosen_by=by) for by in (None, np.array([True] * 3 + [False]))
    )
    p = np.array([0.001, 0.01, 0.02, 0.5, 0.99])
    common = np.tile(np.median(reference, axis=0), (5, 1))
    assert given.clean_left_out == 0
    assert (given.amended(p, common) == p).all()
    out = (conformal_p_values(chosen.measure(scores), chosen.calibration) <= 0.01).mean()
    assert chosen.clean_left_out == pytest.approx(out / 2, abs=0.01)
    assert chosen.amended(p, common)[2:] == pytest.approx(np.minimum(p[2:] + chosen.clean_left_out, 1))
    assert chosen.amended(p, common)[0] == pytest.approx(chosen.clean_left_out / (1 - chosen.clean_left_out))
    near_and_far = common.copy()
    near_and_far[0, :2] = np.quantile(scores[:, :2], 0.99, axis=0)
    near_and_far[1, :2] = scores[:, :2].max(axis=0) + 9
    nearer, farthest = chosen.amended(p, near_and_far)[:2]
    assert farthest == p[1] and 2 * farthest < nearer < chosen.clean_left_out
    common[2:, 3] = 1e9  # what a test that did not choose the reference finds beyond all of it
    assert (chosen.amended(p, common)[2:] == p[2:]).all()


def test_of_what_only_the_choosing_tests_find_no_more_than_twice_the_rate_of_all_is_flagged() -> None:
    """However much of the clean was left out, and the poison, which lies farther, comes before them."""
    rng, chosen_by = np.random.default_rng(62), np.array([True, True, False])
    scores = np.stack([np.exp(rng.normal(size=N)) for _ in range(3)], axis=1)
    is_poison, is_hard = np.arange(N) < 0.05 * N, np.arange(N) >= 0.9 * N
    scores[is_poison, :2] = 200 + rng.normal(size=(is_poison.sum(), 2))
    scores[is_hard, :2] += 40 * np.exp(rng.normal(size=(is_hard.sum(), 2)))
    reference = scores[~is_poison & ~is_hard][:1500]
    among = AmongCandidates(reference, scores, power_mean, chosen_by=chosen_by)
    raw = conformal_p_values(among.measure(scores), among.calibration)
    p = among.amended(raw, scores)
    assert (raw[~is_poison] <= 0.05).mean() > 0.1, "the reference lacks them"
    assert (p[is_poison] <= 0.05).all() and (p[~is_poison] <= 0.05).mean() <= 0.05
    assert 0.035 < (p <= 0.02).mean() <= 0.042


def test_a_detector_speaks_beyond_its_threshold() -> None:
    rng = np.random.default_rng(45)
    scores, _ = poisoned(rng, 0.05, 1)
    among = AmongCandidates(clean(rng, M), scores, COMBINATIONS["joint"])
    for level in (0.01, 0.05, 0.2):
        spoke = among.own_p_values(scores) <= level
        assert (spoke == (scores > among.thresholds(np.full(4, level)))).all()
    assert np.isinf(among.thresholds(np.full(4, 1e-5))).all()


def test_an_image_that_is_compared_with_is_not_counted_twice() -> None:
    """Beyond all compared with lie those left out and the first of those compared with, and they tie."""
    rng = np.random.default_rng(53)
    scores = rng.normal(size=(N, 1))
    among = AmongCandidates(rng.normal(size=(M, 1)), scores, power_mean)
    beyond = np.array([[1e9]])
    compared = round(1 / float(among.own_p_values(beyond)[0, 0])) - 1
    assert np.sum(among.measure(scores) == among.measure(beyond)) == N - compared + 1


@pytest.mark.parametrize("chosen_by", [None, np.array([False, True, True, True, False, False])])
@pytest.mark.parametrize("m", [200, 500, 1000])
@pytest.mark.parametrize("share", [0.02, 0.1])
def test_one_test_of_six_is_heard_however_few_images_calibrate(
    share: float, m: int, chosen_by: np.ndarray | None
) -> None:
    rng, all_rates = np.random.default_rng(48), []
    for _ in range(3):
        scores, is_poison = np.exp(rng.normal(size=(N, 6))), np.arange(N) < share * N
        scores[is_poison, 0] = np.exp(rng.uniform(4, 6, is_poison.sum()))
        all_rates.append(rates(np.exp(rng.normal(size=(m, 6))), scores, is_poison, chosen_by=chosen_by))
    found, at_five, _ = np.mean(all_rates, axis=0)
    assert found > 0.8
    assert at_five < 0.09
    assert (
        at_five > 0.025 or chosen_by is not None
    )  # beside a reference that was chosen, half the poison counts as clean


def test_what_the_choosing_tests_see_beyond_the_reference_comes_back_and_other_tests_findings_do_not() -> None:
    """A fifth of the clean is beyond a reference without the upper half of a test's scores."""
    rng = np.random.default_rng(49)
    scores = rng.normal(size=(N, 3))
    reference = scores[scores[:, 1] < np.median(scores[:, 1])][:M]
    told = rates(reference, scores, np.zeros(N, bool), chosen_by=np.array([False, True, False]))
    untold = rates(reference, scores, np.zeros(N, bool))
    assert told[1] < 0.6 * untold[1]


def test_at_most_three_in_ten_are_left_out() -> None:
    """All candidates lie beyond the reference; still most of them are compared with."""
    rng = np.random.default_rng(50)
    among = AmongCandidates(clean(rng, M), clean(rng, N) + 100, power_mean)
    assert (among.own_p_values(clean(rng, 10) + 1000) == 1 / (0.7 * N + 1)).all()


def test_of_many_candidates_a_part_is_compared_with_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes in turn, every other image of one that scores higher."""
    rng = np.random.default_rng(46)
    scores, reference = clean(rng, N), clean(rng, M)
    scores[::2, :2] += 2
    reference[::2, :2] += 2
    monkeypatch.setattr("models.among.MOST", N // 2)
    _, at_five, _ = rates(reference, scores, np.zeros(N, bool))
    assert 0.02 < at_five < 0.08


def test_what_does_not_fit_is_refused() -> None:
    rng = np.random.default_rng(47)
    with pytest.raises(ValueError, match="too few"):
        AmongCandidates(clean(rng, M), clean(rng, 40), power_mean)
    with pytest.raises(ValueError, match="finite"):
        AmongCandidates(clean(rng, M), np.full((100, 4), np.nan), power_mean)
    with pytest.raises(ValueError, match="weights"):
        AmongCandidates(clean(rng, M), clean(rng, N), power_mean, (1, 2))
