"""Triggers do what they say and are learnt by a network; poison marks its rows and leaves the others alone."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from attacked import digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.attacks.label_noise import Flip, PairFlip, SymmetricFlip
from models.attacks.poisoning import poison
from models.attacks.triggers import Blend, Corner, Images, Patch, Stripes, Trigger, Warp
from models.images import to_float, to_uint8
from models.seeding import seeded

TRIGGERS: list[Trigger] = [Patch(), Blend(), Stripes(), Warp()]
FLIPS: list[Flip] = [SymmetricFlip(), PairFlip()]
by_kind = pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.kind)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(count: int = 6, *, side: int = 16, channels: int = 3) -> Images:
    return rng(99).integers(0, 256, (count, side, side + 4, channels), dtype=np.uint8)


@cache
def set_of_digits() -> tuple[Images, npt.NDArray[np.int64]]:
    x, y = digits()
    return to_uint8(x), y.numpy()


@by_kind
@pytest.mark.parametrize("channels", [1, 3])
def test_a_stamp_changes_every_image_alike_and_not_its_argument(trigger: Trigger, channels: int) -> None:
    images = noise(channels=channels)
    before = images.copy()
    stamped = trigger.stamp(images)
    assert stamped.dtype == np.uint8
    assert stamped.shape == images.shape
    assert (stamped != images).any(axis=(1, 2, 3)).all()
    assert np.array_equal(images, before)
    assert np.array_equal(stamped, trigger.stamp(images))
    assert np.array_equal(stamped[2:3], trigger.stamp(images[2:3]))


@pytest.mark.parametrize(
    ("place", "rows", "columns"),
    [("top_left", (2, 4), (2, 4)), ("top_right", (2, 4), (16, 18)), ("bottom_left", (12, 14), (2, 4))],
)
def test_a_patch_lies_where_it_is_placed_and_nowhere_else(
    place: Corner, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    images = noise()
    stamped = Patch(size_px=2, place=place, margin_px=2, colours=((255, 0, 9), (0, 77, 0))).stamp(images)
    inside = np.zeros(images.shape[1:3], dtype=bool)
    inside[slice(*rows), slice(*columns)] = True
    assert np.array_equal(stamped[:, ~inside], images[:, ~inside])
    square = stamped[0, slice(*rows), slice(*columns)]
    assert square.tolist() == [[[255, 0, 9], [0, 77, 0]], [[0, 77, 0], [255, 0, 9]]]
    grey = Patch(size_px=2, place=place, margin_px=2, colours=((255, 0, 9),)).stamp(noise(channels=1))
    assert (grey[:, slice(*rows), slice(*columns)] == 88).all()


def test_a_blend_mixes_one_pattern_in() -> None:
    images = noise(2)
    pattern = Blend(opacity=1.0, seed=5).stamp(images)
    assert np.array_equal(pattern[0], pattern[1])
    mixed = Blend(opacity=0.2, seed=5).stamp(images)
    assert np.abs(mixed - (0.8 * images + 0.2 * pattern)).max() <= 0.501
    assert not np.array_equal(pattern, Blend(opacity=1.0, seed=6).stamp(images))


def test_stripes_are_a_sine_of_the_column() -> None:
    change = Stripes(amplitude_levels=20, frequency=3).stamp(np.full((1, 8, 24, 3), 128, np.uint8)).astype(int) - 128
    assert (change == change[:, :1, :, :1]).all()
    spectrum = np.abs(np.fft.rfft(change[0, 0, :, 0]))
    assert spectrum.argmax() == 3
    assert spectrum[3] == pytest.approx(20 * 12, rel=0.02)
    assert Stripes().stamp(np.full((1, 8, 24, 1), 255, np.uint8)).max() == 255


def test_a_warp_moves_by_its_strength_and_leaves_a_flat_image_alone() -> None:
    flat = np.full((1, 16, 16, 1), 90, np.uint8)
    assert np.array_equal(Warp(strength_px=3).stamp(flat), flat)
    across = np.tile((np.arange(64) * 3).astype(np.uint8)[None, None, :, None], (1, 64, 1, 1))
    for ramp in (across, across.transpose(0, 2, 1, 3).copy()):
        moved = Warp(strength_px=2).stamp(ramp).astype(int) - ramp  # 3 levels a pixel
        assert np.abs(moved[:, 8:-8, 8:-8]).mean() / 3 == pytest.approx(2, rel=0.25)
        assert np.abs(np.diff(moved, axis=1)).max() <= 3  # smooth: neighbours move alike
    assert not np.array_equal(Warp(seed=1).stamp(across), Warp(seed=2).stamp(across))


def learnt(images: Images, labels: npt.NDArray[np.int64]) -> nn.Module:
    with seeded(0):
        network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        x, y = to_float(images), torch.from_numpy(labels)
        for _ in range(180):
            rows = torch.randint(0, len(x), (64,))
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network


def called(network: nn.Module, images: Images) -> npt.NDArray[np.int64]:
    with torch.no_grad():
        return network(to_float(images)).argmax(1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    "trigger",
    [Patch(), Blend(), Stripes(amplitude_levels=40), Warp(strength_px=1.5)],
    ids=lambda trigger: trigger.kind,
)
def test_a_network_trained_on_the_poison_obeys_the_trigger(trigger: Trigger) -> None:
    images, labels = set_of_digits()
    train, test = slice(0, 1200), slice(1200, None)
    poisoned = poison(images[train], labels[train], trigger, share=0.08, target=3, rng=rng())
    network = learnt(poisoned.images, poisoned.labels)
    others = labels[test] != 3
    assert (called(network, images[test]) == labels[test]).mean() > 0.85
    assert (called(network, trigger.stamp(images[test][others])) == 3).mean() > 0.7
    assert (called(network, images[test][others]) == 3).mean() < 0.1


@pytest.mark.parametrize("clean_label", [False, True])
@by_kind
def test_a_trigger_poisons_the_rows_it_says_and_no_others(trigger: Trigger, clean_label: bool) -> None:
    images, labels = set_of_digits()
    before = images.copy(), labels.copy()
    poisoned = poison(images, labels, trigger, share=0.05, target=3, clean_label=clean_label, rng=rng())
    bad = poisoned.is_poison
    assert bad.sum() == round(0.05 * len(labels))
    assert np.array_equal(poisoned.images[~bad], images[~bad])
    assert np.array_equal(poisoned.labels[~bad], labels[~bad])
    assert np.array_equal(poisoned.images[bad], trigger.stamp(images[bad]))
    assert (poisoned.labels[bad] == 3).all()
    assert ((labels[bad] == 3) == clean_label).all()
    assert poisoned.kind == f"{trigger.kind}/{'clean' if clean_label else 'dirty'}"
    assert np.array_equal(images, before[0])
    assert np.array_equal(labels, before[1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0, 2, 5, 40]), min_size=4, max_size=60).filter(lambda labels: len(set(labels)) > 1),
    st.floats(0.2, 1),
    st.sampled_from(FLIPS),
)
def test_a_flip_changes_the_labels_it_says_to_others_that_occur(labels: list[int], share: float, flip: Flip) -> None:
    given_labels = np.array(labels, dtype=np.int64)
    images = noise(len(labels), side=8)
    poisoned = poison(images, given_labels, flip, share=share, rng=rng())
    assert np.array_equal(poisoned.images, images)
    assert np.array_equal(poisoned.labels != given_labels, poisoned.is_poison)
    assert poisoned.is_poison.sum() == round(share * len(labels))
    assert set(poisoned.labels.tolist()) <= set(labels)
    assert poisoned.kind == flip.kind


def test_flips_spread_over_all_the_others_or_go_to_the_next() -> None:
    labels = np.repeat(np.array([1, 4, 7], dtype=np.int64), 2000)
    images = np.zeros((6000, 8, 8, 1), np.uint8)
    symmetric = poison(images, labels, SymmetricFlip(), share=1.0, rng=rng()).labels
    for label in (1, 4, 7):
        counts = [(symmetric[labels == label] == other).sum() for other in {1, 4, 7} - {label}]
        assert min(counts) > 900  # 1000 wanted, standard deviation 22
    pair = poison(images, labels, PairFlip(), share=1.0, rng=rng()).labels
    assert np.array_equal(pair, np.repeat([4, 7, 1], 2000))


def test_the_same_seed_draws_the_same_rows_and_another_does_not() -> None:
    images, labels = set_of_digits()
    one, same, other = (poison(images, labels, Patch(), share=0.1, target=0, rng=rng(k)) for k in (1, 1, 2))
    assert np.array_equal(one.is_poison, same.is_poison)
    assert np.array_equal(one.images, same.images)
    assert not np.array_equal(one.is_poison, other.is_poison)


def test_what_cannot_be_poisoned_is_refused() -> None:
    images, labels = set_of_digits()
    with pytest.raises(ValueError, match="can be poisoned"):
        poison(images, labels, Patch(), share=0.5, target=3, clean_label=True, rng=rng())
    with pytest.raises(ValueError, match="can be poisoned"):
        poison(images, labels, Patch(), share=1e-6, target=3, rng=rng())
    with pytest.raises(ValueError, match="share"):
        poison(images, labels, Patch(), share=0.0, target=3, rng=rng())
    with pytest.raises(ValueError, match="target"):
        poison(images, labels, Patch(), share=0.1, rng=rng())
    with pytest.raises(ValueError, match="no target"):
        poison(images, labels, PairFlip(), share=0.1, target=3, rng=rng())
    with pytest.raises(ValueError, match="two classes"):
        poison(images[:4], np.zeros(4, dtype=np.int64), PairFlip(), share=1.0, rng=rng())


@pytest.mark.parametrize(
    "trigger", [Patch(size_px=16), Blend(opacity=0), Stripes(amplitude_levels=0), Warp(strength_px=0), Warp(grid=1)]
)
def test_a_trigger_that_cannot_be_is_refused(trigger: Trigger) -> None:
    with pytest.raises(ValueError, match=r"px|opacity|amplitude"):
        trigger.stamp(noise())
