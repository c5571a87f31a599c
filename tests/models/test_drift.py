"""The drift alarm: the odds it bets at, its rate on clean traffic, and how soon it speaks where traffic changes."""

from __future__ import annotations

import numpy as np
import pytest

from models.calibration import JointTest, conformal_p_values, wilson_interval
from models.drift import DriftTest, bets, distinct, slot_edges

RATE = 0.05


def p_values(rng: np.random.Generator, *, n: int, streams: int, length: int, perturbed: float = 0.0) -> np.ndarray:
    """(streams, length), each stream with n calibration images of its own; perturbed images score 12 higher."""
    made = np.empty((streams, length))
    for stream in made:
        scores = rng.normal(size=(n + length, 2)) + rng.normal(size=(n + length, 1))
        scores[n:][rng.random(length) < perturbed] += 12
        stream[:] = JointTest(scores[:n]).p_values(scores[n:])[0]
    return made


def test_every_bet_is_fair_at_the_odds_whatever_came_before() -> None:
    test = DriftTest(40, rate=RATE)
    for p_value in p_values(np.random.default_rng(0), n=40, streams=1, length=50)[0]:
        odds = test.expected()[0]
        assert odds.sum() == pytest.approx(1)
        gains = bets(test.edges) / (bets(test.edges) @ odds)[:, None]
        assert gains @ odds == pytest.approx(np.ones(len(gains)))
        test.observe(np.array([p_value]))


def test_the_odds_are_those_of_ranks_among_all_that_was_seen() -> None:
    """Of n + t + 1 exchangeable scores the last is the least with probability 1/(n + t + 1), and so on, by counting."""
    rng = np.random.default_rng(1)
    n, draws = 3, 40_000
    scores = rng.normal(size=(draws, n + 2))
    slots = (scores[:, :n, None] >= scores[:, None, n:]).sum(axis=1)  # (draws, 2)
    after = np.array([[np.mean(slots[slots[:, 0] == a, 1] == b) for b in range(n + 1)] for a in range(n + 1)])
    wanted = (1 + np.eye(n + 1)) / (n + 2)
    assert np.abs(after - wanted).max() < 0.02
    test = DriftTest(n, rate=RATE)
    assert test.sizes.tolist() == [1, 1, 1, 1]
    test.observe(np.array([2 / 4]))
    assert test.expected()[0] == pytest.approx(wanted[1])


@pytest.mark.parametrize("n", [40, 400])
def test_clean_traffic_alarms_no_more_often_than_the_rate(n: int) -> None:
    streams = 300
    test = DriftTest(n, rate=RATE, streams=streams)
    test.observe(p_values(np.random.default_rng(n), n=n, streams=streams, length=400))
    assert wilson_interval(int(test.alarmed.sum()), streams)[0] <= RATE
    assert np.exp(test.log_wealth).mean() < 1.5


def test_a_test_that_took_the_calibration_for_exact_would_break_the_rate() -> None:
    """So the odds above matter: with fixed ones far more than RATE of clean streams raise the alarm."""

    class Fixed(DriftTest):
        def expected(self) -> np.ndarray:
            return np.broadcast_to(self.sizes / (self.num_calibration + 1), self.counts.shape)

    test = Fixed(40, rate=RATE, streams=100)
    test.observe(p_values(np.random.default_rng(2), n=40, streams=100, length=600))
    assert test.alarmed.mean() > 3 * RATE


@pytest.mark.parametrize("clean", [0, 1000])
def test_a_fifth_perturbed_raises_the_alarm_within_500_images(clean: int) -> None:
    rng = np.random.default_rng(3)
    streams = 40
    test = DriftTest(300, rate=0.01, streams=streams)
    values = p_values(rng, n=300, streams=streams, length=clean + 500)
    values[:, clean:][rng.random((streams, 500)) < 0.2] = 1 / 301
    test.observe(values[:, :clean])
    assert test.alarmed.mean() <= 0.1
    test.observe(values[:, clean:])
    assert test.alarmed.all()
    assert (test.p_value <= 0.01).all()


def test_a_shift_of_the_bulk_and_p_values_that_are_too_large_raise_it_too() -> None:
    rng = np.random.default_rng(4)
    calibration = rng.normal(size=500)
    for scores in (rng.normal(size=1000) + 0.5, rng.normal(size=1000) - 0.5, np.full(1000, -0.1)):
        test = DriftTest(500, rate=0.01)
        test.observe(conformal_p_values(scores, calibration))
        assert test.alarmed[0]


def test_the_alarm_stays_once_raised() -> None:
    test = DriftTest(100, rate=0.01)
    test.observe(np.full(200, 1 / 101))
    assert test.alarmed[0]
    test.observe(np.random.default_rng(5).integers(1, 102, 5_000) / 101)
    assert test.alarmed[0] and test.p_value[0] < 0.01


def test_ties_cost_power_and_not_the_rate() -> None:
    """Half of the scores lie on a floor; p-values count ties as more suspicious, and pile up at 1."""
    rng = np.random.default_rng(6)
    raised = {True: 0, False: 0}
    for _ in range(40):
        scores = np.maximum(rng.normal(size=400), 0)
        test = JointTest(scores[:200, None])
        values = test.p_values(scores[200:, None])[0]
        for heeded in raised:
            drift = DriftTest(200, rate=RATE, cuts=distinct(test.order()) if heeded else None)
            drift.observe(values)
            raised[heeded] += int(drift.alarmed[0])
    assert raised[False] == 40
    assert wilson_interval(raised[True], 40)[0] <= RATE


def test_slots_are_told_apart_where_no_images_tie() -> None:
    assert distinct(np.array([1, 2, 2, 5, 7, 7, 7])).tolist() == [True, False, False, True, False, False, False]
    assert distinct(np.array([3])).tolist() == [True]
    assert slot_edges(7, np.zeros(7, dtype=bool)).tolist() == [0, 8]
    only = slot_edges(99, np.arange(99) == 49)
    assert only.tolist() == [0, 50, 100]


def test_with_nothing_to_tell_apart_it_says_nothing() -> None:
    test = DriftTest(5, rate=0.01, cuts=np.zeros(5, dtype=bool))
    test.observe(np.full(1000, 1.0))
    assert test.log_wealth[0] == pytest.approx(0) and not test.alarmed[0]


def test_streams_side_by_side_are_streams_alone() -> None:
    values = p_values(np.random.default_rng(7), n=60, streams=3, length=80)
    together = DriftTest(60, rate=RATE, streams=3)
    together.observe(values)
    for row, stream in enumerate(values):
        alone = DriftTest(60, rate=RATE)
        for part in np.array_split(stream, 7):
            alone.observe(part)
        assert alone.log_wealth[0] == pytest.approx(together.log_wealth[row])


@pytest.mark.parametrize("values", [[0.0], [1.5], [0.123], [np.nan], [np.inf]])
def test_what_is_no_p_value_of_this_calibration_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no p-values"):
        DriftTest(10, rate=RATE).observe(np.array(values))


@pytest.mark.parametrize(
    "how", [{"num_calibration": 0}, {"rate": 0.0}, {"rate": 1.0}, {"streams": 0}, {"cuts": np.ones(3, dtype=bool)}]
)
def test_a_test_that_cannot_be_is_refused(how: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        DriftTest(**{"num_calibration": 10, "rate": 0.1, **how})  # type: ignore[arg-type]
