"""Which batch sizes a network may be called with, so that an image's answer does not depend on those around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
"""uint8 (n, h, w, c)."""
Told = NDArray[np.float64]
"""(n, …): all that is said of each of n images."""

PIXELS_A_CALL = 32 * 64 * 64
"""Activations grow with the pixels of a call: 64 images of up to 45×45, 32 of 64×64, 8 of 128×128."""

CPU_PIXELS_A_CALL = 8 * 32 * 32
"""One core gains nothing from more: its caches no longer hold the activations, and others wait for longer."""

COMPARED_AT_LEAST = 16
"""Images on which a small size is compared: one by one for size 1."""


def largest_batch(asked: int, image_shape: tuple[int, int, int], *, pixels: int = PIXELS_A_CALL) -> int:
    """The largest power of two that is at most `asked` images and so many pixels, at least 1."""
    height, width, _ = image_shape
    bound = max(min(asked, pixels // (height * width)), 1)
    return 1 << (bound.bit_length() - 1)


def trusted_sizes(judge: Callable[[Images], Told], probe: Images) -> tuple[int, ...]:
    """The powers of two up to len(probe) at which `judge` says of every probe image, bit for bit, the same; falling.

    Kernels may add in another order at another batch size or place in the batch, and an image near a threshold would
    then be answered or refused by the company it comes in. What is used is therefore measured on the machine that
    serves: sizes that differ from the largest are left out, and where places differ within it, only 1 is left.
    """
    whole = judge(probe)
    if not np.array_equal(judge(probe[::-1].copy())[::-1], whole):
        return (1,)
    smaller = [len(probe) >> shift for shift in range(1, len(probe).bit_length())]

    def agrees(size: int) -> bool:
        count = min(len(probe), max(size, COMPARED_AT_LEAST))
        parts = [judge(probe[start : start + size]) for start in range(0, count, size)]
        return np.array_equal(np.concatenate(parts), whole[:count])

    return (len(probe), *(size for size in smaller if agrees(size)))


def calls(count: int, sizes: tuple[int, ...]) -> Iterator[tuple[slice, int]]:
    """Cover range(count) by calls of trusted sizes: (rows, size of the call); the last call may need padding."""
    start = 0
    while start < count:
        size = next((size for size in sizes if size <= count - start), sizes[-1])
        yield slice(start, min(start + size, count)), size
        start += size


def padded(images: Images, size: int) -> Images:
    """`images` followed by black ones up to `size`."""
    if len(images) == size:
        return images
    filled = np.zeros((size, *images.shape[1:]), np.uint8)
    filled[: len(images)] = images
    return filled


def probe_images(count: int, image_shape: tuple[int, int, int]) -> Images:
    """Images to warm up and compare with: from flat to full noise, around varied levels; always the same."""
    rng = np.random.Generator(np.random.PCG64(0))
    contrast = np.linspace(0, 1, count).reshape(-1, 1, 1, 1)
    level = rng.uniform(0, 255, (count, 1, 1, image_shape[2]))
    noise = rng.uniform(-255, 255, (count, *image_shape))
    return np.clip(level + contrast * noise, 0, 255).astype(np.uint8)
