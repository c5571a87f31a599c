"""Whether an image has near-duplicates in the set that carry another label, and how many of them.

A perceptual hash of 128 bits an image, and an index that finds all hashes within a few bits: 56 bytes an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from models.detectors.pixels import check_images

SEES = (
    "Images that are in the set more than once, copied, recompressed or slightly changed, under different labels; "
    "the label that fewer of the copies carry is the suspicious one."
)
BLIND_TO = (
    "All that has no copy in the set; copies that were cropped, rotated, mirrored or recoloured; "
    "and images too plain to tell apart."
)

Images = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.floating]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int64]

FREQUENCIES = 16
LUMINANCE_BITS, COLOUR_BITS = 96, 16
MARGIN = 0.25
"""Grey levels below which a wave's amplitude counts as none, so that a plain image's bits do not hang on noise."""
FEWEST_WAVES = 12
BANDS = 8
RADIUS = BANDS - 1
IMAGES_AT_ONCE = 1024
PAIRS_AT_ONCE = 1_000_000
CROWD = 2048
"""Different hashes that share a band; beyond it the band tells too little to be worth comparing them all."""


def perceptual_hashes(images: Images) -> Hashes:
    """uint64 (n, 2): signs of the slowest cosine waves of the luminance (96) and of two colour differences (16 each).

    images: uint8 (n, h, w, c), c of 1 or 3, any size. A hash of zeros stands for none: an image with fewer than 12
    waves of any amplitude looks like too many others. Raises ValueError for other types and shapes.
    Source: the DCT hash of Zauner 2010, section 3.2.1. Deviations: colour, signs for comparisons with the median.
    """
    check_images(images)
    rows, columns = (_cosines(side) for side in images.shape[1:3])
    hashes = np.empty((len(images), 2), dtype=np.uint64)
    for start in range(0, len(images), IMAGES_AT_ONCE):
        block = images[start : start + IMAGES_AT_ONCE].astype(np.float32)
        waves = _waves(block, rows, columns)
        bits = np.packbits(np.ascontiguousarray((waves > MARGIN)[:, _BIT_ORDER]), axis=1)
        plain = np.count_nonzero(np.abs(waves) > MARGIN, axis=1) < FEWEST_WAVES
        hashes[start : start + IMAGES_AT_ONCE] = np.where(plain[:, None], np.uint64(0), bits.view(np.uint64))
    return hashes


@dataclass(frozen=True, eq=False)
class DuplicateIndex:
    """The u different hashes of a set, what labels they carry, and for each of 8 bands of 16 bits an order of them.

    hashes: (u, 2). keys, counts: (v,), hash · num_labels + label, ascending, and how many images have both.
    totals: (u,), images of each hash. order: int32 (8, u), hashes by a band's bits; starts: (8, 65537), where each
    value of the bits begins in it. crowded: how many (hash, band) are in buckets too full to search.
    """

    hashes: Hashes
    keys: Ids
    counts: Ids
    totals: Ids
    num_labels: int
    order: npt.NDArray[np.int32]
    starts: Ids
    crowded: int

    @classmethod
    def fit(cls, hashes: Hashes, labels: Labels) -> Self:
        """hashes: (m, 2) as from `perceptual_hashes`; labels: (m,), ≥ 0. Raises ValueError where they do not fit."""
        _check(hashes, labels)
        kept = hashes.any(axis=1)
        different, which = np.unique(hashes[kept], axis=0, return_inverse=True)
        num_labels = int(labels.max(initial=0)) + 1
        keys, counts = np.unique(which.reshape(-1).astype(np.int64) * num_labels + labels[kept], return_counts=True)
        bands = _bands(different)
        order = np.argsort(bands, axis=0, kind="stable").T.astype(np.int32)
        sizes = np.stack([np.bincount(band, minlength=2**16) for band in bands.T])
        starts = np.concatenate([np.zeros((BANDS, 1), dtype=np.int64), sizes.cumsum(axis=1)], axis=1)
        totals = np.bincount(keys // num_labels, weights=counts, minlength=len(different)).astype(np.int64)
        return cls(
            np.ascontiguousarray(different),
            keys.astype(np.int64),
            counts.astype(np.int64),
            totals,
            num_labels,
            order,
            starts,
            crowded=int(sizes[sizes > CROWD].sum()),
        )

    def score(self, hashes: Hashes, labels: Labels, *, indexed: bool) -> Float32s:
        """Closeness of the nearest duplicate with another label × weighted share of other labels among all copies.

        hashes: (n, 2); labels: (n,); indexed: whether these very images are in the index. Returns (n,) in [0, 1): 0
        where no image within 7 bits has another label. A copy at b bits weighs 1 − b/8, the image itself 1.
        Raises ValueError where shapes do not fit. Source: multi-index hashing, Norouzi et al. 2012.
        """
        _check(hashes, labels)
        nearest = np.full(len(hashes), RADIUS + 1, dtype=np.int64)
        own = np.full(len(hashes), 0.0 if indexed else 1.0)
        other = np.zeros(len(hashes))
        bands = _bands(hashes)
        for queries, band in self._blocks(hashes, bands):
            query, found, distance = self._pairs(hashes, bands, queries, band)
            mine = self._count(found, labels[query])
            theirs = self.totals[found] - mine
            weight = 1 - distance / (RADIUS + 1)
            own += np.bincount(query, weights=weight * mine, minlength=len(own))
            other += np.bincount(query, weights=weight * theirs, minlength=len(own))
            np.minimum.at(nearest, query[theirs > 0], distance[theirs > 0])
        closeness = 1 - nearest / (RADIUS + 1)
        return (closeness * other / np.maximum(own + other, 1e-9)).astype(np.float32)

    def _blocks(self, hashes: Hashes, bands: npt.NDArray[np.uint16]) -> list[tuple[Ids, int]]:
        """Queries by band, so many at once that they meet at most a million hashes, or are one."""
        blocks = []
        for band in range(BANDS):
            size = self._sizes(bands, band) * hashes.any(axis=1)
            queries = np.flatnonzero((size > 0) & (size <= CROWD))
            piece = (np.cumsum(size[queries]) - 1) // PAIRS_AT_ONCE
            blocks += [(part, band) for part in np.split(queries, np.flatnonzero(np.diff(piece)) + 1) if len(part)]
        return blocks

    def _sizes(self, bands: npt.NDArray[np.uint16], band: int) -> Ids:
        value = bands[:, band].astype(np.int64)
        return np.asarray(self.starts[band][value + 1] - self.starts[band][value], dtype=np.int64)

    def _pairs(
        self, hashes: Hashes, bands: npt.NDArray[np.uint16], queries: Ids, band: int
    ) -> tuple[Ids, Ids, npt.NDArray[np.int64]]:
        """Query, hash and distance of all pairs within the radius whose first searched common band is `band`."""
        size = self._sizes(bands, band)[queries]
        query = np.repeat(queries, size)
        within = np.arange(len(query)) - np.repeat(np.cumsum(size) - size, size)
        found = self.order[band][self.starts[band][bands[query, band].astype(np.int64)] + within].astype(np.int64)
        difference = hashes[query] ^ self.hashes[found]
        distance = np.bitwise_count(difference).sum(axis=1, dtype=np.int64)
        near = np.flatnonzero(distance <= RADIUS)
        query, found, distance = query[near], found[near], distance[near]
        new = np.ones(len(near), dtype=np.bool_)
        common = _bands(difference[near]) == 0
        for earlier in range(band):
            new &= ~(common[:, earlier] & (self._sizes(bands[query], earlier) <= CROWD))
        return query[new], found[new], distance[new]

    def _count(self, found: Ids, labels: Labels) -> Ids:
        """Images that have both the hash and the label."""
        known = labels < self.num_labels
        key = np.where(known, found * self.num_labels + labels, -1)
        place = np.minimum(np.searchsorted(self.keys, key), max(0, len(self.keys) - 1))
        return np.where(self.keys[place] == key, self.counts[place], 0) if len(key) else np.zeros(0, dtype=np.int64)


def _bands(hashes: Hashes) -> npt.NDArray[np.uint16]:
    """(n, 8), 16 bits each."""
    return np.ascontiguousarray(hashes).view(np.uint16).reshape(len(hashes), BANDS)


def _waves(block: Float32s, rows: Float32s, columns: Float32s) -> Float32s:
    """Amplitudes (b, 128) in grey levels of the slowest waves: luminance without its mean, then two colour planes."""
    red, green, blue = (block[..., min(channel, block.shape[3] - 1)] for channel in range(3))
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    # One small product an image, whatever the block: its rounding does not depend on the others.
    planes = [rows @ plane @ columns.T for plane in (luminance, red - green, (red + green) / 2 - blue)]
    parts = [
        plane[:, order[:, 0], order[:, 1]]
        for plane, order in zip(planes, (_LUMINANCE_ORDER, _COLOUR_ORDER, _COLOUR_ORDER), strict=True)
    ]
    return np.concatenate(parts, axis=1)


def _cosines(side: int) -> Float32s:
    """(16, side): the means over pixels of an image times these are the amplitudes of its waves; 0 beyond its own."""
    wave, pixel = np.arange(FREQUENCIES)[:, None], np.arange(side)[None]
    cosines = np.cos(np.pi * wave * (2 * pixel + 1) / (2 * side)) * np.where(wave == 0, 1, 2) / side
    return np.where(wave < side, cosines, 0).astype(np.float32)


def _slowest(count: int, *, mean: bool) -> Ids:
    """(count, 2): wave numbers down and across, the slowest first."""
    down, across = np.divmod(np.arange(FREQUENCIES**2), FREQUENCIES)
    order = np.lexsort((down, np.hypot(down, across)))
    return np.stack([down, across], axis=1)[order][0 if mean else 1 :][:count].astype(np.int64)


def _check(hashes: Hashes, labels: Labels) -> None:
    if hashes.dtype != np.uint64 or hashes.shape != (len(labels), 2) or labels.ndim != 1:
        raise ValueError(f"hashes must be uint64 of shape (n, 2) and fit the labels, not {hashes.dtype} {hashes.shape}")
    if len(labels) and labels.min() < 0:
        raise ValueError("labels must be 0 or more")


_LUMINANCE_ORDER = _slowest(LUMINANCE_BITS, mean=False)
_COLOUR_ORDER = _slowest(COLOUR_BITS, mean=True)
# Each band gets slow and fast waves alike: the fast ones are faint, and a band of them alone would tell nothing.
_BIT_ORDER = np.arange(LUMINANCE_BITS + 2 * COLOUR_BITS).reshape(-1, BANDS).T.reshape(-1)
