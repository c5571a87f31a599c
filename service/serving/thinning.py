"""Fewer p-values than come, where many come: the watch for drift takes in so many a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

IMAGES_PER_SECOND = 200  # more are thinned out: whether an image counts has nothing to do with what it is


class Thinning:
    """Not safe from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._room, self._filled_at = float(IMAGES_PER_SECOND), clock()

    def of(self, p_values: NDArray[np.float64]) -> NDArray[np.float64]:
        """As many as there is room for, evenly spaced."""
        present = self._clock()
        self._room = min(self._room + (present - self._filled_at) * IMAGES_PER_SECOND, float(IMAGES_PER_SECOND))
        self._filled_at = present
        count = min(len(p_values), int(self._room))
        self._room -= count
        return p_values[np.arange(count) * len(p_values) // max(count, 1)]
