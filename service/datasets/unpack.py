"""Reads through gzip, bzip2 or xz as a stream that cannot grow without end."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from typing import TYPE_CHECKING, BinaryIO, Protocol

from service.errors import InvalidUpload, TooLarge

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAGICS = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
READ_BYTES = 256 * 1024
FREE_BYTES = 64 * 1024 * 1024  # what any upload may unfold to, whatever the ratio
MAX_STREAM_RATIO = 100  # images hardly compress; a whole stream of them never like this
MOST_FRUITLESS = 1000  # reads in a row that unfold to nothing
XZ_MEMORY_BYTES = 192 * 1024 * 1024


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Gunzip:
    """zlib in the manner of bz2 and lzma."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


def compression_of(head: bytes) -> str | None:
    """gz, bz2, xz, or None."""
    return next((kind for magic, kind in MAGICS.items() if head.startswith(magic)), None)


class Unpacked(io.RawIOBase):
    """The unpacked bytes of `file`. Raises InvalidUpload where it is damaged or cut, TooLarge where it is a bomb."""

    def __init__(self, file: BinaryIO, kind: str, max_bytes: int) -> None:
        self._file = file
        self._kind = kind
        self._max_bytes = max_bytes
        self._taken = 0
        self._given = 0
        self._fruitless = 0
        self._inner: _Decompressor | None = self._new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._next(len(view))
        view[: len(data)] = data
        self._given += len(data)
        if self._given > self._max_bytes:
            raise TooLarge(f"The upload unfolds to over {self._max_bytes} bytes. Split it into several data sets.")
        if self._given > FREE_BYTES and self._given > MAX_STREAM_RATIO * self._taken:
            raise TooLarge(
                f"The upload unfolds to more than {MAX_STREAM_RATIO} times its size. Nothing was kept.",
                code="archive_bomb",
            )
        return len(data)

    def _new(self) -> _Decompressor:
        if self._kind == "gz":
            return _Gunzip()
        if self._kind == "bz2":
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)

    def _next(self, count: int) -> bytes:
        try:
            while self._inner is not None:
                hungry = self._inner.needs_input
                fed = self._file.read(READ_BYTES) if hungry else b""
                self._taken += len(fed)
                data = self._inner.decompress(fed, count)
                self._fruitless = 0 if data else self._fruitless + 1
                if self._inner.eof:
                    self._following(self._inner.unused_data)
                elif (hungry and not fed and not data) or self._fruitless > MOST_FRUITLESS:
                    raise EOFError("it ends too early")
                if data:
                    return data
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
            raise InvalidUpload(
                f"The upload's compression is damaged ({error}). It may be cut short: upload it again.",
                code="broken_archive",
            ) from error
        return b""

    def _following(self, rest: bytes) -> None:
        """Several compressed streams in a row count as one; anything else after the end is passed over."""
        rest = rest.lstrip(b"\0")
        if len(rest) < 6:
            more = self._file.read(READ_BYTES)
            self._taken += len(more)
            rest = (rest + more).lstrip(b"\0")
        if compression_of(rest) != self._kind or self._fruitless > MOST_FRUITLESS:
            self._inner = None
            return
        self._file.seek(-len(rest), 1)
        self._taken -= len(rest)
        self._inner = self._new()
