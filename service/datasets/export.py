"""A version as a file to take away: image folder, npz, Parquet or WebDataset, streamed with flat memory."""

from __future__ import annotations

import csv
import io
import json
import math
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy

from service.datasets import repository as datasets
from service.datasets.export_items import Item, Origin, items
from service.datasets.export_names import folder_names, stem_of
from service.datasets.sample import Limits
from service.datasets.shards import Row
from service.datasets.zip_stream import ZipStream
from service.storage import Storage
from service.tables import DatasetVersion

ExportFormat = Literal["imagefolder", "npz", "parquet", "webdataset"]

CHUNK_BYTES = 256 * 1024
GROUP_ROWS = 1000
GROUP_BYTES = 16 * 1024 * 1024
LABEL_ROWS = 65_536
METADATA_BYTES_IN_MEMORY = 4 * 1024 * 1024


@dataclass(frozen=True)
class Version:
    """What is exported, and what of its upload may be used for it."""

    storage: Storage
    row: DatasetVersion
    origin: Origin | None  # None: pixels only
    limits: Limits

    @property
    def classes(self) -> list[str]:
        return list(self.row.classes)

    def items(self) -> Iterator[Item]:
        return items(self.storage, self.row, self.origin, self.limits)

    def rows(self) -> Iterator[Row]:
        return datasets.reader(self.storage, self.row).each_row()


def exported(version: Version, format: ExportFormat) -> Iterator[bytes]:
    """The file, piece by piece."""
    held: list[bytes] = []
    size = 0
    for piece in WRITERS[format](version):
        held.append(piece)
        size += len(piece)
        if size >= CHUNK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


def image_folder(version: Version) -> Iterator[bytes]:
    """A zip with a folder a class; with `metadata.csv` where folders cannot tell all (odd names, groups)."""
    archive = ZipStream()
    folders = folder_names(version.classes)
    needed = folders != version.classes
    with tempfile.SpooledTemporaryFile(METADATA_BYTES_IN_MEMORY) as spool:
        text = io.TextIOWrapper(spool, "utf-8", newline="", write_through=True)
        table = csv.writer(text)
        table.writerow(["file_name", "label", "group", "sample_id"])
        for item in version.items():
            suffix, data = item.encoded()
            name = f"{folders[item.row.label]}/{item.place:08d}{stem_of(item.row.path)}.{suffix}"
            table.writerow([name, version.classes[item.row.label], item.row.group or "", item.row.sample_id])
            needed = needed or item.row.group is not None
            yield archive.file(name, data)
        if needed:
            size = spool.tell()
            spool.seek(0)
            yield from archive.stream("metadata.csv", size, iter(lambda: spool.read(CHUNK_BYTES), b""))
        text.detach()
    yield from archive.end()


def arrays(version: Version) -> Iterator[bytes]:
    """An npz: images (n, h, w, c) uint8 at the working resolution, labels, class names, and groups where there are."""
    archive = ZipStream()
    count = version.row.num_samples
    reader = datasets.reader(version.storage, version.row)
    yield from _array(
        archive, "images", "|u1", (count, *reader.image_shape), (block.tobytes() for block in reader.blocks())
    )
    labels = (np.array(batch, "<i8").tobytes() for batch in _batched(row.label for row in version.rows()))
    yield from _array(archive, "labels", "<i8", (count,), labels)
    names = np.array(version.classes, dtype=np.str_)
    yield from _array(archive, "classes", names.dtype.str, names.shape, [names.tobytes()])
    widths = {len(row.group) if row.group is not None else -1 for row in version.rows()}
    if min(widths, default=-1) >= 0:
        kind = f"<U{max(1, *widths)}"
        groups = (np.array(batch, kind).tobytes() for batch in _batched(row.group for row in version.rows()))
        yield from _array(archive, "groups", kind, (count,), groups)
    yield from archive.end()


def parquet(version: Version) -> Iterator[bytes]:
    """Encoded images and labels in Hugging Face's layout, with its metadata: class names come with it."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("image", image), ("label", pa.int64()), ("group", pa.string()), ("sample_id", pa.string())]
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": version.classes, "_type": "ClassLabel"},
        "group": {"dtype": "string", "_type": "Value"},
        "sample_id": {"dtype": "string", "_type": "Value"},
    }
    schema = pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})
    sink = _Sink()
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="none", write_statistics=False) as writer:
        rows: list[dict[str, Any]] = []
        size = 0
        for item in version.items():
            _, data = item.encoded()
            row = item.row
            told = {"label": row.label, "group": row.group, "sample_id": row.sample_id}
            rows.append({"image": {"bytes": data, "path": row.path}, **told})
            size += len(data)
            if len(rows) == GROUP_ROWS or size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, size = [], 0
                yield sink.taken()
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    yield sink.taken()


def web_dataset(version: Version) -> Iterator[bytes]:
    """A tar of samples: the image, its class's number (.cls), and what else is known of it (.json)."""
    for item in version.items():
        suffix, data = item.encoded()
        row = item.row
        told = {
            "label": row.label,
            "class_name": version.classes[row.label],
            "group": row.group,
            "path": row.path,
            "sample_id": row.sample_id,
        }
        key = f"{item.place:08d}"
        yield _member(f"{key}.{suffix}", data)
        yield _member(f"{key}.cls", str(row.label).encode())
        yield _member(f"{key}.json", json.dumps(told).encode())
    yield bytes(2 * tarfile.BLOCKSIZE)


WRITERS: dict[ExportFormat, Callable[[Version], Iterator[bytes]]] = {
    "imagefolder": image_folder,
    "npz": arrays,
    "parquet": parquet,
    "webdataset": web_dataset,
}
SUFFIXES: dict[ExportFormat, str] = {"imagefolder": "zip", "npz": "npz", "parquet": "parquet", "webdataset": "tar"}
MEDIA_TYPES: dict[ExportFormat, str] = {
    "imagefolder": "application/zip",
    "npz": "application/zip",
    "parquet": "application/vnd.apache.parquet",
    "webdataset": "application/x-tar",
}


class _Sink(io.RawIOBase):
    """Where Parquet is written to, and taken from a row group at a time."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        self._written += len(self._pieces[-1])
        return len(self._pieces[-1])

    def tell(self) -> int:
        return self._written

    def taken(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


def _array(
    archive: ZipStream, name: str, kind: str, shape: tuple[int, ...], pieces: Iterator[bytes] | list[bytes]
) -> Iterator[bytes]:
    head = io.BytesIO()
    npy.write_array_header_1_0(head, {"descr": kind, "fortran_order": False, "shape": shape})

    def whole() -> Iterator[bytes]:
        yield head.getvalue()
        yield from pieces

    size = len(head.getvalue()) + math.prod(shape) * np.dtype(kind).itemsize
    return archive.stream(f"{name}.npy", size, whole())


def _batched(values: Iterator[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for value in values:
        batch.append(value)
        if len(batch) == LABEL_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _member(name: str, data: bytes) -> bytes:
    """A file in a tar: its header in the ustar form, and its bytes."""
    head = b"%-100b0000644\0" % name.encode().ljust(100, b"\0")
    head += b"0000000\x000000000\x00%011o\x00%011o\0" % (len(data), 0)
    tail = b"0".ljust(101, b"\0") + b"ustar\x0000"
    checksum = sum(head) + sum(tail) + 8 * 0x20
    block = (head + b"%06o\0 " % checksum + tail).ljust(tarfile.BLOCKSIZE, b"\0")
    return block + data + bytes(-len(data) % tarfile.BLOCKSIZE)
