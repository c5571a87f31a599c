"""Wrong labels on right images: what careless or hostile labelling does to a training set. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SymmetricFlip:
    """Each label becomes one of the others, all equally likely. Source: Natarajan et al. 2013."""

    kind: ClassVar[str] = "flip-symmetric"

    def relabel(self, labels: Labels, classes: Labels, rng: np.random.Generator) -> Labels:
        """labels (n,), each in `classes` (sorted, k ≥ 2); returns labels (n,), each other than it was."""
        places = _places(labels, classes)
        return _at(classes, places + rng.integers(1, len(classes), len(labels)))


@dataclass(frozen=True)
class PairFlip:
    """Each label becomes the next class, and the last the first. Source: Han et al. 2018 (pair flipping)."""

    kind: ClassVar[str] = "flip-pair"

    def relabel(self, labels: Labels, classes: Labels, _rng: np.random.Generator) -> Labels:
        """labels (n,), each in `classes` (sorted, k ≥ 2); returns labels (n,), each other than it was."""
        return _at(classes, _places(labels, classes) + 1)


Flip = SymmetricFlip | PairFlip


def _places(labels: Labels, classes: Labels) -> npt.NDArray[np.intp]:
    if len(classes) < 2:
        raise ValueError("a label can only be flipped where there are two classes or more")
    return np.searchsorted(classes, labels)


def _at(classes: Labels, places: npt.NDArray[np.intp]) -> Labels:
    labels: Labels = classes[places % len(classes)]
    return labels
