"""Reliability and temperature: closed forms, and over-confident answers that come out right on average."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from models.reliability import at_temperature, crossed, fit_temperature, reliability


def drawn(n: int, sharpness: float, seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Probabilities `sharpness` times as sharp as the law that the labels really follow."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 5))
    true = softmax(logits)
    labels = (true.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return softmax(sharpness * logits), labels.astype(np.int64)


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_fitted_temperature_undoes_the_sharpness(sharpness: float) -> None:
    probabilities, labels = drawn(20_000, sharpness, 0)
    assert fit_temperature(probabilities, labels) == pytest.approx(sharpness, rel=0.04)


def test_a_temperature_is_a_softmax_over_it_and_keeps_the_answer() -> None:
    logits = np.random.default_rng(1).normal(size=(50, 4))
    np.testing.assert_allclose(at_temperature(softmax(logits), 2.5), softmax(logits / 2.5), atol=1e-12)
    probabilities = softmax(logits)
    assert at_temperature(probabilities, 1.0) is probabilities
    certain = at_temperature(np.array([[1.0, 0.0, 0.0]]), 2.0)
    assert certain.argmax() == 0
    assert np.isfinite(certain).all()
    alone = np.concatenate([at_temperature(row[None], 2.5) for row in probabilities])
    assert np.array_equal(alone, at_temperature(probabilities, 2.5))


def test_calibration_error_of_answers_that_are_right_half_as_often_as_they_say() -> None:
    probabilities = np.tile([0.8, 0.2], (10, 1))
    found = reliability(probabilities, np.array([0, 1] * 5), bins=5)
    assert found.ece == pytest.approx(0.3)
    assert found.counts == [0, 0, 0, 0, 10]
    assert found.accuracy[4] == 0.5
    assert reliability(np.tile([1.0, 0.0], (4, 1)), np.zeros(4, np.int64)).ece == 0


def test_scaling_by_the_other_half_lowers_the_error_of_overconfident_answers() -> None:
    probabilities, labels = drawn(4000, 3.0, 2)
    before = reliability(probabilities, labels).ece
    after = reliability(crossed(probabilities, labels, seed=0), labels).ece
    assert before > 0.1
    assert after < 0.03


def test_extremes_stay_within_the_bounds() -> None:
    probabilities = np.tile([0.6, 0.4], (100, 1))
    assert fit_temperature(probabilities, np.zeros(100, np.int64)) == pytest.approx(0.05, rel=1e-6)
    assert fit_temperature(probabilities, np.ones(100, np.int64)) == pytest.approx(20, rel=1e-6)
    with pytest.raises(ValueError, match="labels of"):
        fit_temperature(probabilities, np.zeros(3, np.int64))
