"""Features of labelled images, as the detectors that look at one class at a time take them: checked, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Float64s = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def checked_features(features: Floats, labels: Labels, num_classes: int) -> Float64s:
    """The features as float64. Raises ValueError where they do not fit the labels, or a value is not finite."""
    x = np.ascontiguousarray(features, dtype=np.float64)
    if x.ndim != 2 or labels.shape != x.shape[:1] or not np.isfinite(x).all():
        raise ValueError(f"features must be finite numbers of shape (n, d) and fit the labels, not {x.shape}")
    if len(x) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"labels must lie in 0 … {num_classes - 1}")
    return x
