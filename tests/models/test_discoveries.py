"""Benjamini–Hochberg against scipy, the least share it can discover, and the rate it realises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from models.calibration import (
    AlphaTooSmall,
    adjusted_p_values,
    benjamini_hochberg,
    conformal_p_values,
    smallest_share,
)

steady = settings(deadline=None, derandomize=True, database=None)

P_VALUES = arrays(np.float64, st.integers(1, 40), elements=st.integers(1, 50).map(lambda k: k / 50))


@steady
@given(P_VALUES)
def test_adjusted_p_values_agree_with_scipy(p: np.ndarray) -> None:
    assert adjusted_p_values(p) == pytest.approx(stats.false_discovery_control(p), abs=1e-12)


@steady
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 49))
def test_flags_the_largest_k_that_the_step_up_rule_allows(ranks: list[int], percent: int) -> None:
    """In whole numbers: p = rank/50, rate = percent/50."""
    ordered, n = sorted(ranks), len(ranks)
    allowed = [k for k in range(1, n + 1) if ordered[k - 1] * n <= percent * k]
    cut = ordered[allowed[-1] - 1] if allowed else 0
    flagged = benjamini_hochberg(np.array(ranks) / 50, rate=percent / 50)
    assert flagged.tolist() == [rank <= cut for rank in ranks]


def test_what_cannot_be_a_p_value_or_a_rate_is_refused() -> None:
    for bad in (np.array([0.0]), np.array([1.1]), np.array([np.nan])):
        with pytest.raises(ValueError, match="p-values"):
            benjamini_hochberg(bad, rate=0.1)
    with pytest.raises(ValueError, match="false-discovery rate"):
        benjamini_hochberg(np.array([0.5]), rate=1.0)
    assert benjamini_hochberg(np.array([]), rate=0.1).tolist() == []


@pytest.mark.parametrize(("m", "rate"), [(99, 0.05), (999, 0.05), (999, 0.1), (39, 0.1)])
def test_poison_under_the_smallest_share_cannot_be_found_and_just_above_it_is(m: int, rate: float) -> None:
    calibration, n = np.arange(float(m)), 1000
    share = smallest_share(m, rate=rate)
    for count, found in ((int(np.ceil(n * share)), True), (int(np.ceil(n * share)) - 1, False)):
        scores = np.concatenate([np.full(count, 1e9), np.full(n - count, -1.0)])
        flagged = benjamini_hochberg(conformal_p_values(scores, calibration), rate=rate)
        assert flagged.sum() == (count if found else 0)


def test_a_rate_at_which_nothing_could_ever_be_flagged_is_refused() -> None:
    with pytest.raises(AlphaTooSmall, match="1/10"):
        smallest_share(9, rate=0.05)
    assert smallest_share(9, rate=0.1) == 1.0


@pytest.mark.parametrize("rate", [0.05, 0.1])
def test_of_the_flagged_at_most_the_rate_is_clean(rate: float) -> None:
    """With 5 % poison that is hard to tell; the share is 0 where nothing is flagged."""
    rng, shares, found = np.random.default_rng(0), [], []
    poisoned = np.arange(1000) < 50
    for _ in range(400):
        scores = rng.normal(size=1000) + 3.5 * poisoned
        flagged = benjamini_hochberg(conformal_p_values(scores, rng.normal(size=1000)), rate=rate)
        shares.append(np.sum(flagged & ~poisoned) / max(1, flagged.sum()))
        found.append(flagged[poisoned].mean())
    assert np.mean(shares) <= rate + 2 * np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) >= 0.6 * rate
    assert np.mean(found) > 0.5
