"""Indexes a zip by its central directory and reads members by offset: no member list to fill memory, no surprises."""

from __future__ import annotations

import bz2
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from service.datasets.archive import Member, MembersBuilder
from service.datasets.decode import ImageRejected
from service.datasets.members import Crowd, checked_name
from service.datasets.sample import MAX_RATIO, Limits
from service.errors import InvalidUpload, TooLarge

MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # the second: an empty archive
STORED, DEFLATED, BZIP2 = 0, 8, 12
ENCRYPTED = 0x1 | 0x40 | 0x2000
UTF8 = 0x800
MAX_DIRECTORY_BYTES = 512 * 1024 * 1024
CROWD_ALLOWED = 100_000  # members besides images: folders, labels, what an operating system left
MAX_COMMENT_BYTES = 65_535
USUAL_NAME_BYTES = 256  # with what else stands between a file's header and its bytes
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL = 0xFFFFFFFF


class ZipArchive:
    """A zip whose directory was checked entry by entry: paths, links, encryption, ratios, overlaps."""

    kind = "zip"
    unpacked = None

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self._file = file
        self._directory_offset, size = _directory(file)
        found = MembersBuilder()
        for member in _members(file, self._directory_offset, size, 4 * limits.max_images + CROWD_ALLOWED):
            found.add(member)
        self.members = found.built()
        self._refuse_overlaps()

    def read(self, member: Member, limit: int) -> bytes:
        return read_member(self._file, member, limit)

    def _refuse_overlaps(self) -> None:
        """Members that share bytes unfold to far more than the file: each must end before the next begins."""
        if not len(self.members):
            return
        begins = self.members.offsets.astype(np.uint64)
        ends = begins + self.members.packed.astype(np.uint64) + np.uint64(_LOCAL.size)
        order = np.argsort(begins, kind="stable")
        following = np.append(begins[order][1:], np.uint64(self._directory_offset))
        beyond = self.members.packed > self._directory_offset - self.members.offsets  # where `ends` may wrap
        if (ends[order] > following).any() or beyond.any():
            raise TooLarge("Files in the zip overlap each other. Nothing was kept.", code="archive_bomb")


def read_member(file: BinaryIO, member: Member, limit: int) -> bytes:
    """The bytes of a member, at most `limit`. Raises ImageRejected where they cannot be had."""
    if member.size > limit or member.packed > limit + 65_536:
        raise ImageRejected(f"it is {max(member.size, member.packed)} bytes; at most {limit} are accepted")
    try:
        data = _unpack(_packed(file, member), member.method, limit)
    except (zlib.error, OSError, EOFError, ValueError, struct.error) as error:
        raise ImageRejected(f"the archive is damaged at this file ({error})") from error
    if len(data) > limit:
        raise ImageRejected(f"it is more than the {limit} bytes accepted, whatever its header says")
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise ImageRejected("the archive is damaged at this file (length or checksum differ from its header)")
    return data


def _packed(file: BinaryIO, member: Member) -> bytes:
    """In one read, where the name before the file is of a usual length."""
    file.seek(member.offset)
    data = file.read(_LOCAL.size + USUAL_NAME_BYTES + member.packed)
    magic, *_, name_bytes, extra_bytes = _LOCAL.unpack_from(data)
    if magic != b"PK\x03\x04":
        raise ValueError("no file begins where the directory says")
    begins = _LOCAL.size + name_bytes + extra_bytes
    if begins + member.packed <= len(data):
        return data[begins : begins + member.packed]
    file.seek(member.offset + begins)
    return file.read(member.packed)


def _broken(why: str) -> InvalidUpload:
    return InvalidUpload(
        f"The upload begins like a zip but cannot be read as one ({why}). It may be cut short: upload it again.",
        code="broken_archive",
    )


def _directory(file: BinaryIO) -> tuple[int, int]:
    """(offset, bytes) of the central directory."""
    total = file.seek(0, 2)
    tail_offset = max(0, total - _END.size - MAX_COMMENT_BYTES)
    file.seek(tail_offset)
    tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    while place >= 0:
        if place + _END.size <= len(tail):
            *_, size, offset, comment = _END.unpack_from(tail, place)
            if place + _END.size + comment == len(tail):
                break
        place = tail.rfind(b"PK\x05\x06", 0, place)
    if place < 0:
        raise _broken("it has no end")
    end = tail_offset + place
    if offset == _FULL or size == _FULL or tail[max(0, place - _LOCATOR.size) : place][:4] == b"PK\x06\x07":
        size, offset, end = _zip64(file, end)
    if offset + size != end:
        raise _broken("its directory is not where its end says")
    if size > MAX_DIRECTORY_BYTES:
        raise TooLarge(f"The zip's directory is {size} bytes; at most {MAX_DIRECTORY_BYTES} are accepted.")
    return offset, size


def _zip64(file: BinaryIO, end: int) -> tuple[int, int, int]:
    """(bytes, offset, end) of the central directory of a zip of over 4 GiB or 65,535 files."""
    try:
        file.seek(end - _LOCATOR.size)
        magic, _, where, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
        file.seek(where)
        magic64, *_, size, offset = _END64.unpack(file.read(_END64.size))
    except (struct.error, OSError, ValueError, OverflowError) as error:
        raise _broken("its end is damaged") from error
    if magic != b"PK\x06\x07" or magic64 != b"PK\x06\x06":
        raise _broken("its end is damaged")
    return size, offset, where


def _members(file: BinaryIO, begin: int, left: int, most: int) -> Iterator[Member]:
    """Record by record: the directory is never whole in memory. `file` must not be read meanwhile."""
    file.seek(begin)
    count, crowd = 0, Crowd()
    while left > 0:
        record = file.read(_ENTRY.size)
        if left < _ENTRY.size or len(record) < _ENTRY.size or not record.startswith(b"PK\x01\x02"):
            raise _broken("its directory is damaged")
        (
            _, _, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes, comment_bytes, _, _, mode, offset
        ) = _ENTRY.unpack(record)  # fmt: skip
        rest = file.read(name_bytes + extra_bytes + comment_bytes)
        left -= _ENTRY.size + len(rest)
        if left < 0 or len(rest) < name_bytes + extra_bytes + comment_bytes:
            raise _broken("its directory is damaged")
        if _FULL in (packed, size, offset):
            size, packed, offset = _wide(rest[name_bytes : name_bytes + extra_bytes], size, packed, offset)
        count += 1
        if count > most:
            raise TooLarge(f"The archive holds over {most} files. Split it into several data sets.")
        name = checked_name(_text(rest[:name_bytes], flags))
        crowd.add(name, size)
        if name.endswith("/") or not name:
            continue
        _check(name, flags, mode >> 16, size, packed)
        yield Member(name, size, offset, packed, method, crc)


def _text(raw: bytes, flags: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if flags & UTF8:
            raise InvalidUpload(
                f"The archive says that a name is UTF-8, which it is not: {raw[:60]!r}. Rename the file.",
                code="bad_name",
            ) from error
        return raw.decode("cp437")  # what a zip's names are where it does not say otherwise


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The 64-bit values that stand in for those that are full."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            body = extra[place + 4 : place + 4 + length]
            values = iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
            try:
                size = next(values) if size == _FULL else size
                packed = next(values) if packed == _FULL else packed
                offset = next(values) if offset == _FULL else offset
            except StopIteration:
                raise _broken("its directory is damaged") from None
            break
        place += 4 + length
    if max(size, packed, offset) >= 1 << 63:
        raise _broken("its directory is damaged")
    return size, packed, offset


def _check(name: str, flags: int, mode: int, size: int, packed: int) -> None:
    """Raises InvalidUpload or TooLarge for a member that no honest archive holds."""
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "link" if stat.S_ISLNK(mode) else "device"
        raise InvalidUpload(f"The archive holds a {what}: {name!r}. Send the files themselves.", code="unsafe_path")
    if flags & ENCRYPTED:
        raise InvalidUpload(
            f"The archive is encrypted ({name!r}). Send it without a password.", code="encrypted_archive"
        )
    if size > MAX_RATIO * max(packed, 1024):
        raise TooLarge(
            f"{name!r} unfolds to more than {MAX_RATIO} times its size. Nothing was kept.", code="archive_bomb"
        )


def _unpack(packed: bytes, method: int, limit: int) -> bytes:
    if method == STORED:
        return packed
    if method == DEFLATED:
        return zlib.decompressobj(-15).decompress(packed, limit + 1)
    if method == BZIP2:
        return bz2.BZ2Decompressor().decompress(packed, limit + 1)
    raise ValueError(f"its compression method {method} is not read; use deflate or none")
