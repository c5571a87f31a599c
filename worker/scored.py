"""Images as a panel sees them: scores, given labels, the objects that they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.shift import Groups


@dataclass(frozen=True)
class Detectors:
    """The detectors, the filter's score first. weights: how α is shared among them, evenly where not given."""

    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    class_names: Sequence[str] = ()

    @classmethod
    def unnamed(cls, count: int) -> Self:
        return cls(tuple(f"score_{place}" for place in range(count)) if count > 1 else ("score",))


@dataclass(frozen=True, eq=False)
class Scored:
    """Images as the panel sees them: scores (k, t), given labels (k,), the object each shows (k,)."""

    scores: NDArray[np.float32]
    labels: NDArray[np.int64] | None = None
    groups: Groups | None = None

    @classmethod
    def of(cls, scores: Self | NDArray[np.float32], labels: NDArray[np.int64] | None = None) -> Self:
        """Takes (k,) for the scores of one detector."""
        if isinstance(scores, cls):
            return scores if scores.scores.ndim == 2 else cls(scores.scores[:, None], scores.labels, scores.groups)
        table = np.asarray(scores)
        return cls(table if table.ndim == 2 else table[:, None], labels)

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, places: slice | NDArray[np.intp]) -> Scored:
        labels, groups = (None if each is None else each[places] for each in (self.labels, self.groups))
        return Scored(self.scores[places], labels, groups)

    @property
    def shares_objects(self) -> bool:
        """Whether any two images are known to show the same."""
        return self.groups is not None and len(np.unique(self.groups)) < len(self.groups)

    def labels_needed(self) -> NDArray[np.int64]:
        if self.labels is None:
            raise ValueError("calibration by class needs the labels of candidates and calibration images")
        return self.labels
