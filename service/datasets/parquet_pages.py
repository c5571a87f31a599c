"""Looks through a Parquet file's pages before a library reads them: no page may unfold to more than memory bears.

Page headers are Thrift structs in the compact protocol; only the sizes in them are wanted, the rest is stepped
over.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from service.datasets.sample import MAX_RATIO
from service.errors import InvalidUpload, TooLarge

MAX_PAGE_BYTES = 192 * 1024 * 1024
HEADER_BYTES = 256  # most are smaller;  a header may hold statistics: the least and greatest value, which may be images
MAX_HEADER_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 8


def check_pages(file: BinaryIO, metadata: Any, columns: set[str], max_unpacked_bytes: int) -> int:
    """The unpacked bytes of the largest page. Raises InvalidUpload or TooLarge.

    `columns` are the top-level names that will be read.
    """
    unpacked, largest = 0, 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for place in range(group.num_columns):
            chunk = group.column(place)
            if chunk.path_in_schema.split(".")[0] in columns:
                whole, page = _check_chunk(file, chunk)
                unpacked += whole
                largest = max(largest, page)
            if unpacked > max_unpacked_bytes:
                raise TooLarge(f"The Parquet file unfolds to over {max_unpacked_bytes} bytes. Split it.")
    return largest


def _check_chunk(file: BinaryIO, chunk: Any) -> tuple[int, int]:
    """The unpacked bytes of a column chunk and of its largest page, as their headers say; nobody reads more."""
    begin = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        begin = min(begin, chunk.dictionary_page_offset)
    end = begin + chunk.total_compressed_size
    if begin < 4 or end > file.seek(0, 2) or end < begin:
        raise _broken("a column lies outside of the file")
    unpacked = largest = 0
    while begin < end:
        size, packed, header = _page(file, begin)
        if size > MAX_PAGE_BYTES:
            raise TooLarge(
                f"A page of the Parquet file unfolds to {size} bytes; at most {MAX_PAGE_BYTES} are accepted. "
                "Write it again with smaller pages (data_page_size, write_batch_size)."
            )
        if size > MAX_RATIO * max(packed, 64 * 1024):
            raise TooLarge(
                f"A page of the Parquet file unfolds to more than {MAX_RATIO} times its size. Nothing was kept.",
                code="archive_bomb",
            )
        begin += header + packed
        unpacked += size
        largest = max(largest, size)
    return unpacked, largest


def _page(file: BinaryIO, offset: int) -> tuple[int, int, int]:
    """(unpacked bytes, packed bytes, bytes of the header) of the page at `offset`."""
    length = HEADER_BYTES
    while True:
        file.seek(offset)
        data = file.read(length)
        reader = _Compact(data)
        try:
            sizes = reader.page_sizes()
        except IndexError:
            if len(data) < length or length >= MAX_HEADER_BYTES:
                raise _broken("a page's header is damaged") from None
            length *= 16
            continue
        if sizes is None:
            raise _broken("a page's header is damaged")
        return *sizes, reader.place


class _Compact:
    """As much of Thrift's compact protocol as it takes to step over a struct. IndexError: more bytes are needed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def page_sizes(self) -> tuple[int, int] | None:
        """(unpacked, packed): the fields 2 and 3 of a page header."""
        found: dict[int, int] = {}
        field = 0
        while True:
            kind, field = self._field(field)
            if kind == 0:
                break
            if kind == 5 and field in (2, 3):
                found[field] = self._zigzag()
            else:
                self._skip(kind, 0)
        if set(found) != {2, 3} or min(found.values()) < 0:
            return None
        return found[2], found[3]

    def _field(self, last: int) -> tuple[int, int]:
        byte = self._byte()
        if byte == 0:
            return 0, 0
        return byte & 0x0F, last + (byte >> 4) if byte >> 4 else self._zigzag()

    def _skip(self, kind: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _broken("a page's header is damaged")
        if kind in (1, 2):  # true and false are in the kind itself
            return
        if kind == 3:
            self.place += 1
        elif kind in (4, 5, 6):
            self._varint()
        elif kind == 7:
            self.place += 8
        elif kind == 8:
            length = self._varint()
            self.place += length
        elif kind in (9, 10):
            self._skip_list(depth)
        elif kind == 12:
            field = 0
            while True:
                inner, field = self._field(field)
                if inner == 0:
                    break
                self._skip(inner, depth + 1)
        else:
            raise _broken("a page's header is damaged")
        if self.place > len(self._data):
            raise IndexError

    def _skip_list(self, depth: int) -> None:
        byte = self._byte()
        count = byte >> 4 if byte >> 4 != 15 else self._varint()
        if count > len(self._data):
            raise _broken("a page's header is damaged")
        for _ in range(count):
            if byte & 0x0F in (1, 2):
                self.place += 1
            else:
                self._skip(byte & 0x0F, depth + 1)

    def _byte(self) -> int:
        byte = self._data[self.place]
        self.place += 1
        return byte

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value
            if shift > 63:
                raise _broken("a page's header is damaged")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def _broken(why: str) -> InvalidUpload:
    return InvalidUpload(f"The Parquet file is damaged ({why}). Upload it again.", code="broken_parquet")
