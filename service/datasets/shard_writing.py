"""Writes a version's samples: in parts, by however many workers, and at last what is said of all of them together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
    num_groups: int | None = None  # None where not every sample names one


class PartWriter:
    """Writes samples in order under `prefix`, into shards that are named after the part."""

    def __init__(self, storage: Storage, prefix: str, name: str, image_shape: tuple[int, int, int]) -> None:
        self._storage, self._prefix, self._name = storage, prefix, name
        self._buffer = np.empty((SHARD_IMAGES, *image_shape), np.uint8)
        self._filled = self._taken = 0
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
        """All that has been written since the last `take`."""
        if self._filled:
            self._flush()
        return self.take()

    def take(self) -> Part:
        """The shards that are full, which are forgotten here; the next part goes on where they end."""
        part = Part(self._shards, pa.Table.from_batches(self._batches, PART_SCHEMA))
        self._taken += len(self._shards)
        self._shards, self._batches = [], []
        return part

    @property
    def num_shards(self) -> int:
        """That are full and have not been taken."""
        return len(self._shards)

    def _flush(self) -> None:
        shard = Shard(f"{self._name}-{self._taken + len(self._shards):05d}.npy", self._filled)
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


class VersionWriter:
    """Manifest and index over parts that follow each other: there once it is closed, not where the block fails."""

    def __init__(self, storage: Storage, prefix: str, num_classes: int) -> None:
        self._storage, self._prefix = storage, prefix
        self._digest, self._counts = hashlib.sha256(), np.zeros(num_classes, np.int64)
        self._shards: list[Shard] = []
        self._groups: list[pa.Array] | None = []  # each part's, once; None as soon as a sample names none
        self._files = ExitStack()

    def __enter__(self) -> Self:
        with self._files as files:
            file = files.enter_context(self._storage.writing(f"{self._prefix}/{MANIFEST}"))
            self._manifest = files.enter_context(pq.ParquetWriter(file, SCHEMA, compression="zstd"))
            self._files = files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)

    def add(self, part: Part) -> None:
        if not part.rows.num_rows:
            return
        for label, sample_id, pixels in zip(
            *(part.rows[name].to_pylist() for name in ("label", "sample_id", "pixels")), strict=True
        ):
            self._digest.update(b"%d %b %b\n" % (label, sample_id.encode(), pixels))
        self._counts += np.bincount(part.rows["label"].to_numpy(), minlength=len(self._counts))
        self._gather_groups(part.rows["group"])
        self._shards += part.shards
        self._manifest.write_table(part.rows.select(SCHEMA.names), row_group_size=MANIFEST_ROWS)

    def close(self) -> Written:
        """The manifest is whole, and the index is written."""
        self._files.close()
        write_index(self._storage, self._prefix, self._shards)
        return Written(self._digest.hexdigest(), int(self._counts.sum()), self._counts.tolist(), self._num_groups())

    def _gather_groups(self, named: pa.ChunkedArray) -> None:
        if named.null_count:
            self._groups = None
        elif self._groups is not None:
            self._groups.append(pc.unique(named))

    def _num_groups(self) -> int | None:
        return None if not self._groups else int(pc.count_distinct(pa.chunked_array(self._groups)).as_py())


class ShardWriter:
    """Writes a version alone, sample by sample; it counts only once a version row points at `prefix`."""

    def __init__(self, storage: Storage, prefix: str, image_shape: tuple[int, int, int], num_classes: int) -> None:
        self._part = PartWriter(storage, prefix, "shard", image_shape)
        self._version = VersionWriter(storage, prefix, num_classes)

    def __enter__(self) -> Self:
        self._version.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._version.__exit__(kind, error, trace)

    def add(self, pixels: NDArray[np.uint8], row: Row) -> None:
        self._part.add(pixels, row)
        if self._part.num_shards == MANIFEST_ROWS // SHARD_IMAGES:
            self._version.add(self._part.take())

    def close(self) -> Written:
        self._version.add(self._part.close())
        return self._version.close()


def unite(storage: Storage, prefix: str, parts: Iterable[Part], num_classes: int) -> Written:
    """One of the parts at a time is in memory."""
    with VersionWriter(storage, prefix, num_classes) as version:
        for part in parts:
            version.add(part)
        return version.close()
