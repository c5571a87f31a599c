"""Writes a version's samples: in parts, by however many workers, and at last what is said of all of them together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.datasets.shards import MANIFEST, SCHEMA, SHARD_IMAGES, Row, Shard, write_index
from service.storage import Storage

MANIFEST_ROWS = 16_384  # of a row group: what a page of the manifest reads
PART_SCHEMA = SCHEMA.append(pa.field("pixels", pa.binary(32)))
"""A manifest row, and the sha256 of the image's pixels: a version's digest does not depend on who wrote which part."""


@dataclass(frozen=True)
class Part:
    """Samples in a row that are on storage, and what the manifest and the index are to say of them."""

    shards: list[Shard]
    rows: pa.Table  # PART_SCHEMA


@dataclass(frozen=True)
class Written:
    """What writers left on storage."""

    digest: str  # sha256 over the pixels' sha256, labels and sample ids, in order
    num_samples: int
    class_counts: list[int]


class PartWriter:
    """Writes samples in order under `prefix`, into shards that are named after the part."""

    def __init__(self, storage: Storage, prefix: str, name: str, image_shape: tuple[int, int, int]) -> None:
        self._storage, self._prefix, self._name = storage, prefix, name
        self._buffer = np.empty((SHARD_IMAGES, *image_shape), np.uint8)
        self._filled = 0
        self._rows: list[tuple[object, ...]] = []
        self._batches: list[pa.RecordBatch] = []
        self._shards: list[Shard] = []

    def add(self, pixels: NDArray[np.uint8], row: Row) -> None:
        self._buffer[self._filled] = pixels
        self._filled += 1
        self._rows.append((*row, hashlib.sha256(pixels.tobytes()).digest()))
        if self._filled == SHARD_IMAGES:
            self._flush()

    def close(self) -> Part:
        if self._filled:
            self._flush()
        return Part(self._shards, pa.Table.from_batches(self._batches, PART_SCHEMA))

    def _flush(self) -> None:
        shard = Shard(f"{self._name}-{len(self._shards):05d}.npy", self._filled)
        with self._storage.writing(f"{self._prefix}/{shard.name}") as file:
            np.save(file, self._buffer[: self._filled], allow_pickle=False)
        columns = [
            pa.array(column, field.type)
            for column, field in zip(zip(*self._rows, strict=True), PART_SCHEMA, strict=True)
        ]
        self._batches.append(pa.RecordBatch.from_arrays(columns, schema=PART_SCHEMA))
        self._shards.append(shard)
        self._rows.clear()
        self._filled = 0


class ShardWriter:
    """Writes a version alone, in one part; it counts only once a version row points at `prefix`."""

    def __init__(self, storage: Storage, prefix: str, image_shape: tuple[int, int, int]) -> None:
        self._storage, self._prefix = storage, prefix
        self._part = PartWriter(storage, prefix, "shard", image_shape)

    def add(self, pixels: NDArray[np.uint8], row: Row) -> None:
        self._part.add(pixels, row)

    def close(self, num_classes: int) -> Written:
        return unite(self._storage, self._prefix, [self._part.close()], num_classes)


def unite(storage: Storage, prefix: str, parts: Iterable[Part], num_classes: int) -> Written:
    """Write manifest and index over parts that follow each other; one of them at a time is in memory."""
    digest, counts, shards = hashlib.sha256(), np.zeros(num_classes, np.int64), list[Shard]()
    with (
        storage.writing(f"{prefix}/{MANIFEST}") as file,
        pq.ParquetWriter(file, SCHEMA, compression="zstd") as manifest,
    ):
        for part in parts:
            for label, sample_id, pixels in zip(
                *(part.rows[name].to_pylist() for name in ("label", "sample_id", "pixels")), strict=True
            ):
                digest.update(b"%d %b %b\n" % (label, sample_id.encode(), pixels))
            counts += np.bincount(part.rows["label"].to_numpy(), minlength=num_classes)
            shards += part.shards
            manifest.write_table(part.rows.select(SCHEMA.names), row_group_size=MANIFEST_ROWS)
    write_index(storage, prefix, shards)
    return Written(digest.hexdigest(), int(counts.sum()), counts.tolist())
