"""What the panel is fitted on: trusted and candidate images together, each in a fold that never judges itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.images import Images, check_images
from models.seeding import derive_seed
from models.surrogates import check_labels

FOLDS = 2

Labels = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pool:
    """images: uint8 (n, h, w, c); labels, folds: (n,); trusted: bool (n,), those that somebody vouches for.

    The held-out images that calibrate belong to the pool as candidates do, unmarked: only what is treated like a
    candidate can say how a clean candidate scores.
    """

    images: Images
    labels: Labels
    folds: Labels
    trusted: Bools
    num_classes: int

    def __post_init__(self) -> None:
        check_images(self.images)
        check_labels(self.images, self.labels, self.num_classes)
        if self.folds.shape != self.labels.shape or self.trusted.shape != self.labels.shape:
            raise ValueError("want a fold and a mark of trust for each image")

    def __len__(self) -> int:
        return len(self.labels)


def folds_of(count: int, *, seed: int, what: str) -> Labels:
    """A fold for each of `count` rows, drawn from the seed: as many of each, whatever else is in the set."""
    order = np.random.default_rng(derive_seed(seed, "folds", what)).permutation(count)
    return np.asarray(order % FOLDS, dtype=np.int64)
