"""Splits a labelled set in two, class by class, without ever separating the images of one physical object.

Numpy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def split_by_class(
    labels: NDArray[np.int64], groups: NDArray[Any] | None, *, share: float, seed: int
) -> tuple[Indices, Indices]:
    """(kept, held out): sorted indices, with about `share` of every class held out and at least one image kept.

    labels: (n,); groups: (n,) any values that name the object an image shows, or None where every image is its own.
    A class with a single group is kept whole.
    Raises ValueError unless 0 < share < 1 and the lengths agree.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, not {share}")
    if groups is not None and len(groups) != len(labels):
        raise ValueError(f"{len(groups)} groups do not fit {len(labels)} labels")
    rng = np.random.default_rng(np.random.PCG64(seed))
    held: list[Indices] = []
    owed = 0.0  # rounding left over from the classes before, so that the shares add up over the whole set
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        units = _units(members, groups, rng)
        target = share * len(members) + owed
        taken = _take(units, target)
        owed = target - sum(len(unit) for unit in taken)
        held.extend(taken)
    held_out = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def halves_by_class(labels: NDArray[np.int64], groups: NDArray[Any] | None, *, seed: int) -> Indices:
    """The half, 0 or 1, that each image belongs to, (n,): about as many of every class in each, no group in both.

    labels, groups: as of `split_by_class`. A class with a single group lies in one half, as often in this as in that.
    Raises ValueError where the lengths differ.
    """
    if groups is not None and len(groups) != len(labels):
        raise ValueError(f"{len(groups)} groups do not fit {len(labels)} labels")
    rng = np.random.default_rng(np.random.PCG64(seed))
    halves = np.zeros(len(labels), np.int64)
    owed = 0.0
    for label in rng.permutation(np.unique(labels)):
        members = np.flatnonzero(labels == label)
        units = _units(members, groups, rng)
        target = len(members) / 2 + owed
        # Of several units each half gets one, even where the first is over what it is short of.
        taken = (_take(units, target) or units[:1]) if len(units) > 1 else units[: target > len(members) / 2]
        owed = target - sum(len(unit) for unit in taken)
        for unit in taken:
            halves[unit] = 1
    return halves


def one_a_group(groups: NDArray[Any], *, seed: int) -> Indices:
    """Of each group one image, drawn evenly: sorted indices, as many as there are groups. groups: (n,), any values."""
    order = np.random.default_rng(np.random.PCG64(seed)).permutation(len(groups))
    return np.sort(order[np.unique(groups[order], return_index=True)[1]])


def _units(members: Indices, groups: NDArray[Any] | None, rng: np.random.Generator) -> list[Indices]:
    """The inseparable parts of a class in random order."""
    if groups is None:
        return [members[[place]] for place in rng.permutation(len(members))]
    _, of_member = np.unique(groups[members], return_inverse=True)
    return [members[of_member == unit] for unit in rng.permutation(of_member.max() + 1)]


def _take(units: list[Indices], target: float) -> list[Indices]:
    """Units from the front as long as each brings the sum nearer to `target`; the last unit always stays."""
    taken: list[Indices] = []
    total = 0
    for unit in units[:-1]:
        if total + len(unit) / 2 > target:
            break
        taken.append(unit)
        total += len(unit)
    return taken
