"""What the panel is fitted on: trusted and candidate images together, each in a fold that never judges itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.images import Images, check_images
from models.seeding import derive_seed
from models.surrogates import check_labels

FOLDS = 2
LARGEST_GROUP = 0.1

Labels = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pool:
    """images: uint8 (n, h, w, c); labels, folds: (n,); trusted: bool (n,), those that somebody vouches for.

    encoded: (n, d), what a pretrained encoder sees in each, where there is one.

    Images of one object lie in one fold where it is known: a trusted image teaches what judges the other fold, and
    calibrates in its own, where nothing that judges it has seen it or its like.
    """

    images: Images
    labels: Labels
    folds: Labels
    trusted: Bools
    num_classes: int
    encoded: Float32s | None = None

    def __post_init__(self) -> None:
        check_images(self.images)
        check_labels(self.images, self.labels, self.num_classes)
        if self.folds.shape != self.labels.shape or self.trusted.shape != self.labels.shape:
            raise ValueError("want a fold and a mark of trust for each image")
        if self.encoded is not None and len(self.encoded) != len(self.labels):
            raise ValueError(f"{len(self.encoded)} images were encoded, of {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)


def folds_of(count: int, groups: npt.NDArray[Any] | None = None, *, seed: int, what: str) -> Labels:
    """A fold for each of `count` rows, drawn from the seed without a look at their labels: about as many of each.

    groups: (count,), the object that each row shows, whose images stay together. They are the uploader's word: where
    one is larger than LARGEST_GROUP of all, which would leave a fold next to nothing to learn from, none is heeded.
    """
    rng = np.random.default_rng(derive_seed(seed, "folds", what))
    if groups is not None and count:
        _, of_group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        if sizes.max() <= LARGEST_GROUP * count:
            return np.asarray((rng.permutation(len(sizes)) % FOLDS)[of_group], dtype=np.int64)
    return np.asarray(rng.permutation(count) % FOLDS, dtype=np.int64)
