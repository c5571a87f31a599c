"""Every detector of a job as one: the filters' own score, then the panel's, a column each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.filtering import CrossFilter
from models.panel.panel import Panel

Scores = NDArray[np.float32]
Labels = NDArray[np.int64]
Images = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Examiner:
    """panel is None where the filters judge alone. encoder: name and sha256 of the one that the panel asks, or None."""

    filter: CrossFilter
    panel: Panel | None
    encoder: dict[str, Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.filter.score_name, *(self.panel.names if self.panel else ()))

    def score(self, images: NDArray[np.uint8], labels: Labels, folds: Labels, rows: Labels) -> Scores:
        """(n, t); an image's scores do not depend on the images beside it."""
        own = self.filter.score(images, folds)[:, None]
        if self.panel is None:
            return own
        return np.concatenate([own, self.panel.score(images, labels, folds, rows)], axis=1)


@dataclass(frozen=True, eq=False)
class Listing:
    """What is known of a set's images beside their pixels: labels, folds, and the numbers they go by, each (n,)."""

    labels: Labels
    folds: Labels
    rows: Labels

    def at(self, places: slice | Labels) -> Listing:
        return Listing(self.labels[places], self.folds[places], self.rows[places])
