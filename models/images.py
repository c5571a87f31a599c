"""Images between the two worlds: uint8 NHWC numpy outside, float32 NCHW channels-last in [0, 1] inside torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Images = npt.NDArray[np.uint8]
"""uint8 (n, h, w, c), c in {1, 3}."""

SMALLEST, LARGEST = 8, 256


class NotImages(ValueError):
    """An array that is not uint8 (n, h, w, c) with c in {1, 3} and sides of 8 to 256 pixels."""


def check_images(images: Images) -> None:
    """Raise NotImages unless `images` has the type and shape that the models take."""
    if images.dtype != np.uint8:
        raise NotImages(f"images must be uint8, not {images.dtype}")
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise NotImages(f"images must have shape (n, h, w, 1) or (n, h, w, 3), not {images.shape}")
    if not all(SMALLEST <= side <= LARGEST for side in images.shape[1:3]):
        raise NotImages(f"images must be {SMALLEST} to {LARGEST} pixels high and wide, not {images.shape[1:3]}")


def to_float(images: Images | Tensor, device: torch.device | None = None) -> Tensor:
    """uint8 (n, h, w, c) to float32 (n, c, h, w) in [0, 1], channels-last in memory.

    Call it a batch at a time: the result is four times the size of its argument.
    """
    batch = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    x = batch.to(device).permute(0, 3, 1, 2).to(torch.float32) / 255
    return x.contiguous(memory_format=torch.channels_last)


def to_uint8(x: Tensor) -> Images:
    """float (n, c, h, w) in [0, 1] to uint8 (n, h, w, c), rounded to the nearest level."""
    levels = (x.detach() * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(count)."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
