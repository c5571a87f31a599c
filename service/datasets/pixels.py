"""What npz and IDX uploads share: images that come as pixels, all of one shape, with integer labels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from service.datasets.decode import ImageRejected, fit_pixels
from service.datasets.labelling import MAX_CLASSES
from service.datasets.sample import Limits, Sample
from service.errors import InvalidUpload, TooLarge


def check_shape(name: str, shape: tuple[int, ...], limits: Limits) -> tuple[int, int, int, int]:
    """(n, height, width, channels). Raises InvalidUpload or TooLarge."""
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise InvalidUpload(
            f"{name} has shape {shape}; "
            "wanted (n, height, width) or (n, height, width, channels) with 1 or 3 channels.",
            code="bad_image_shape",
        )
    if min(shape) < 1:
        raise InvalidUpload(f"{name} has shape {shape}: there is no image in it.", code="no_images")
    if shape[1] * shape[2] > limits.max_image_pixels:
        raise TooLarge(
            f"{name} has images of {shape[1]}×{shape[2]}; at most {limits.max_image_pixels} pixels are accepted."
        )
    if shape[0] > limits.max_images or math.prod(shape) > limits.max_unpacked_bytes:
        raise TooLarge(
            f"{name} unfolds to {math.prod(shape)} bytes in {shape[0]} images: split it into several data sets."
        )
    n, height, width, *rest = shape
    return n, height, width, rest[0] if rest else 1


def numbered(labels: NDArray[np.integer]) -> tuple[NDArray[np.int64], list[str]]:
    """(index of each label's class, classes named for the labels, in numeric order). Raises InvalidUpload."""
    values, places = np.unique(labels, return_inverse=True)
    if len(values) > MAX_CLASSES:
        raise InvalidUpload(f"labels holds {len(values)} different values; at most {MAX_CLASSES} classes are accepted.")
    return places.astype(np.int64), [str(value) for value in values]


def fit(sample: Sample, *, size: int, channels: int) -> NDArray[np.uint8]:
    """The sample's pixels at the working resolution. Raises ImageRejected."""
    if isinstance(sample.data, bytes):
        raise TypeError("this upload gives pixels")
    image = sample.data[:, :, 0] if sample.data.shape[2] == 1 else sample.data
    try:
        return fit_pixels(image, size=size, channels=channels)
    except (ValueError, OSError) as error:
        raise ImageRejected(f"its pixels cannot be resized ({error})") from error
