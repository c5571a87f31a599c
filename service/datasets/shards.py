"""A version's samples on storage: uint8 shards at the working resolution, an index of them, and a manifest."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy
from numpy.typing import NDArray

from service.errors import Corrupt
from service.storage import Storage

SHARD_IMAGES = 2048  # at most
BLOCK_IMAGES = 64
INDEX, MANIFEST = "shards.json", "manifest.parquet"
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


class Shard(NamedTuple):
    """A value with some images, which follow those of the shard before it in the index."""

    name: str  # below the version's prefix
    images: int


def write_index(storage: Storage, prefix: str, shards: list[Shard]) -> None:
    storage.write(f"{prefix}/{INDEX}", json.dumps(shards).encode())


def read_index(storage: Storage, prefix: str) -> list[Shard]:
    return [Shard(*each) for each in json.loads(storage.read(f"{prefix}/{INDEX}"))]


class ShardReader:
    """Reads a version back, shard by shard or image by image."""

    def __init__(self, storage: Storage, prefix: str, num_samples: int, image_shape: tuple[int, int, int]) -> None:
        self._storage = storage
        self._prefix = prefix
        self.num_samples = num_samples
        self.image_shape = image_shape

    @property
    def num_shards(self) -> int:
        return len(self._index)

    def bounds(self, number: int) -> tuple[int, int]:
        """The index of a shard's first image, and the one after its last."""
        return int(self._begins[number]), int(self._begins[number + 1])

    def shard_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the shard that holds each image."""
        return np.searchsorted(self._begins, indices, side="right").astype(np.int64) - 1

    def manifest(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All of it, or those columns of it."""
        with closing(self._storage.open(f"{self._prefix}/{MANIFEST}")) as file:
            return pq.ParquetFile(file).read(columns)

    def manifest_parts(self, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The manifest that many rows at a time, and the rest; no more of it is in memory."""
        with closing(self._storage.open(f"{self._prefix}/{MANIFEST}")) as file:
            yield from pq.ParquetFile(file).iter_batches(batch_size=rows, columns=columns)

    def labels(self) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self.manifest(["label"])["label"].to_numpy()
        return labels

    def rows(self) -> list[Row]:
        return [Row(**row) for row in self.manifest().to_pylist()]

    def shard(self, number: int) -> NDArray[np.uint8]:
        key, wanted = self._key(number), self._index[number].images
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
            yield self.bounds(number)[0], self.shard(number)

    def rows_in(self, start: int, count: int) -> pa.Table:
        """That part of the manifest, without reading the rest."""
        with closing(self._storage.open(f"{self._prefix}/{MANIFEST}")) as file:
            manifest = pq.ParquetFile(file)
            sizes = [manifest.metadata.row_group(number).num_rows for number in range(manifest.num_row_groups)]
            begins = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
            wanted = [i for i in range(len(sizes)) if begins[i] < start + count and begins[i + 1] > start]
            if not wanted:
                return SCHEMA.empty_table()
            return manifest.read_row_groups(wanted).slice(start - int(begins[wanted[0]]), count)

    def each_row(self) -> Iterator[Row]:
        """The manifest row by row, a little of it in memory at a time."""
        for part in self.manifest_parts(1024):
            for row in part.to_pylist():
                yield Row(**row)

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """All images in order, a few at a time, with none of the shards whole in memory."""
        for number, (_, left) in enumerate(self._index):
            with closing(self._storage.open(self._key(number))) as file:
                self._to_images(file, number)
                while left:
                    count = min(left, BLOCK_IMAGES)
                    yield self._read_images(file, count, number)
                    left -= count

    def image(self, index: int) -> NDArray[np.uint8]:
        number = int(self.shard_of(np.array([index]))[0])
        with closing(self._storage.open(self._key(number))) as file:
            self._to_images(file, number)
            file.seek((index - self.bounds(number)[0]) * math.prod(self.image_shape), io.SEEK_CUR)
            pixels: NDArray[np.uint8] = self._read_images(file, 1, number)[0]
            return pixels

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images at `indices`, in that order; every shard is read at most once."""
        found = np.empty((len(indices), *self.image_shape), np.uint8)
        numbers = self.shard_of(indices)
        for number in np.unique(numbers):
            here = numbers == number
            found[here] = self.shard(int(number))[indices[here] - self.bounds(int(number))[0]]
        return found

    @cached_property
    def _index(self) -> list[Shard]:
        found = read_index(self._storage, self._prefix)
        if sum(shard.images for shard in found) != self.num_samples:
            raise Corrupt(f"{self._prefix}/{INDEX} is not of {self.num_samples} images. Restore it from a backup.")
        return found

    @cached_property
    def _begins(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(shard.images for shard in self._index)], dtype=np.int64)

    def _key(self, number: int) -> str:
        return f"{self._prefix}/{self._index[number].name}"

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
        return Corrupt(f"{self._key(number)} cannot be read back ({why}). Restore the storage from a backup.")
