"""Writes a zip as a stream, uncompressed: nothing is sought back to, and the directory waits on disk, not in memory."""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator

VERSION, VERSION64 = 20, 45
UTF8, CRC_FOLLOWS = 0x800, 0x8
DATE = (1 << 5) | 1  # the first of January 1980: the same set gives the same bytes
FULL = 0xFFFFFFFF
MODE = 0o100644 << 16
DIRECTORY_BYTES_IN_MEMORY = 4 * 1024 * 1024
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")


class ZipStream:
    """Each method gives the bytes to send next; `end` gives the last ones."""

    def __init__(self) -> None:
        self._offset = 0
        self._count = 0
        self._directory = tempfile.SpooledTemporaryFile(DIRECTORY_BYTES_IN_MEMORY)  # noqa: SIM115 (closed by `end`)

    def file(self, name: str, data: bytes) -> bytes:
        """A file that is in memory."""
        raw, crc = name.encode(), zlib.crc32(data)
        head = _LOCAL.pack(b"PK\x03\x04", VERSION, UTF8, 0, 0, DATE, crc, len(data), len(data), len(raw), 0) + raw
        self._enter(raw, crc, len(data), UTF8, len(head) + len(data))
        return head + data

    def stream(self, name: str, size: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """A file of `size` bytes that is not; its checksum follows it."""
        raw, flags = name.encode(), UTF8 | CRC_FOLLOWS
        extra = struct.pack("<HHQQ", 1, 16, size, size)
        yield (
            _LOCAL.pack(b"PK\x03\x04", VERSION64, flags, 0, 0, DATE, 0, FULL, FULL, len(raw), len(extra)) + raw + extra
        )
        crc = given = 0
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
            given += len(piece)
            yield piece
        if given != size:
            raise ValueError(f"{name} has {given} bytes, not {size}")
        yield struct.pack("<4sLQQ", b"PK\x07\x08", crc, size, size)
        self._enter(raw, crc, size, flags, _LOCAL.size + len(raw) + len(extra) + size + 24)

    def end(self) -> Iterator[bytes]:
        size = self._directory.tell()
        self._directory.seek(0)
        while piece := self._directory.read(1024 * 1024):
            yield piece
        self._directory.close()
        end = self._offset + size
        if self._count >= 0xFFFF or end >= FULL:
            counts = (self._count, self._count, size, self._offset)
            yield struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, VERSION64, VERSION64, 0, 0, *counts)
            yield struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
        count = min(self._count, 0xFFFF)
        yield struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, min(size, FULL), min(self._offset, FULL), 0)

    def _enter(self, raw: bytes, crc: int, size: int, flags: int, length: int) -> None:
        wide = size >= FULL or self._offset >= FULL
        extra = struct.pack("<HHQQQ", 1, 24, size, size, self._offset) if wide else b""
        version = VERSION64 if wide or flags & CRC_FOLLOWS else VERSION
        shown, offset = (FULL, FULL) if wide else (size, self._offset)
        made_by = (3 << 8) | version
        self._directory.write(
            _ENTRY.pack(
                b"PK\x01\x02", made_by, version, flags, 0, 0, DATE, crc, shown, shown,
                len(raw), len(extra), 0, 0, 0, MODE, offset,
            ) + raw + extra
        )  # fmt: skip
        self._offset += length
        self._count += 1
