"""A training set with a share of it poisoned, and which rows those are: what a filter is measured on. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.attacks.label_noise import Flip, Labels, PairFlip, SymmetricFlip
from models.attacks.triggers import Images, Trigger


@dataclass(frozen=True)
class Poisoned:
    """images uint8 (n, h, w, c); labels int64 (n,); is_poison bool (n,); rows in the order they came in.

    kind: such as "patch/dirty", "warp/clean", "flip-pair".
    """

    images: Images
    labels: Labels
    is_poison: npt.NDArray[np.bool_]
    kind: str


def poison(
    images: Images,
    labels: Labels,
    how: Trigger | Flip,
    *,
    share: float,
    target: int | None = None,
    clean_label: bool = False,
    rng: np.random.Generator,
) -> Poisoned:
    """A copy of the set in which round(share · n) rows, drawn by rng, are poisoned.

    how: a trigger, or a flip of labels. share: of the whole set, in (0, 1].
    target: the class that a trigger shall mean; for a flip None, its classes are those that occur in `labels`.
    clean_label: False stamps images of other classes and labels them `target`; True stamps only images of `target`
    and leaves every label alone (the least visible kind, and by itself the weakest).
    Raises ValueError where the share asks for no row, or for more than there are to draw from; where a trigger has no
    target or one that no label has; where a flip has a target or asks for clean labels.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, not {share}")
    images, labels, classes = images.copy(), labels.copy(), np.unique(labels)
    is_poison = np.zeros(len(labels), dtype=np.bool_)
    if isinstance(how, SymmetricFlip | PairFlip):
        if target is not None or clean_label:
            raise ValueError("a flip of labels takes no target and no clean labels")
        rows = _drawn(np.arange(len(labels)), share, len(labels), rng)
        labels[rows] = how.relabel(labels[rows], classes, rng)
        kind = how.kind
    else:
        if target is None or target not in classes:
            raise ValueError(f"the target must be one of the labels, not {target}")
        rows = _drawn(np.flatnonzero((labels == target) == clean_label), share, len(labels), rng)
        images[rows] = how.stamp(images[rows])
        labels[rows] = target
        kind = f"{how.kind}/{'clean' if clean_label else 'dirty'}"
    is_poison[rows] = True
    return Poisoned(images, labels, is_poison, kind)


def _drawn(
    candidates: npt.NDArray[np.intp], share: float, count: int, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    wanted = round(share * count)
    if not 1 <= wanted <= len(candidates):
        raise ValueError(f"a share of {share} is {wanted} of {count} images; {len(candidates)} can be poisoned")
    return rng.choice(candidates, wanted, replace=False)
