"""A version's samples on storage: uint8 shards at the working resolution, and a manifest with one row a sample."""

from __future__ import annotations

import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy
from numpy.typing import NDArray

from service.errors import Corrupt
from service.storage import Storage

SHARD_IMAGES = 2048
BLOCK_IMAGES = 64
MANIFEST_ROWS = 16_384  # of a row group: what a page of the manifest reads
SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),  # sha256 of the uploaded bytes
        ("path", pa.string()),
        ("label", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("group", pa.string()),
    ]
)


class Row(NamedTuple):
    """A manifest row: where an image came from, before it was brought to the working resolution."""

    sample_id: str
    path: str
    label: int
    width: int
    height: int
    group: str | None = None


@dataclass(frozen=True)
class Written:
    """What a writer left on storage."""

    digest: str  # sha256 over pixels, labels and sample ids, in order
    num_samples: int
    class_counts: list[int]


class ShardWriter:
    """Writes samples in order under `prefix`; they count only once a version row points there."""

    def __init__(self, storage: Storage, prefix: str, image_shape: tuple[int, int, int]) -> None:
        self._storage = storage
        self._prefix = prefix
        self._buffer = np.empty((SHARD_IMAGES, *image_shape), np.uint8)
        self._filled = 0
        self._shards = 0
        self._rows: list[Row] = []
        self._manifest: list[pa.RecordBatch] = []
        self._counts: Counter[int] = Counter()
        self._hash = hashlib.sha256()

    def add(self, pixels: NDArray[np.uint8], row: Row) -> None:
        self._buffer[self._filled] = pixels
        self._filled += 1
        self._rows.append(row)
        self._hash.update(pixels.tobytes())
        self._hash.update(f"{row.label} {row.sample_id}\n".encode())
        if self._filled == SHARD_IMAGES:
            self._flush()

    def close(self, num_classes: int) -> Written:
        if self._filled:
            self._flush()
        sink = io.BytesIO()
        table = pa.Table.from_batches(self._manifest, SCHEMA)
        pq.write_table(table, sink, compression="zstd", row_group_size=MANIFEST_ROWS)
        self._storage.write(f"{self._prefix}/manifest.parquet", sink.getvalue())
        counts = [self._counts[label] for label in range(num_classes)]
        return Written(self._hash.hexdigest(), table.num_rows, counts)

    def _flush(self) -> None:
        with self._storage.writing(shard_key(self._prefix, self._shards)) as file:
            np.save(file, self._buffer[: self._filled], allow_pickle=False)
        by_column = zip(*self._rows, strict=True)
        columns = [pa.array(column, field.type) for column, field in zip(by_column, SCHEMA, strict=True)]
        self._manifest.append(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
        self._counts.update(row.label for row in self._rows)
        self._rows.clear()
        self._shards += 1
        self._filled = 0


class ShardReader:
    """Reads a version back, shard by shard or image by image."""

    def __init__(self, storage: Storage, prefix: str, num_samples: int, image_shape: tuple[int, int, int]) -> None:
        self._storage = storage
        self._prefix = prefix
        self.num_samples = num_samples
        self.image_shape = image_shape

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // SHARD_IMAGES)

    def manifest(self) -> pa.Table:
        return pq.read_table(pa.BufferReader(self._storage.read(f"{self._prefix}/manifest.parquet")))

    def labels(self) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self.manifest()["label"].to_numpy().astype(np.int64)
        return labels

    def rows(self) -> list[Row]:
        return [Row(**row) for row in self.manifest().to_pylist()]

    def shard(self, number: int) -> NDArray[np.uint8]:
        key = shard_key(self._prefix, number)
        wanted = min(SHARD_IMAGES, self.num_samples - number * SHARD_IMAGES)
        try:
            images: NDArray[Any] = np.load(io.BytesIO(self._storage.read(key)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise self._unreadable(number, error) from error
        if images.dtype != np.uint8 or images.shape != (wanted, *self.image_shape):
            raise Corrupt(f"{key} holds {images.dtype}{images.shape}, not uint8{(wanted, *self.image_shape)}.")
        return images

    def shards(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(index of the first image, images) of every shard in order."""
        for number in range(self.num_shards):
            yield number * SHARD_IMAGES, self.shard(number)

    def rows_in(self, start: int, count: int) -> pa.Table:
        """That part of the manifest, without reading the rest."""
        with closing(self._storage.open(f"{self._prefix}/manifest.parquet")) as file:
            manifest = pq.ParquetFile(file)
            sizes = [manifest.metadata.row_group(number).num_rows for number in range(manifest.num_row_groups)]
            begins = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
            wanted = [i for i in range(len(sizes)) if begins[i] < start + count and begins[i + 1] > start]
            if not wanted:
                return SCHEMA.empty_table()
            return manifest.read_row_groups(wanted).slice(start - int(begins[wanted[0]]), count)

    def each_row(self) -> Iterator[Row]:
        """The manifest row by row, a little of it in memory at a time."""
        with closing(self._storage.open(f"{self._prefix}/manifest.parquet")) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield Row(**row)

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """All images in order, a few at a time, with none of the shards whole in memory."""
        for number in range(self.num_shards):
            left = min(SHARD_IMAGES, self.num_samples - number * SHARD_IMAGES)
            with closing(self._storage.open(shard_key(self._prefix, number))) as file:
                self._to_images(file, number)
                while left:
                    count = min(left, BLOCK_IMAGES)
                    yield self._read_images(file, count, number)
                    left -= count

    def image(self, index: int) -> NDArray[np.uint8]:
        number, place = divmod(index, SHARD_IMAGES)
        with closing(self._storage.open(shard_key(self._prefix, number))) as file:
            self._to_images(file, number)
            file.seek(place * math.prod(self.image_shape), io.SEEK_CUR)
            pixels: NDArray[np.uint8] = self._read_images(file, 1, number)[0]
            return pixels

    def _to_images(self, file: BinaryIO, number: int) -> None:
        try:
            npy.read_magic(file)
            shape, fortran, dtype = npy.read_array_header_1_0(file)
        except (ValueError, EOFError) as error:
            raise self._unreadable(number, error) from error
        if dtype != np.uint8 or shape[1:] != self.image_shape or fortran:
            raise self._unreadable(number, f"it holds {dtype}{shape}")

    def _read_images(self, file: BinaryIO, count: int, number: int) -> NDArray[np.uint8]:
        data = file.read(count * math.prod(self.image_shape))
        if len(data) != count * math.prod(self.image_shape):
            raise self._unreadable(number, "it ends too early")
        return np.frombuffer(data, np.uint8).reshape(count, *self.image_shape)

    def _unreadable(self, number: int, why: object) -> Corrupt:
        key = shard_key(self._prefix, number)
        return Corrupt(f"{key} cannot be read back ({why}). Restore the storage from a backup.")

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images at `indices`, in that order; every shard is read at most once."""
        found = np.empty((len(indices), *self.image_shape), np.uint8)
        numbers = indices // SHARD_IMAGES
        for number in np.unique(numbers):
            here = numbers == number
            found[here] = self.shard(int(number))[indices[here] - number * SHARD_IMAGES]
        return found


def shard_key(prefix: str, number: int) -> str:
    return f"{prefix}/shard-{number:05d}.npy"
