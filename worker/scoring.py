"""Scores a version shard by shard, so that memory stays flat, and remembers finished shards between attempts."""

from __future__ import annotations

import io
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.filtering import CrossFilter, Filter
from models.training import Checkpoints, Watch
from service.datasets.shards import ShardReader
from worker.examiner import Examiner, Labels, Listing, Scores

FEWEST_AT_ONCE, MOST_AT_ONCE, PIXELS_AT_ONCE = 256, 1024, 2**20
"""A cancel is noticed between calls; many small images a call leave little of the detectors' fixed batches empty."""


class Scorer(Protocol):
    """The part of an examiner that scores."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def score(self, images: NDArray[np.uint8], labels: Labels, folds: Labels, rows: Labels) -> Scores: ...


def score_all(scorer: Scorer, reader: ShardReader, listing: Listing, watch: Watch, checkpoints: Checkpoints) -> Scores:
    """Scores (n, t) of every image in order."""
    found = np.empty((reader.num_samples, len(scorer.names)), np.float32)
    for number in range(reader.num_shards):
        here = slice(*reader.bounds(number))
        name = f"scores-{number:05d}"
        kept = checkpoints.load(name)
        if kept is None:
            found[here] = in_batches(
                scorer, reader.shard(number), listing.at(here), watch, here.start, reader.num_samples
            )
            checkpoints.save(name, packed(found[here]))
        else:
            found[here] = unpacked(kept)
        watch.advance(here.stop, reader.num_samples)
    return found


def score_range(scorer: Scorer, reader: ShardReader, listing: Listing, start: int, stop: int, watch: Watch) -> Scores:
    """Scores (stop − start, t) of the images from `start` on; the listing is of all the reader's images."""
    found = np.empty((stop - start, len(scorer.names)), np.float32)
    first, last = reader.shard_of(np.array([start, stop - 1]))
    for number in range(int(first), int(last) + 1):
        origin, after = reader.bounds(number)
        begin, end = max(start, origin), min(stop, after)
        images = reader.shard(number)[begin - origin : end - origin]
        here = slice(begin - start, end - start)
        found[here] = in_batches(scorer, images, listing.at(slice(begin, end)), watch, here.start, stop - start)
    watch.advance(stop - start, stop - start)
    return found


def score_rows(
    scorer: Scorer, reader: ShardReader, places: NDArray[np.int64], listing: Listing, watch: Watch
) -> Scores:
    """Scores of the images at `places`, which must be sorted; the listing is of all the reader's images."""
    found = np.empty((len(places), len(scorer.names)), np.float32)
    numbers = reader.shard_of(places)
    for number in np.unique(numbers):
        here = np.flatnonzero(numbers == number)
        images = reader.shard(int(number))[places[here] - reader.bounds(int(number))[0]]
        found[here] = in_batches(scorer, images, listing.at(places[here]), watch, int(here[0]), len(places))
    return found


def in_batches(
    scorer: Scorer, images: NDArray[np.uint8], listing: Listing, watch: Watch, start: int, total: int
) -> Scores:
    parts = []
    step = max(FEWEST_AT_ONCE, min(MOST_AT_ONCE, PIXELS_AT_ONCE // (images.shape[1] * images.shape[2])))
    for place in range(0, len(images), step):
        here = slice(place, place + step)
        of = listing.at(here)
        parts.append(scorer.score(images[here], of.labels, of.folds, of.rows))
        watch.advance(start + place, total)
    return np.concatenate(parts)


def filter_scores(fitted: Filter, images: NDArray[np.uint8], watch: Watch) -> Scores:
    """Scores (n,) of the filter alone."""
    blank = np.zeros(len(images), np.int64)
    found: Scores = in_batches(
        Examiner(CrossFilter((fitted,)), None), images, Listing(blank, blank, blank), watch, 0, len(images)
    )
    return found[:, 0]


def packed(scores: Scores) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, scores, allow_pickle=False)
    return buffer.getvalue()


def unpacked(data: bytes) -> Scores:
    scores: Scores = np.load(io.BytesIO(data), allow_pickle=False)
    return scores
