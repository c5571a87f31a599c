"""The images of an archive as a table on storage: with it, any worker reads its share of them, and nothing else."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.datasets import tars, zips
from service.datasets.archive import Member
from service.datasets.decode import ImageRejected
from service.datasets.encoded import EncodedUpload, sample_of
from service.datasets.labelling import Entry
from service.datasets.sample import Sample
from service.errors import Corrupt
from service.storage import Storage

BLOCK_IMAGES, BLOCK_BYTES = 512, 32 * 1024 * 1024
AROUND_BYTES = 1024  # of a name and more before a file's own bytes; with a longer one it is read on its own
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

    def samples(self, storage: Storage, start: int, stop: int, max_image_bytes: int) -> Iterator[Sample]:
        """The images of one part, in order. Raises Corrupt where the table's parts are others."""
        read, whole = READERS[self.kind], storage.size(self.archive)
        entries = self._entries(storage, start, stop)
        with closing(storage.open(self.archive)) as archive:
            for block in _blocks(entries):
                wanted = [entry.member for entry in block if entry.member and entry.problem is None]
                members = [each for each in wanted if each.offset >= 0 and each.packed <= max_image_bytes]
                ranges = [(each.offset, min(each.offset + each.packed + AROUND_BYTES, whole)) for each in members]
                near = dict(zip(members, storage.read_ranges(self.archive, ranges), strict=True))

                def had(member: Member, near: dict[Member, bytes] = near) -> bytes:
                    try:
                        return read(io.BytesIO(near[member]), member._replace(offset=0), max_image_bytes)
                    except (KeyError, ImageRejected):  # for good only if the archive itself says so
                        return read(archive, member, max_image_bytes)

                for entry in block:
                    yield sample_of(entry, had)

    def _entries(self, storage: Storage, start: int, stop: int) -> list[Entry]:
        with closing(storage.open(self.table)) as file:
            table = pq.ParquetFile(file)
            sizes = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
            part, before = start // self.share, sum(sizes[: start // self.share])
            if before != start or sizes[part : part + 1] != [stop - start]:
                raise Corrupt(
                    f"{self.table} has no part of the images {start} to {stop - 1}, but parts of {sizes[:10]}. Send "
                    "the upload again, as a new job."
                )
            return [_entry(row) for row in table.read_row_group(part).to_pylist()]


def _blocks(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Some at a time, of a bounded size."""
    block: list[Entry] = []
    size = 0
    for entry in entries:
        block.append(entry)
        size += entry.member.packed if entry.member else 0
        if len(block) == BLOCK_IMAGES or size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


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
            for start in range(0, len(upload.labelled), share):
                columns = zip(*map(_row, upload.labelled.between(start, start + share)), strict=True)
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
