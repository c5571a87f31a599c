"""Takes an upload's bytes as they come: hashed, bounded, written to storage, and never held whole."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from service.datasets.readers import SNIFF_BYTES, format_of, refuse_unknown
from service.errors import InvalidInput, TooLarge, UnsupportedMedia
from service.storage import Storage

WRITE_BYTES = 1024 * 1024
PATIENT_BYTES = 64 * 1024 * 1024  # of a body already refused, read on so that its sender gets to see why


@dataclass(frozen=True)
class Received:
    """What arrived."""

    sha256: str
    size: int


async def receive(
    stream: AsyncIterator[bytes], storage: Storage, key: str, *, max_bytes: int, wanted_sha256: str | None
) -> Received:
    """Write the body to `key`, whole or not at all. Raises UnsupportedMedia, TooLarge or InvalidInput."""
    writing = storage.writing(key)
    file = await asyncio.to_thread(writing.__enter__)
    try:
        received = await _copy(stream, file.write, max_bytes)
        if wanted_sha256 is not None and wanted_sha256 != received.sha256:
            raise InvalidInput(
                f"The body's sha256 is {received.sha256}, Repr-Digest says {wanted_sha256}."
                " Nothing was kept; upload it again.",
                code="digest_mismatch",
            )
    except BaseException:
        await asyncio.to_thread(writing.__exit__, *sys.exc_info())
        raise
    await asyncio.to_thread(writing.__exit__, None, None, None)
    return received


async def _copy(stream: AsyncIterator[bytes], write: Callable[[bytes], object], max_bytes: int) -> Received:
    digest = hashlib.sha256()
    size = 0
    buffer = bytearray()

    def spill(data: bytes) -> None:
        digest.update(data)
        write(data)

    async for chunk in stream:
        buffer += chunk
        if size == 0 and len(buffer) >= SNIFF_BYTES and format_of(bytes(buffer[:SNIFF_BYTES])) is None:
            await _read_on(stream)
            raise refuse_unknown(bytes(buffer[:4]))
        if size + len(buffer) > max_bytes:
            await _read_on(stream)
            raise TooLarge(
                f"The upload is larger than the {max_bytes} bytes accepted. Split it into several data sets."
            )
        if len(buffer) >= WRITE_BYTES:
            size += len(buffer)
            await asyncio.to_thread(spill, bytes(buffer))
            buffer.clear()
    size += len(buffer)
    if size < 4:
        raise UnsupportedMedia("The body is empty. Send the bytes of an archive.", code="empty_body")
    if size <= SNIFF_BYTES and format_of(bytes(buffer)) is None:
        raise refuse_unknown(bytes(buffer[:4]))
    await asyncio.to_thread(spill, bytes(buffer))
    return Received(digest.hexdigest(), size)


async def _read_on(stream: AsyncIterator[bytes]) -> None:
    left = PATIENT_BYTES
    async for chunk in stream:
        left -= len(chunk)
        if left < 0:
            return


def parse_repr_digest(header: str | None) -> str | None:
    """The sha-256 of a Repr-Digest header (RFC 9530) in hex; None where it names none. Raises InvalidInput."""
    match = re.search(r"sha-256=:([^:]*):", header or "")
    if match is None:
        return None
    try:
        return base64.b64decode(match[1], validate=True).hex()
    except binascii.Error as error:
        raise InvalidInput(f"Repr-Digest is not base64: {match[1]!r}.", code="bad_digest_header") from error
