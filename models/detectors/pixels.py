"""What the detectors that look at pixels themselves share: images brought down to a side, in whole numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.int32]

PIXELS_AT_ONCE = 2**21


def check_images(images: Images) -> None:
    """Raises ValueError unless the images are uint8 (n, h, w, c), c of 1 or 3."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"images must be uint8 of shape (n, h, w, 1 or 3), not {images.dtype} {images.shape}")


def check_shape(images: Images, fitted: npt.NDArray[np.int64]) -> None:
    """Raises ValueError where the images are not of the shape (h, w, c) that was fitted."""
    check_images(images)
    if images.shape[1:] != tuple(fitted):
        raise ValueError(f"the images are {images.shape[1:]}, not {tuple(map(int, fitted))}")


def check_surprise(images: Images, surprise: npt.NDArray[np.floating]) -> None:
    """Raises ValueError unless there is a number in [0, 1] for each image."""
    if surprise.shape != images.shape[:1] or not bool(np.all((surprise >= 0) & (surprise <= 1))):
        raise ValueError(f"want a surprise between 0 and 1 for each image: {surprise.shape} for {len(images)}")


def blocks(images: Images) -> Iterator[slice]:
    """Rows of the images of a bounded number of pixels at a time, at least one image."""
    size = max(1, PIXELS_AT_ONCE // max(1, int(np.prod(images.shape[1:3]))))
    return (slice(start, start + size) for start in range(0, len(images), size))


def reduced(images: Images, largest_side: int) -> Levels:
    """uint8 (n, h, w, c) to levels, the sides averaged down to `largest_side` at most, every pixel once."""
    levels = images.astype(np.int32)
    for axis in (1, 2):
        side = levels.shape[axis]
        if side > largest_side:
            edges = np.arange(largest_side) * side // largest_side
            width = np.diff(np.append(edges, side)).reshape([-1 if each == axis else 1 for each in range(4)])
            levels = np.add.reduceat(levels, edges, axis=axis, dtype=np.int32) // width.astype(np.int32)
    return np.asarray(levels, dtype=np.int32)
