"""A version's samples on storage: uint8 shards at the working resolution, and a manifest with one row a sample."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.errors import Corrupt
from service.storage import Storage

SHARD_IMAGES = 2048
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


@dataclass(frozen=True)
class Row:
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
        columns = {name: [getattr(row, name) for row in self._rows] for name in SCHEMA.names}
        sink = io.BytesIO()
        pq.write_table(pa.table(columns, schema=SCHEMA), sink, compression="zstd")
        self._storage.write(f"{self._prefix}/manifest.parquet", sink.getvalue())
        counts = np.bincount([row.label for row in self._rows], minlength=num_classes)
        return Written(self._hash.hexdigest(), len(self._rows), [int(count) for count in counts])

    def _flush(self) -> None:
        with self._storage.writing(shard_key(self._prefix, self._shards)) as file:
            np.save(file, self._buffer[: self._filled], allow_pickle=False)
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
            raise Corrupt(f"{key} cannot be read back ({error}). Restore the storage from a backup.") from error
        if images.dtype != np.uint8 or images.shape != (wanted, *self.image_shape):
            raise Corrupt(f"{key} holds {images.dtype}{images.shape}, not uint8{(wanted, *self.image_shape)}.")
        return images

    def shards(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(index of the first image, images) of every shard in order."""
        for number in range(self.num_shards):
            yield number * SHARD_IMAGES, self.shard(number)

    def image(self, index: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self.images(np.array([index], np.int64))[0]
        return pixels

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
