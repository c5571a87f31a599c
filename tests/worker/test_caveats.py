"""What a report says before anything else, and when it has nothing to say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.specs import CalibrationSpec, SanitiseSpec
from worker.calibrating import Detectors, Scored
from worker.caveats import caveats
from worker.judging import Judgement, judge


def judged(**calibration: Any) -> Judgement:
    scores = np.linspace(0, 1, 200, dtype=np.float32)[:, None]
    spec = SanitiseSpec(calibration=CalibrationSpec(**calibration))
    return judge(Scored(scores), Scored(scores), spec, Detectors(("residual_energy",), None))


@pytest.mark.parametrize("told_apart", [None, 0.75, 0.999])
def test_a_filter_that_tells_apart_under_a_rate_needs_no_word(told_apart: float | None) -> None:
    assert caveats(judged(false_quarantine_rate=0.05), told_apart) == []


@pytest.mark.parametrize("told_apart", [0.03, 0.497, 0.749])
def test_a_filter_that_learnt_nothing_is_told_with_its_figure(told_apart: float) -> None:
    (told,) = caveats(judged(false_quarantine_rate=0.05), told_apart)
    assert "hardly tells" in told and f"{told_apart:.3f}" in told and "filter.fit.peak_lr" in told


def test_a_fixed_threshold_comes_with_what_it_flags() -> None:
    first, second = caveats(judged(threshold=0.9), 0.5)
    assert "hardly tells" in first
    assert "promises no rate" in second and "n = 200" in second
