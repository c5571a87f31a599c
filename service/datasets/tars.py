"""Indexes a tar in one pass. A compressed one is unpacked as it is read, into a file without a name."""

from __future__ import annotations

import io
import tempfile
import weakref
from collections.abc import Iterator
from typing import IO, BinaryIO, Protocol, cast

from service.datasets.archive import Member, MembersBuilder
from service.datasets.decode import ImageRejected
from service.datasets.members import Crowd, checked_name
from service.datasets.sample import Limits
from service.datasets.unpack import Unpacked
from service.disk import discard, scratch_told
from service.errors import InvalidUpload, TooLarge

BLOCK = 512
COPY_BYTES = 1024 * 1024
MAX_RECORD_BYTES = 64 * 1024  # of a long name, or of a file's extended attributes
MAX_RECORDS = 8  # of them in a row
CROWD_ALLOWED = 100_000
REGULAR = (b"0", b"\0", b"7")
REFUSED = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"6": "pipe"}
ABSENT = -1


def looks_like_tar(block: bytes) -> bool:
    """True for a whole first block whose checksum is right."""
    return len(block) >= BLOCK and block[0] != 0 and _checksum_holds(block[:BLOCK])


class TarArchive:
    """A tar whose members can be read in any order: where they lie in the upload, or in the spool."""

    kind = "tar"

    def __init__(self, file: BinaryIO, limits: Limits, compression: str | None = None) -> None:
        self._limits = limits
        found, most = MembersBuilder(), 4 * limits.max_images + CROWD_ALLOWED
        with scratch_told():
            self._source = _source(file, limits, compression)
            for member in _members(self._source):
                found.add(member)
                if len(found) > most:
                    raise TooLarge(f"The archive holds over {most} files. Split it into several data sets.")
            self._source.data.flush()
        self.members = found.built()

    def read(self, member: Member, limit: int) -> bytes:
        return read_member(self._source.data, member, limit)

    @property
    def unpacked(self) -> BinaryIO | None:
        """Where its members lie, if not in the upload."""
        return cast(BinaryIO, self._source.data) if isinstance(self._source, _Spooled) else None


def read_member(file: BinaryIO | IO[bytes], member: Member, limit: int) -> bytes:
    """The bytes of a member, at most `limit`. Raises ImageRejected where they cannot be had."""
    if member.size > limit or member.offset == ABSENT:
        raise ImageRejected(f"it is {member.size} bytes; at most {limit} are accepted")
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) != member.size:
        raise ImageRejected("the archive is damaged at this file (it ends too early)")
    return data


class _Source(Protocol):
    """A tar's bytes in order; `keep` says where the next ones can be read again."""

    data: IO[bytes]

    def take(self, count: int) -> bytes: ...
    def keep(self, count: int) -> int: ...


class _Plain:
    """The upload itself."""

    def __init__(self, file: BinaryIO) -> None:
        self.data: IO[bytes] = file
        self._total = file.seek(0, 2)
        file.seek(0)

    def take(self, count: int) -> bytes:
        return _whole(self.data.read(count), count)

    def keep(self, count: int) -> int:
        here = self.data.tell()
        if here + count > self._total:
            raise _cut()
        self.data.seek(here + _padded(count))
        return here


class _Spooled:
    """A stream that is read once; what may be wanted again goes to a file that no other process sees."""

    def __init__(self, stream: Unpacked, max_member_bytes: int) -> None:
        self.data: IO[bytes] = tempfile.TemporaryFile(prefix="winnow-spool-")  # noqa: SIM115 (lives as long as the archive)
        self._stream = io.BufferedReader(stream, COPY_BYTES)
        self._max_member_bytes = max_member_bytes
        weakref.finalize(self, discard, self.data)  # nobody else knows when the last image has been read

    def take(self, count: int) -> bytes:
        return _whole(self._stream.read(count), count)

    def keep(self, count: int) -> int:
        here = self.data.tell()
        wanted = count <= self._max_member_bytes
        left = _padded(count)
        while left:
            piece = self.take(min(left, COPY_BYTES))
            left -= len(piece)
            if wanted:
                self.data.write(piece)
        return here if wanted else ABSENT


def _source(file: BinaryIO, limits: Limits, compression: str | None) -> _Source:
    if compression is None:
        return _Plain(file)
    return _Spooled(Unpacked(file, compression, limits.max_unpacked_bytes), limits.max_image_bytes)


def _members(source: _Source) -> Iterator[Member]:
    long_name: str | None = None
    long_size: int | None = None
    records = 0
    crowd = Crowd()
    while True:
        block = source.take(BLOCK)
        if block.count(0) == BLOCK:
            return
        if not _checksum_holds(block):
            raise InvalidUpload(
                "The tar is damaged: a header's checksum is wrong. Upload it again.", code="broken_archive"
            )
        kind, size = block[156:157], _number(block[124:136])
        if kind in (b"L", b"K", b"x", b"g", b"X"):
            records += 1
            if records > MAX_RECORDS or size > MAX_RECORD_BYTES:
                raise InvalidUpload("The tar holds an oversized record before a file.", code="broken_archive")
            body = source.take(_padded(size))[:size]
            if kind == b"L":
                long_name = _text(body.rstrip(b"\0"))
            elif kind in (b"x", b"X"):
                long_name, long_size = _attributes(body, long_name, long_size)
            continue
        size = long_size if long_size is not None else size
        name = checked_name(long_name if long_name is not None else _short_name(block))
        long_name, long_size, records = None, None, 0
        crowd.add(name, size)
        if kind == b"5" or (kind in REGULAR and name.endswith("/")):
            continue
        _refuse_kind(kind, name)
        yield Member(name, size, source.keep(size), size)


def _refuse_kind(kind: bytes, name: str) -> None:
    if kind in REFUSED:
        raise InvalidUpload(
            f"The archive holds a {REFUSED[kind]}: {name!r}. Send the files themselves.", code="unsafe_path"
        )
    if kind not in REGULAR:
        raise InvalidUpload(
            f"The tar holds {name!r} in a form that is not read ({kind!r}). Write it with tar --format=pax.",
            code="broken_archive",
        )


def _attributes(body: bytes, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """Path and size as an extended header gives them. Raises InvalidUpload."""
    place = 0
    while place < len(body) and body[place] != 0:
        length_text, _, _ = body[place : place + 12].partition(b" ")
        length = int(length_text) if length_text.isdigit() else 0
        record = body[place : place + length]
        if length < len(length_text) + 3 or len(record) != length or not record.endswith(b"\n"):
            raise InvalidUpload("The tar holds a damaged record before a file.", code="broken_archive")
        key, _, value = record[len(length_text) + 1 : -1].partition(b"=")
        if key == b"path":
            name = _text(value)
        elif key == b"size" and value.isdigit() and len(value) < 19:
            size = int(value)
        elif key.startswith(b"GNU.sparse"):
            _refuse_kind(b"S", name or "a sparse file")
        place += length
    return name, size


def _short_name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidUpload(
            f"The archive holds a name that is not UTF-8: {raw[:60]!r}. Rename the file.", code="bad_name"
        ) from error


def _number(field: bytes) -> int:
    """Octal digits, or a binary number where the first bit is set. Raises InvalidUpload."""
    if field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
    else:
        digits = field.strip(b" \0")
        value = int(digits or b"0", 8) if not digits.strip(b"01234567") else -1
    if not 0 <= value < 1 << 62:
        raise InvalidUpload("The tar is damaged: a file's size is no number.", code="broken_archive")
    return value


def _checksum_holds(block: bytes) -> bool:
    digits = block[148:156].strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        return False
    return int(digits, 8) == sum(block) - sum(block[148:156]) + 8 * 0x20


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _whole(data: bytes | None, count: int) -> bytes:
    if data is None or len(data) != count:
        raise _cut()
    return data


def _cut() -> InvalidUpload:
    return InvalidUpload("The tar ends too early. It may be cut short: upload it again.", code="broken_archive")
