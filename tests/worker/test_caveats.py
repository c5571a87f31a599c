"""What a report says before anything else, and when it has nothing to say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.specs import CalibrationSpec, SanitiseSpec
from worker.caveats import caveats, thin_classes, unlike_and_kept
from worker.judging import Judgement, judge
from worker.scored import Detectors, Scored


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


def judged_by_class(trusted_of_the_second: int, lost_of_the_second: int) -> Judgement:
    """1,000 trusted images, of which so many are of the second class; so many of its 50 candidates are flagged."""
    calibration = np.random.default_rng(0).normal(size=(1000, 1)).astype(np.float32)
    calibration_labels = np.where(np.arange(1000) < trusted_of_the_second, 1, 0)
    labels = np.repeat([0, 1], [950, 50])
    scores = np.random.default_rng(1).normal(size=(1000, 1)).astype(np.float32).clip(-2, 1)
    scores[950 : 950 + lost_of_the_second] = 9
    spec = SanitiseSpec(calibration=CalibrationSpec(false_quarantine_rate=0.02))
    given = Scored(scores, labels), Scored(calibration, calibration_labels)
    return judge(*given, spec, Detectors(("label_loss",), None))


def test_a_class_that_the_reference_hardly_shows_and_that_lost_much_is_told() -> None:
    (told,) = thin_classes(judged_by_class(6, 28), ["stop", "bend"])
    assert "class bend, 28 of 50" in told and "56%" in told and "6 images only" in told


@pytest.mark.parametrize(("trusted", "lost"), [(30, 28), (6, 1), (6, 0)])
def test_a_class_that_is_well_shown_or_lost_little_is_not(trusted: int, lost: int) -> None:
    assert thin_classes(judged_by_class(trusted, lost), ["stop", "bend"]) == []


def judged_beside_a_sifted_reference(rate: float) -> Judgement:
    """Of 4,000 candidates 400 are uncommon to both tests through which the reference was chosen, and 200 poison."""
    rng = np.random.default_rng(62)
    scores = np.exp(rng.normal(size=(4000, 3)))
    scores[:200, :2] = 200 + rng.normal(size=(200, 2))
    scores[3600:, :2] += 40 * np.exp(rng.normal(size=(400, 2)))
    panel = Detectors(("label_loss", "unchecked_loss", "residual_energy"), None)
    spec = SanitiseSpec(calibration=CalibrationSpec(false_quarantine_rate=rate))
    given = Scored(scores.astype(np.float32)), Scored(scores[200:1700].astype(np.float32))
    return judge(*given, spec, panel, sifted=True)


def test_what_a_sifted_reference_lacks_and_the_rate_keeps_is_told_with_the_rate_that_would_not() -> None:
    judgement = judged_beside_a_sifted_reference(0.02)
    (told,) = unlike_and_kept(judgement)
    unlike = judgement.test.unlike_any(judgement.candidates)
    assert f"{unlike.sum()} images resemble none" in told and "half of them" in told
    assert f"{(unlike & ~judgement.flagged).sum()} of them stay in" in told
    enough = float(told.split("false_quarantine_rate of ")[1].split()[0])
    assert 0.02 < enough < 0.2
    assert unlike_and_kept(judged_beside_a_sifted_reference(enough)) == []


def test_beside_a_given_reference_nothing_is_said_of_what_it_lacks() -> None:
    assert unlike_and_kept(judged(false_quarantine_rate=0.05)) == []
