"""The four image sets of the detection benchmarks, and how each is split into trusted images and candidates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NAMES = ("gtsrb", "cifar10", "mnist", "fashion-mnist")
TRACKS_A_CLASS = 1000  # more than any class has: (class, track) names a sign
TRUSTED_TRACKS = 0.25
"""Of each class's physical signs: few images of many signs, as somebody who vouches for images would pick them."""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """images: uint8 (n, h, w, c); groups: the object that each training image shows, or None."""

    name: str
    images: Images
    labels: Labels
    groups: Labels | None
    test_images: Images
    test_labels: Labels

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.images.shape[1:]
        return height, width, channels


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of the training images, no object on two sides: trusted ones to fit, to calibrate, and candidates."""

    fit: Rows
    calibrate: Rows
    candidates: Rows

    @property
    def trusted(self) -> Rows:
        """Where two halves both fit and calibrate, each what the other does not."""
        return np.sort(np.concatenate([self.fit, self.calibrate]))


@cache
def load(folder: Path, name: str) -> ImageSet:
    data = np.load(folder / f"{name}.npz")
    labels = data["y_train"].astype(np.int64)
    groups = labels * TRACKS_A_CLASS + data["track_train"].astype(np.int64) if "track_train" in data else None
    return ImageSet(
        name,
        _with_channels(data["x_train"]),
        labels,
        groups,
        _with_channels(data["x_test"]),
        data["y_test"].astype(np.int64),
    )


def split(given: ImageSet, *, trusted: int, candidates: int, seed: int) -> Split:
    """About `trusted` images in two halves, and `candidates` others (as many as there are, where there are fewer)."""
    rng = np.random.default_rng(seed)
    if given.groups is None:
        order = rng.permutation(len(given.labels))
        half, end = trusted // 2, trusted + candidates
        return Split(np.sort(order[:half]), np.sort(order[half:trusted]), np.sort(order[trusted:end]))
    sides = _sides(given.groups, rng)
    vouched = np.flatnonzero(sides < 2)
    chosen = _few_of_each(vouched, given.groups[vouched], trusted, rng)
    free = np.flatnonzero(sides == 2)
    picked = rng.choice(free, min(candidates, len(free)), replace=False)
    return Split(chosen[sides[chosen] == 0], chosen[sides[chosen] == 1], np.sort(picked))


def _sides(groups: Labels, rng: np.random.Generator) -> Labels:
    """Of each image: 0 to fit, 1 to calibrate, 2 a candidate; whole objects, class by class."""
    sides = np.full(len(groups), 2, np.int64)
    objects = np.unique(groups)
    for label in np.unique(objects // TRACKS_A_CLASS):
        own = rng.permutation(objects[objects // TRACKS_A_CLASS == label])
        vouched = own[: max(2, round(TRUSTED_TRACKS * len(own)))]
        first = int(rng.integers(2))  # an odd one out goes to either side
        for side in (0, 1):
            sides[np.isin(groups, vouched[(side + first) % 2 :: 2])] = side
    return sides


def _few_of_each(rows: Rows, groups: Labels, wanted: int, rng: np.random.Generator) -> Rows:
    """About `wanted` of the rows, as many of each object."""
    order = rng.permutation(len(rows))
    rank = np.empty(len(rows), np.int64)  # the how-manieth of its object in this order
    by_group = order[np.argsort(groups[order], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[by_group], prepend=-1))
    counts = np.diff(np.append(starts, len(rows)))
    rank[by_group] = np.arange(len(rows)) - np.repeat(starts, counts)
    chosen = order[np.argsort(rank[order], kind="stable")][:wanted]
    return np.sort(rows[chosen])


def _with_channels(images: Images) -> Images:
    return images if images.ndim == 4 else images[..., None]
