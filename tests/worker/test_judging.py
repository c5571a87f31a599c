"""From scores to flags: the four rules, and that they agree with the arithmetic they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.calibration import AlphaTooSmall, conformal_p_values
from models.specs import SanitiseSpec
from service.errors import UnusableDataset
from worker.judging import judge
from worker.promising import check_rate
from worker.scored import Detectors, Scored

CALIBRATION = np.linspace(0, 1, 99, dtype=np.float32)


def spec(**given: Any) -> SanitiseSpec:
    return SanitiseSpec.model_validate(given)


def test_alpha_flags_what_scores_above_the_trusted_images() -> None:
    found = judge(np.array([0.5, 2.0], np.float32), CALIBRATION, spec(false_quarantine_rate=0.01))
    assert found.flagged.tolist() == [False, True]
    assert found.p_values[1] == pytest.approx(0.01)
    assert (found.rule, found.rates_are, found.alpha) == ("conformal", "held", 0.01)


def test_less_than_the_calibration_can_show_is_refused() -> None:
    with pytest.raises(AlphaTooSmall):
        judge(np.zeros(1, np.float32), CALIBRATION, spec(false_quarantine_rate=0.009))


def test_a_fixed_threshold_promises_nothing_but_says_what_it_does() -> None:
    found = judge(np.array([0.5, 0.95], np.float32), CALIBRATION, spec(threshold=0.9))
    assert found.flagged.tolist() == [False, True]
    assert (found.rates_are, found.alpha) == ("estimated", None)
    assert found.calibration_flagged["share"] == pytest.approx((CALIBRATION > 0.9).mean())
    assert found.calibration_flagged["low"] < found.calibration_flagged["share"] < found.calibration_flagged["high"]


def test_an_inferred_threshold_passes_its_percentage_of_the_reference() -> None:
    found = judge(CALIBRATION, CALIBRATION, spec(infer_threshold={"percentage": 90}))
    assert found.flagged.mean() == pytest.approx(0.1, abs=0.011)


SCORES = arrays(np.float32, st.integers(20, 80), elements=st.floats(0, 10, width=32))


@settings(max_examples=100, deadline=None, database=None)
@given(SCORES, SCORES, st.floats(0.06, 0.5))
def test_threshold_and_p_values_tell_the_same(scores: Any, calibration: Any, alpha: float) -> None:
    found = judge(scores, calibration, spec(false_quarantine_rate=alpha))
    assert (found.flagged == (conformal_p_values(scores, calibration) <= alpha)).all()
    assert (found.flags(scores) == found.flagged).all()


def test_of_clean_images_alpha_are_flagged_on_average() -> None:
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(300):
        sample = rng.normal(size=400).astype(np.float32)
        rates.append(judge(sample[200:], sample[:200], spec(false_quarantine_rate=0.05)).flagged.mean())
    assert np.mean(rates) <= 0.05 + 2 * np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) > 0.035


def panel_of(rng: np.random.Generator, rows: int) -> Any:
    common = rng.normal(size=(rows, 1))
    return (0.6 * common + 0.8 * rng.normal(size=(rows, 3))).astype(np.float32)


NAMED = Detectors(("residual_energy", "label_loss", "neighbours"))


def test_a_panel_keeps_alpha_and_every_flag_names_who_spoke() -> None:
    rng, rates = np.random.default_rng(1), []
    for _ in range(300):
        found = judge(panel_of(rng, 200), panel_of(rng, 400), spec(false_quarantine_rate=0.05), NAMED)
        rates.append(found.flagged.mean())
        assert (found.spoke.any(axis=1) == found.flagged).all()
        assert (found.flags(found.candidates.scores) == found.flagged).all()
    assert np.mean(rates) <= 0.05 + 2 * np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) > 0.04


def test_the_detector_that_saw_the_poison_is_the_one_that_spoke() -> None:
    rng = np.random.default_rng(2)
    scores = panel_of(rng, 300)
    scores[:20, 1] += 9
    scores[20:30, 2] += 9
    calibration = {"false_quarantine_rate": 0.02, "combine": "joint"}
    found = judge(scores, panel_of(rng, 999), spec(calibration=calibration), NAMED)
    assert found.flagged[:30].all()
    assert found.spoke[:20, 1].all() and found.spoke[20:30, 2].all()
    assert found.spoke[:30].mean(axis=0)[0] < 0.2
    beyond = found.candidates.scores > found.thresholds.astype(np.float32)
    assert (beyond.any(axis=1) == found.flagged).all()
    assert found.threshold is None
    assert found.filter_threshold == found.thresholds[0]


@pytest.mark.parametrize("combine", ["auto", "power_mean", "simes", "cauchy"])
def test_other_combinations_name_who_spoke_too(combine: str) -> None:
    rng = np.random.default_rng(3)
    calibration = {"false_quarantine_rate": 0.05, "combine": combine}
    found = judge(panel_of(rng, 2000), panel_of(rng, 999), spec(calibration=calibration), NAMED)
    assert 0.02 < found.flagged.mean() < 0.09
    assert (found.spoke.any(axis=1) == found.flagged).all()


def test_detectors_that_agree_on_an_image_are_all_named() -> None:
    rng, named = np.random.default_rng(6), Detectors(("residual_energy", "label_loss", "poison_gain", "unchecked_loss"))
    calibration, scores = (rng.normal(size=(999, 4)).astype(np.float32) for _ in range(2))
    scores[:200, 1:3] += 2.2
    found = judge(scores, calibration, spec(false_quarantine_rate=0.02), named)
    assert found.test.way == "power_mean"
    flagged = np.flatnonzero(found.flagged[:200])
    assert len(flagged) > 80
    assert found.spoke[flagged, 1:3].any(axis=1).mean() > 0.95
    assert found.spoke[flagged, 1:3].all(axis=1).mean() > 0.4
    assert found.spoke[flagged][:, [0, 3]].mean() < 0.1
    own = found.own_p_values(slice(None))
    assert (found.spoke[found.flagged] >= (own[found.flagged] <= 0.02)).all()
    assert not found.spoke[~found.flagged].any()


def test_a_false_discovery_rate_flags_many_where_poison_is_and_says_what_it_cannot_find() -> None:
    rng = np.random.default_rng(4)
    scores = rng.normal(size=1000).astype(np.float32)
    calibration = rng.normal(size=999).astype(np.float32)
    nothing = judge(scores, calibration, spec(false_discovery_rate=0.1))
    scores[:100] += 9
    found = judge(scores, calibration, spec(false_discovery_rate=0.1))
    assert found.flagged[:100].all()
    assert found.flagged.sum() == pytest.approx(110, abs=8)
    assert (found.rule, found.rate, found.alpha, found.rates_are) == ("false_discovery", 0.1, None, "held")
    assert found.smallest_share == pytest.approx(0.01)
    assert (found.flagged == (scores > found.threshold)).all()
    assert (found.flags(scores) == found.flagged).all()
    assert nothing.flagged.sum() <= 5
    assert nothing.threshold is not None and np.isfinite(nothing.threshold)
    assert (nothing.flags(scores) == (scores > nothing.threshold)).all() or nothing.flagged.any()
    with pytest.raises(AlphaTooSmall):
        judge(scores, calibration[:5], spec(false_discovery_rate=0.1))


def test_by_class_a_class_is_judged_by_its_own_images() -> None:
    rng, labels = np.random.default_rng(5), np.tile([0, 1], 500)
    scores, calibration = (rng.normal(size=(1000, 2)) + 4 * labels[:, None] for _ in range(2))
    scores[0] = 4.5  # plain for class 1, far off for class 0
    calibrated = Scored(calibration.astype(np.float32), labels)
    asked = spec(calibration={"false_quarantine_rate": 0.01, "per_class": True, "combine": "joint"})
    found = judge(Scored(scores.astype(np.float32), labels), calibrated, asked)
    assert found.flagged[0]
    assert not judge(scores.astype(np.float32), calibrated, spec(false_quarantine_rate=0.01)).flagged[0]
    assert (found.spoke.any(axis=1) == found.flagged).all()
    assert found.smallest_alpha == pytest.approx(1 / 501)
    assert found.calibration_flagged["share"] == pytest.approx(0.01, abs=0.005)
    assert (found.flags(scores.astype(np.float32), labels) == found.flagged).all()
    assert found.threshold is None


def test_a_class_too_small_to_promise_alpha_is_named() -> None:
    labels = np.repeat([0, 1], [90, 9])
    calibration = Scored(CALIBRATION, labels)
    asked = spec(false_quarantine_rate=0.05, per_class=True)
    with pytest.raises(AlphaTooSmall, match=r"ship \(9\)"):
        judge(Scored(CALIBRATION, labels), calibration, asked, Detectors(("score",), class_names=("car", "ship")))
    judge(Scored(CALIBRATION[:5], labels[:5]), calibration, asked)
    with pytest.raises(ValueError, match="labels"):
        judge(CALIBRATION, calibration, asked)


def test_shift_is_told_and_calibrating_on_the_candidates_answers_it() -> None:
    """Candidates of another camera score 1.6 times the logarithm's width higher; a tenth are poison beyond a gap."""
    rng = np.random.default_rng(6)
    calibration = np.exp(rng.normal(size=(1000, 2))).astype(np.float32)
    scores = np.exp(1.6 + 1.2 * rng.normal(size=(4000, 2))).astype(np.float32)
    scores[:400, 1] = np.exp(1.6 + 1.2 * 6)
    for how, low, high in (("reference", 0.2, 1.0), ("candidates", 0.01, 0.1)):
        asked = spec(calibration={"false_quarantine_rate": 0.05, "calibrate_on": how})
        found = judge(scores, calibration, asked)
        assert found.flagged[:400].all()
        assert low < found.flagged[400:].mean() < high
        assert found.rates_are == "estimated"
        assert found.shift is not None and found.shift.found
        assert (found.test.among is None) == (how == "reference")
        assert (found.flags(scores) == found.flagged).all()
    same = np.exp(rng.normal(size=(4000, 2))).astype(np.float32)
    unshifted = judge(same, calibration, spec(false_quarantine_rate=0.05))
    assert unshifted.rates_are == "held"
    assert unshifted.shift is not None and not unshifted.shift.found


def test_too_few_candidates_to_calibrate_on_are_refused() -> None:
    with pytest.raises(UnusableDataset, match="at least 50"):
        judge(CALIBRATION[:20], CALIBRATION, spec(false_quarantine_rate=0.05, calibrate_on="candidates"))


def test_a_threshold_judges_the_filter_alone() -> None:
    scores = np.array([[0.5, 99.0], [0.95, 0.0]], np.float32)
    found = judge(scores, np.stack([CALIBRATION, CALIBRATION], axis=1), spec(threshold=0.9))
    assert found.flagged.tolist() == [False, True]
    assert found.spoke.tolist() == [[False, False], [True, False]]
    assert found.p_values.tolist() == found.own_p_values(slice(None))[:, 0].tolist()
    assert found.flags(scores).tolist() == [False, True]


def grouped(objects: int, rng: np.random.Generator, *, each: int = 4) -> Scored:
    """Images of an object that score alike, under two detectors."""
    groups = np.repeat(np.arange(objects), each)
    scores = rng.normal(size=(objects, 2))[groups] + 0.1 * rng.normal(size=(len(groups), 2))
    return Scored(scores.astype(np.float32), groups % 2, groups)


def test_images_of_one_object_count_as_one() -> None:
    rng, rates = np.random.default_rng(31), []
    for _ in range(150):
        calibration, new = grouped(60, rng), grouped(400, rng, each=1)
        ways = (
            judge(new, calibration, spec(false_quarantine_rate=0.02, count_by=unit)) for unit in ("groups", "images")
        )
        rates.append([judged.flagged.mean() for judged in ways])
    mean, error = np.mean(rates, axis=0), np.std(rates, axis=0) / np.sqrt(len(rates))
    assert mean[0] <= 0.02 + 2 * error[0]
    assert mean[1] > 0.02 + 4 * error[1]
    judged = judge(new, calibration, spec(false_quarantine_rate=0.02))
    assert (judged.test.groups, judged.num_calibration, judged.smallest_alpha) == (60, 240, 1 / 61)
    assert judged.rates_are == "held"
    alone = judge(new, calibration, spec(false_quarantine_rate=0.02, count_by="images"))
    assert (alone.test.groups, alone.smallest_alpha, alone.rates_are) == (None, 1 / 241, "estimated")


def test_groups_of_one_image_each_are_no_groups() -> None:
    rng = np.random.default_rng(32)
    calibration, new = grouped(200, rng, each=1), grouped(50, rng, each=1)
    judged = judge(new, calibration, spec(false_quarantine_rate=0.02))
    assert (judged.test.groups, judged.rates_are) == (None, "held")
    ungrouped = judge(new, Scored(calibration.scores, calibration.labels), spec(false_quarantine_rate=0.02))
    assert judged.p_values.tolist() == ungrouped.p_values.tolist()


def test_a_rate_that_so_few_groups_cannot_promise_is_refused_with_the_way_out() -> None:
    rng = np.random.default_rng(33)
    calibration, new = grouped(60, rng), grouped(50, rng, each=1)
    with pytest.raises(AlphaTooSmall, match=r"60 groups of calibration images.*1/61.*count_by \"images\"") as refused:
        judge(new, calibration, spec(false_quarantine_rate=0.01))
    with pytest.raises(AlphaTooSmall, match="60 groups"):
        check_rate(calibration, new, spec(false_quarantine_rate=0.01).calibration, ())
    assert refused.value.smallest == 1 / 61
    assert judge(new, calibration, spec(false_quarantine_rate=0.01, count_by="images")).flagged.any()
    with pytest.raises(AlphaTooSmall, match=r"owls \(30\), cats \(30\) have fewer than the 49 groups"):
        check_rate(calibration, new, spec(false_quarantine_rate=0.02, per_class=True).calibration, ("owls", "cats"))


def test_by_class_a_class_counts_its_own_groups() -> None:
    rng = np.random.default_rng(34)
    calibration, new = grouped(240, rng), grouped(100, rng, each=1)
    judged = judge(new, calibration, spec(false_quarantine_rate=0.02, per_class=True))
    assert (judged.test.fewest, judged.test.most, judged.test.groups) == (120, 120, 240)
    of_class = [
        judge(new, calibration.at(np.flatnonzero(calibration.labels == c)), spec(false_quarantine_rate=0.02))
        for c in (0, 1)
    ]
    expected = [of_class[label].p_values[row] for row, label in enumerate(new.labels_needed())]
    assert judged.p_values.tolist() == expected
    assert (judged.thresholds == np.max([each.thresholds for each in of_class], axis=0)).all()


def candidates_of(rng: np.random.Generator, count: int, tests: int = 6) -> Scored:
    scores = np.exp(rng.normal(size=(count, tests)))
    scores[: count // 20, 0] = np.exp(rng.uniform(4, 6, count // 20))
    return Scored(scores.astype(np.float32), np.arange(count) % 2, np.arange(count) // 2)


PANEL = Detectors(("residual_energy", "label_loss", "unchecked_loss", "spectral_signature", "recurring_patch", "x"))


@pytest.mark.parametrize("sifted", [False, True])
@pytest.mark.parametrize(
    ("tests", "rule"),
    [
        (6, {"false_quarantine_rate": 0.05}),
        (6, {"false_quarantine_rate": 0.05, "per_class": True}),
        (6, {"false_quarantine_rate": 0.05, "combine": "joint"}),
        (6, {"false_discovery_rate": 0.1}),
        (1, {"false_quarantine_rate": 0.05}),
        (6, {"threshold": 15.0}),
        (6, {"infer_threshold": {"percentage": 99}}),
    ],
)
def test_every_rule_on_the_candidates(tests: int, rule: dict[str, Any], sifted: bool) -> None:
    """What is flagged is poison and about as many clean ones as asked, and what is published agrees with it."""
    rng = np.random.default_rng(51)
    candidates = candidates_of(rng, 4000, tests)
    reference = Scored(
        np.exp(rng.normal(size=(1000, tests))).astype(np.float32), np.arange(1000) % 2, np.arange(1000) // 4
    )
    panel = Detectors(PANEL.names[:tests])
    asked = {} if sifted else {"calibrate_on": "candidates"}
    judged = judge(candidates, reference, spec(calibration={**rule, **asked}), panel, sifted=sifted)
    is_poison = np.arange(4000) < 200
    assert judged.flagged[is_poison].mean() > 0.9
    assert judged.flagged[~is_poison].mean() < 0.08
    assert judged.rates_are == "estimated"
    assert (judged.test.among is not None) == (judged.rate is not None)
    assert (judged.flags(candidates.scores, candidates.labels) == judged.flagged).all()
    if judged.threshold is not None:
        assert ((judged.scores > judged.threshold) == judged.flagged).all()
    if "false_quarantine_rate" in rule:
        flagged, chosen = judged.calibration_flagged["share"], judged.test.among
        assert flagged < 0.05 if chosen and chosen.clean_left_out else flagged == pytest.approx(0.05, abs=0.01)
        beyond = candidates.scores > judged.thresholds
        assert (judged.spoke >= (beyond & judged.flagged[:, None])).all()
    assert judged.test.groups == (None if sifted else 250)


def test_what_chose_a_sifted_reference_is_not_taken_at_its_word() -> None:
    """The choosing tests' larger scores are missing in it: who is told flags fewer clean candidates."""
    rng = np.random.default_rng(52)
    candidates = np.exp(rng.normal(size=(4000, 6))).astype(np.float32)
    least = np.argsort(np.argsort(candidates[:, 1:4], axis=0), axis=0).max(axis=1)
    reference = candidates[np.argsort(least)[:1500]]
    asked = spec(calibration={"false_quarantine_rate": 0.05, "calibrate_on": "candidates"})
    told, untold = (
        judge(candidates, reference, asked, PANEL, sifted=sifted).flagged.mean() for sifted in (True, False)
    )
    assert told < 0.7 * untold
