"""Scores a version shard by shard, so that memory stays flat, and remembers finished shards between attempts."""

from __future__ import annotations

import io
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.training import Checkpoints, Watch
from service.datasets.shards import SHARD_IMAGES, ShardReader

Scores = NDArray[np.float32]


class Scorer(Protocol):
    """The part of a filter that scores."""

    def score(self, images: NDArray[np.uint8]) -> Scores: ...


def score_all(scorer: Scorer, reader: ShardReader, watch: Watch, checkpoints: Checkpoints) -> Scores:
    """Scores (n,) of every image in order."""
    found = np.empty(reader.num_samples, np.float32)
    for number in range(reader.num_shards):
        here = slice(number * SHARD_IMAGES, min((number + 1) * SHARD_IMAGES, reader.num_samples))
        found[here] = _shard_scores(scorer, reader, number, checkpoints, watch, here.start)
        watch.advance(here.stop, reader.num_samples)
    return found


def score_rows(scorer: Scorer, reader: ShardReader, rows: NDArray[np.int64], watch: Watch) -> Scores:
    """Scores of the images at `rows`, which must be sorted."""
    found = np.empty(len(rows), np.float32)
    numbers = rows // SHARD_IMAGES
    for number in np.unique(numbers):
        here = np.flatnonzero(numbers == number)
        images = reader.shard(int(number))[rows[here] - number * SHARD_IMAGES]
        found[here] = in_batches(scorer, images, watch, int(here[0]), len(rows))
    return found


def _shard_scores(
    scorer: Scorer, reader: ShardReader, number: int, checkpoints: Checkpoints, watch: Watch, start: int
) -> Scores:
    name = f"scores-{number:05d}"
    kept = checkpoints.load(name)
    if kept is not None:
        loaded: Scores = np.load(io.BytesIO(kept), allow_pickle=False)
        return loaded
    scores = in_batches(scorer, reader.shard(number), watch, start, reader.num_samples)
    buffer = io.BytesIO()
    np.save(buffer, scores, allow_pickle=False)
    checkpoints.save(name, buffer.getvalue())
    return scores


WATCHED_IMAGES = 256  # a cancel is noticed within so many images


def in_batches(scorer: Scorer, images: NDArray[np.uint8], watch: Watch, start: int, total: int) -> Scores:
    parts = []
    for place in range(0, len(images), WATCHED_IMAGES):
        parts.append(scorer.score(images[place : place + WATCHED_IMAGES]))
        watch.advance(start + place, total)
    return np.concatenate(parts)
