"""Whether an image carries a small patch that recurs in the set, and above all where labels are not what they seem.

Needs no network of its own: windows of 3×3 pixels are coded coarsely and counted, as they lie and wherever they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from models.detectors.pixels import blocks, check_images, check_shape, check_surprise, reduced

SEES = (
    "Small triggers that are stamped: a patch that is the same in many images, at one place or at any, and whose "
    "images carry labels that the checked classifier does not believe. No network need have learnt it."
)
BLIND_TO = (
    "What is mixed in faintly, warped, or spread over the whole image; patches that look like what any image shows; "
    "a patch in some dozens of images only; and triggers on images whose label is right."
)

Images = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]

WINDOW = 3
LARGEST_SIDE = 64
"""Larger images are averaged down to it: their triggers are larger too."""
CONTRAST = 16
"""Grey levels by which a pixel must differ from its window's mean to count as lighter or darker."""
COLOUR_BITS = 2
PATTERNS = 3 ** (WINDOW * WINDOW)
IMAGES_AT_ONCE = 512
USUAL = 0.9
"""The share of the images that anything recurring sets apart from; their evidence is the unit of the score."""


@dataclass(frozen=True, eq=False)
class RecurringPatch:
    """keys: int64 (k,), ascending, place · codes + code, where place 0 stands for anywhere; evidence: float32 (k,).

    image_shape: (3,), height, width and channels of the images.
    """

    keys: Ids
    evidence: Float32s
    image_shape: Ids

    @classmethod
    def fit(cls, images: Images, surprise: Floats, trusted: Bools) -> Self:
        """images: uint8 (n, h, w, c), c of 1 or 3; surprise: (n,) in [0, 1], 1 − p(label); trusted: bool (n,), or
        those that taught the first classifiers where nobody is.

        For each code, at each place and anywhere: how much more surprise the candidates that show it make up than is
        expected: as many as among the trusted images, or as many as do show it (and one more) if that is more or nobody
        is trusted, each as surprising as the candidates are on average. Where it recurs anywhere the texture of the set
        counts too, so both kinds of evidence are in units of what nine tenths of the images stay below, or of 1 if that
        is more.
        Raises ValueError for other types and shapes.
        Source: ours; the log likelihood ratio of counts, expectation-based (Neill et al. 2005). Deviation: of surprise.
        """
        check_images(images)
        check_surprise(images, surprise)
        if trusted.shape != surprise.shape:
            raise ValueError(f"want a mark of trust for each image: {trusted.shape} for {len(images)}")
        codes = np.concatenate([_codes(images[rows]) for rows in blocks(images)] or [_codes(images)])
        weights = surprise[~trusted].astype(np.float64)
        count, shape = _code_count(images.shape[3]), np.array(images.shape[1:], np.int64)
        keys: list[Ids] = []
        evidence: list[Float32s] = []
        for find in (_anywhere, _placed):
            where, found = find(codes[~trusted], weights, codes[trusted], count)
            scores = cls(where, found.astype(np.float32), shape)._of_codes(codes)
            usual = float(np.quantile(scores, USUAL)) if len(scores) else 0.0
            keys.append(where)
            evidence.append((found / max(usual, 1.0)).astype(np.float32))
        return cls(np.concatenate(keys), np.concatenate(evidence), shape)

    def score(self, images: Images) -> Float32s:
        """uint8 (n, h, w, c) to (n,) ≥ 0: the most evidence against any of an image's windows.

        Raises ValueError for other types and shapes, and for images of another shape than were fitted.
        """
        check_shape(images, self.image_shape)
        found = np.zeros(len(images), np.float32)
        for rows in blocks(images):
            found[rows] = self._of_codes(_codes(images[rows]))
        return found

    def _of_codes(self, codes: Codes) -> Float32s:
        """(n, places) to (n,)."""
        count = _code_count(int(self.image_shape[2]))
        best = np.zeros(len(codes), np.float32)
        if not len(self.keys):
            return best
        of_place = count * np.arange(1, codes.shape[1] + 1, dtype=np.int64)
        for start in range(0, len(codes), IMAGES_AT_ONCE):
            block = codes[start : start + IMAGES_AT_ONCE].astype(np.int64)
            for keys in (block, block + of_place):
                at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
                found = np.where(self.keys[at] == keys, self.evidence[at], np.float32(0))
                rows = best[start : start + len(block)]
                np.maximum(rows, found.max(axis=1, initial=0), out=rows)
        return best


def _anywhere(candidates: Codes, weights: Float64s, trusted: Codes, count: int) -> tuple[Ids, Float64s]:
    """Keys of place 0 and their evidence: an image counts once, however often it shows a code."""
    shown, surprising, usual = np.zeros(count), np.zeros(count), np.zeros(count)
    for start, block in enumerate(_blocks(candidates)):
        rows, codes = _distinct(block)
        shown += np.bincount(codes, minlength=count)
        surprising += np.bincount(codes, weights[start * IMAGES_AT_ONCE + rows], minlength=count)
    for block in _blocks(trusted):
        usual += np.bincount(_distinct(block)[1], minlength=count)
    evidence = _evidence(shown, surprising, usual, weights, len(trusted))
    keys = np.flatnonzero(evidence)
    return keys.astype(np.int64), evidence[keys]


def _placed(candidates: Codes, weights: Float64s, trusted: Codes, count: int) -> tuple[Ids, Float64s]:
    parts = [(np.zeros(0, np.int64), np.zeros(0))]
    for place in range(candidates.shape[1]):
        codes, which = np.unique(candidates[:, place], return_inverse=True)
        known, known_count = np.unique(trusted[:, place], return_counts=True)
        usual = np.zeros(len(codes))
        _, ours, theirs = np.intersect1d(codes, known, assume_unique=True, return_indices=True)
        usual[ours] = known_count[theirs]
        shown = np.bincount(which, minlength=len(codes))
        surprising = np.bincount(which, weights, minlength=len(codes)).astype(np.float64)
        evidence = _evidence(shown, surprising, usual, weights, len(trusted))
        found = np.flatnonzero(evidence)
        parts.append((count * (place + 1) + codes[found].astype(np.int64), evidence[found]))
    return np.concatenate([keys for keys, _ in parts]), np.concatenate([evidence for _, evidence in parts])


def _evidence(
    shown: npt.NDArray[np.generic], surprising: Float64s, usual: Float64s, weights: Float64s, trusted: int
) -> Float64s:
    """By code, in nats, 0 where there is no more surprise than expected. usual: how many trusted images show it."""
    mean = float(weights.mean()) if len(weights) else 0.0
    usually = len(weights) * (usual + 1) / (trusted + 1) if trusted else np.zeros(len(usual))
    expected = mean * np.maximum(shown.astype(np.float64) + 1, usually)
    more = (surprising > expected) & (expected > 0)
    ratio = np.divide(surprising, expected, out=np.ones(len(expected)), where=more)
    return np.asarray(np.where(more, surprising * np.log(ratio) - (surprising - expected), 0.0), dtype=np.float64)


def _distinct(codes: Codes) -> tuple[npt.NDArray[np.intp], Codes]:
    """Row and code of each different code of a row."""
    ordered = np.sort(codes, axis=1)
    first = np.ones(ordered.shape, np.bool_)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return np.nonzero(first)[0], ordered[first]


def _codes(images: Images) -> Codes:
    """int32 (n, places): of each window which pixels are lighter and darker than its mean, and its mean colour."""
    levels = reduced(images, LARGEST_SIDE)
    grey = levels @ np.array([77, 150, 29], np.int32) >> 8 if levels.shape[3] == 3 else levels[..., 0]
    mean = _window_sum(grey) // WINDOW**2
    code = np.zeros(mean.shape, np.int32)
    for pixels in _pixels(grey):
        code = code * 3 + (pixels - mean > CONTRAST) + 2 * (mean - pixels > CONTRAST)
    for channel in range(levels.shape[3]):
        colour = _window_sum(levels[..., channel]) // WINDOW**2
        code = (code << COLOUR_BITS) | (colour >> (8 - COLOUR_BITS))
    return np.ascontiguousarray(code.reshape(len(images), mean.shape[1] * mean.shape[2]), dtype=np.int32)


def _pixels(plane: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.int32]]:
    """(n, h, w) to each of a window's pixels in turn, for all windows at once: (n, h − 2, w − 2), none if too small."""
    rows, columns = (max(0, side - WINDOW + 1) for side in plane.shape[1:])
    for row in range(WINDOW):
        for column in range(WINDOW):
            yield plane[:, row : row + rows, column : column + columns]


def _window_sum(plane: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return np.asarray(np.sum(np.stack(list(_pixels(plane))), axis=0), dtype=np.int32)


def _blocks(codes: Codes) -> Iterator[Codes]:
    for start in range(0, len(codes), IMAGES_AT_ONCE):
        yield codes[start : start + IMAGES_AT_ONCE]


def _code_count(channels: int) -> int:
    return int(PATTERNS << (COLOUR_BITS * channels))
