"""Splits: shares, determinism, and groups that stay together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.splits import halves_by_class, one_a_group, split_by_class


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=200),
    st.floats(0.05, 0.95),
    st.booleans(),
    st.integers(0, 100),
)
def test_a_split_is_a_partition_that_keeps_groups_and_every_class(
    labels: list[int], share: float, grouped: bool, seed: int
) -> None:
    y = np.array(labels, np.int64)
    groups = y * 100 + np.arange(len(y)) // 3 if grouped else None
    kept, held = split_by_class(y, groups, share=share, seed=seed)
    assert sorted([*kept, *held]) == list(range(len(y)))
    assert set(y[kept]) == set(y)
    if groups is not None:
        assert not set(groups[kept]) & set(groups[held])


def test_shares_add_up_over_many_small_classes() -> None:
    y = np.repeat(np.arange(43), 5)
    kept, held = split_by_class(y, None, share=0.5, seed=0)
    assert abs(len(held) - len(y) / 2) <= 1
    assert len(kept) + len(held) == len(y)


def test_the_seed_decides() -> None:
    y = np.repeat(np.arange(3), 50)
    first, again, other = (split_by_class(y, None, share=0.3, seed=seed)[1] for seed in (1, 1, 2))
    assert (first == again).all()
    assert set(first) != set(other)


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.booleans(), st.integers(0, 100))
@example([0, 0, 0, 0, 1, 1, 1], True, 0)  # two groups, of which the first is over what the half is short of
def test_halves_keep_groups_and_give_each_half_of_every_class_that_can_be_parted(
    labels: list[int], grouped: bool, seed: int
) -> None:
    y = np.array(labels, np.int64)
    groups = y * 100 + np.arange(len(y)) // 3 if grouped else None
    halves = halves_by_class(y, groups, seed=seed)
    assert set(halves) <= {0, 1}
    for group in np.unique(groups) if groups is not None else []:
        assert len(set(halves[groups == group])) == 1
    for label in np.unique(y):
        units = np.flatnonzero(y == label) if groups is None else np.unique(groups[y == label])
        assert len(set(halves[y == label])) == min(2, len(units))


def test_classes_of_one_group_go_to_either_half() -> None:
    y = np.repeat(np.arange(20), 30)
    means = [halves_by_class(y, y, seed=seed).mean() for seed in range(20)]
    assert means == [0.5] * 20
    assert 5 <= sum(int(halves_by_class(y, y, seed=seed)[0]) for seed in range(20)) <= 15


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_shares_outside_of_the_open_interval_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        split_by_class(np.zeros(4, np.int64), None, share=share, seed=0)


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.integers(-3, 5), min_size=1, max_size=60), st.integers(0, 100))
def test_of_each_group_one_image_is_drawn(groups: list[int], seed: int) -> None:
    rows = one_a_group(np.array(groups), seed=seed)
    assert sorted(np.array(groups)[rows]) == sorted(set(groups))
    assert list(rows) == sorted(rows) == list(one_a_group(np.array(groups), seed=seed))


def test_every_image_of_a_group_is_drawn_as_often() -> None:
    groups = np.array(["a", "b", "a", "a", "b"])
    drawn = np.bincount(np.concatenate([one_a_group(groups, seed=seed) for seed in range(3000)]), minlength=5) / 3000
    np.testing.assert_allclose(drawn, [1 / 3, 1 / 2, 1 / 3, 1 / 3, 1 / 2], atol=0.04)
