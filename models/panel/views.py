"""What a detector of the panel is shown of some images: what the classifiers that had not seen them make of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.images import Images
from models.panel.pool import Labels

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class View:
    """n images. believing, checked: log probabilities (n, classes) of the classifiers fitted on every label, and on
    confirmed labels only; the features (n, d) are of the same. rows: (n,), distinct over all images of a job.
    """

    images: Images
    labels: Labels
    folds: Labels
    rows: Labels
    believing: Float32s
    believing_features: Float32s
    checked: Float32s
    checked_features: Float32s
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def of_fold(self, fold: int) -> View:
        """The images of one fold: only their features come from the same network."""
        return self.at(self.folds == fold)

    def at(self, chosen: npt.NDArray[np.bool_]) -> View:
        return View(
            self.images[chosen],
            self.labels[chosen],
            self.folds[chosen],
            self.rows[chosen],
            self.believing[chosen],
            self.believing_features[chosen],
            self.checked[chosen],
            self.checked_features[chosen],
            self.num_classes,
        )
