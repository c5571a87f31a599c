"""From scores to flags: the three rules, and that they agree with the arithmetic they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.calibration import AlphaTooSmall, conformal_p_values
from models.specs import SanitiseSpec
from worker.judging import judge

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
