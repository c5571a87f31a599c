"""How well scores tell one kind of sample from another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def auroc(positive: npt.ArrayLike, negative: npt.ArrayLike) -> float:
    """The chance that one of `positive` (n,) scores above one of `negative` (m,), ties counting half.

    Raises ValueError where either is empty. Source: Mann & Whitney 1947; Hanley & McNeil 1982 for the name.
    """
    positives, ordered = np.asarray(positive), np.sort(np.asarray(negative))
    if not positives.size or not ordered.size:
        raise ValueError(f"want scores of both kinds, not {positives.size} and {ordered.size}")
    below = np.searchsorted(ordered, positives, side="left") + np.searchsorted(ordered, positives, side="right")
    return float(below.mean() / 2 / ordered.size)
