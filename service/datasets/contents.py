"""The images of an archive as a table on storage: with it, any worker reads its share of them, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.datasets import tars, zips
from service.datasets.encoded import EncodedUpload, sample_of
from service.datasets.layouts import Entry
from service.datasets.members import Member
from service.datasets.sample import Sample
from service.storage import Storage

READERS = {"zip": zips.read_member, "tar": tars.read_member}
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.int64()),
        ("group", pa.string()),
        ("problem", pa.string()),
        ("size", pa.int64()),  # null where a table of labels names a file that is not there, as all that follows
        ("offset", pa.int64()),
        ("packed", pa.int64()),
        ("method", pa.int32()),
        ("crc", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Contents:
    """Where the table is, and the archive that it is of. share: images of one part."""

    table: str
    archive: str
    kind: str
    share: int

    def samples(self, storage: Storage, part: int, max_image_bytes: int) -> Iterator[Sample]:
        """The images of one part, in order."""
        read = READERS[self.kind]
        with closing(storage.open(self.table)) as file:
            rows = pq.ParquetFile(file).read_row_group(part).to_pylist()
        with closing(storage.open(self.archive)) as archive:
            for row in rows:
                yield sample_of(_entry(row), lambda member: read(archive, member, max_image_bytes))


def write_contents(storage: Storage, prefix: str, upload: EncodedUpload, key: str, share: int) -> Contents:
    """Below `prefix`, unless it is there: the same upload, at `key`, has the same contents.

    What a compressed archive unpacks to is written too, for nobody can begin in the middle of the archive itself.
    """
    contents = Contents(f"{prefix}/contents-{share}.parquet", key, upload.archive.kind, share)
    if upload.archive.unpacked is not None:
        contents = Contents(contents.table, f"{prefix}/unpacked", contents.kind, share)
        if not storage.exists(contents.archive):
            upload.archive.unpacked.seek(0)
            with storage.writing(contents.archive) as file:
                shutil.copyfileobj(upload.archive.unpacked, file, 1024 * 1024)
    if not storage.exists(contents.table):
        with storage.writing(contents.table) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as table:
            for start in range(0, len(upload.entries), share):
                columns = zip(*map(_row, upload.entries[start : start + share]), strict=True)
                arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
                table.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), row_group_size=share)
    return contents


def _row(entry: Entry) -> tuple[Any, ...]:
    _, size, offset, packed, method, crc = entry.member or (None,) * 6
    return entry.path, entry.label, entry.group, entry.problem, size, offset, packed, method, crc


def _entry(row: dict[str, Any]) -> Entry:
    member = None
    if row["size"] is not None:
        member = Member(row["path"], row["size"], row["offset"], row["packed"], row["method"], row["crc"])
    return Entry(row["path"], member, row["label"], row["group"], row["problem"])
