"""Whether an image carries a pattern that recurs in its class where labels are not what they seem: a matched filter.

Needs no network of its own: what surprising images of a class have more of than the others is averaged in the spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from models.detectors.pixels import blocks, check_images, check_shape, check_surprise, reduced

SEES = (
    "Triggers that are the same in every image and lie at the same place, however faint, large or small: blends, "
    "stripes, stamps; on images whose labels the checked classifier does not believe. No network need have learnt it."
)
BLIND_TO = (
    "Triggers that move or follow the image (warps), patterns in a handful of images of a class, and poison whose "
    "label is right. In a clean class it shows what its hard images share."
)

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Complexes = npt.NDArray[np.complex64]
Labels = npt.NDArray[np.int64]

LARGEST_SIDE = 32
"""Larger images are averaged down to it: what covers an image is seen in small, and templates stay small."""
CHANCE = 12.0
"""A wave counts by how far the square of its excess is beyond this many times what chance makes of it on average; that
is where chance alone lifts one wave in 160,000 (its squares are exponential)."""
FEWEST = 10


@dataclass(frozen=True, eq=False)
class RecurringPattern:
    """scale: (h', w', c), the usual amplitude of each wave; templates: (classes, h', w', c, 2), real and imaginary.

    image_shape: (3,), height, width and channels of the images.
    """

    scale: Float32s
    templates: Float32s
    image_shape: Labels

    @classmethod
    def fit(cls, images: Images, labels: Labels, surprise: Floats, *, num_classes: int) -> Self:
        """images: uint8 (n, h, w, c), c of 1 or 3; labels: (n,); surprise: (n,) in [0, 1], 1 − p(label).

        Each image's spectrum is whitened by the usual amplitudes and brought to length 1. A class's template is the
        mean weighted by surprise less the mean weighted by the rest of it, wave by wave shrunk by what chance would
        make of it. A class of fewer than 10 images has none. Raises ValueError for other types and shapes.
        Source: ours; the matched filter of detection theory, with Stein's shrinkage.
        """
        check_images(images)
        check_surprise(images, surprise)
        if labels.shape != surprise.shape:
            raise ValueError(f"want a label and a surprise for each image: {labels.shape}, {surprise.shape}")
        spectra = _spectra(images)
        power = np.mean(np.square(np.abs(spectra)), axis=0) if len(spectra) else np.ones(spectra.shape[1:])
        scale = np.sqrt(np.maximum(power, 1e-6)).astype(np.float32)
        white, weights = _white(spectra, scale), surprise.astype(np.float64)
        templates = np.zeros((num_classes, *scale.shape, 2), np.float32)
        for label in np.unique(labels):
            own = labels == label
            if np.count_nonzero(own) >= FEWEST:
                found = _template(white[own], weights[own])
                templates[label] = np.stack([found.real, found.imag], axis=-1)
        return cls(scale, templates, np.array(images.shape[1:], np.int64))

    def score(self, images: Images, labels: Labels) -> Float32s:
        """uint8 (n, h, w, c), (n,) to (n,) in [−1, 1]: how much of its class's template an image has.

        Raises ValueError for other types and shapes, and for images of another shape than were fitted.
        """
        check_shape(images, self.image_shape)
        found = np.zeros(len(images), np.float32)
        for rows in blocks(images):
            white, templates = _white(_spectra(images[rows]), self.scale), self.templates[labels[rows]]
            products = white.real * templates[..., 0] + white.imag * templates[..., 1]
            found[rows] = products.sum(axis=(1, 2, 3))
        return found


def _template(white: Complexes, weights: Float64s) -> Complexes:
    """Of one class's images (m, h', w', c) and their surprise (m,): (h', w', c), of length 1, or nothing but zeros."""
    variance, excess = np.mean(np.square(np.abs(white)), axis=0), np.zeros(white.shape[1:], np.complex128)
    chance = 0.0
    for sign, share in ((1, weights), (-1, 1 - weights)):
        total = share.sum()
        if total <= 0:
            return np.zeros(white.shape[1:], np.complex64)
        excess += sign * np.tensordot(share / total, white, axes=(0, 0))
        chance += float(np.square(share).sum() / total**2)
    squares = np.square(np.abs(excess)) / np.maximum(variance * chance, 1e-30)
    kept = excess * np.maximum(0, 1 - CHANCE / np.maximum(squares, CHANCE))
    return np.asarray(kept / max(float(np.linalg.norm(kept)), 1e-30), dtype=np.complex64)


def _white(spectra: Complexes, scale: Float32s) -> Complexes:
    """Every wave in units of its usual amplitude, every image of length 1."""
    white = spectra / scale
    lengths = np.sqrt(np.square(np.abs(white)).sum(axis=(1, 2, 3), keepdims=True))
    return np.asarray(white / np.maximum(lengths, 1e-30), dtype=np.complex64)


def _spectra(images: Images) -> Complexes:
    """The Fourier transform of each channel: (n, h', w' / 2 + 1, c), of sides of 32 at most."""
    height, width = (min(side, LARGEST_SIDE) for side in images.shape[1:3])
    down, across = _waves(height, height), _waves(width // 2 + 1, width)
    found = np.empty((len(images), height, width // 2 + 1, images.shape[3]), np.complex64)
    for rows in blocks(images):
        planes = reduced(images[rows], LARGEST_SIDE).astype(np.float32)
        for channel in range(images.shape[3]):
            # One small product an image, whatever the block: its rounding does not depend on the others.
            found[rows, :, :, channel] = down @ planes[..., channel] @ across.T
    return found


def _waves(count: int, side: int) -> Complexes:
    """(count, side): each wave's value at each pixel."""
    turns = np.outer(np.arange(count), np.arange(side)) / side
    return np.asarray(np.exp(-2j * np.pi * turns), dtype=np.complex64)
