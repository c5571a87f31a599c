"""Takes the body of one PATCH to storage, part by part, so that what has arrived outlives the connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import BinaryIO

from starlette.requests import ClientDisconnect

from service.datasets.readers import SNIFF_BYTES, format_of, refuse_unknown
from service.db import Database
from service.errors import ChecksumMismatch, TooLarge
from service.settings import Settings
from service.storage import Storage
from service.tables import UploadPart
from service.uploads import resumable
from service.uploads.resumable import Hold
from service.uploads.tus import ALGORITHMS, Checksum

PART_BYTES = 64 * 1024 * 1024
WRITE_BYTES = 1024 * 1024
RENEW_SECONDS = 3.0
PATIENCE_SECONDS = 30.0  # for the next bytes of a sender that is still there


def prefix_of(upload_id: str) -> str:
    return f"uploads/{upload_id}"


class Writing:
    """One PATCH. Bytes count as soon as their part is whole; with a checksum, only once all of them are verified."""

    def __init__(
        self, database: Database, storage: Storage, settings: Settings, hold: Hold, checksum: Checksum | None
    ) -> None:
        self.hold = hold
        self._database, self._storage, self._settings = database, storage, settings
        self._checksum = checksum
        self._digest = None if checksum is None else ALGORITHMS[checksum.algorithm]()
        self._buffer = bytearray()
        self._arrived = hold.offset  # of the whole upload
        self._stored: list[UploadPart] = []  # whole on storage, and not counted yet
        self._part: _Part | None = None
        self._renewed = time.monotonic()

    async def take(self, stream: AsyncIterator[bytes]) -> bool:
        """Whether the body came to its end; where it did not, what arrived is kept all the same.

        Raises TooLarge, UnsupportedMedia, ChecksumMismatch, or Locked where another writer has taken over.
        """
        ended = False
        try:
            ended = await self._copy(stream)
            await self._close_part()
            self._verify(ended)
            await self._count()
        finally:
            await asyncio.to_thread(self._discard)
        return ended

    async def _copy(self, stream: AsyncIterator[bytes]) -> bool:
        iterator = aiter(stream)
        while True:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    chunk = await anext(iterator)
            except StopAsyncIteration:
                await self._spill()
                return True
            except (ClientDisconnect, TimeoutError):
                await self._spill()
                return False
            self._arrived += len(chunk)
            if self._arrived > self.hold.length:
                raise TooLarge(
                    f"The upload was to have {self.hold.length} bytes, and more came: what was too much is not kept.",
                    code="upload_overflow",
                )
            self._buffer += chunk
            if len(self._buffer) >= WRITE_BYTES:
                await self._spill()

    async def _spill(self) -> None:
        if not self._buffer:
            return
        data = bytes(self._buffer)
        self._buffer.clear()
        begins = self._arrived == len(data) and len(data) >= min(SNIFF_BYTES, self.hold.length)
        if begins and format_of(data[:SNIFF_BYTES]) is None:
            raise refuse_unknown(data[:4])
        if self._part is None:
            begin = self._arrived - len(data)
            key = f"{prefix_of(self.hold.upload_id)}/{begin:015d}-{self.hold.writer}"
            self._part = await asyncio.to_thread(_Part, self._storage, key, begin)
        await asyncio.to_thread(self._write, self._part, data)
        if self._part.size >= PART_BYTES:
            await self._close_part()
            if self._checksum is None:
                await self._count()
        elif time.monotonic() - self._renewed > RENEW_SECONDS:
            await asyncio.to_thread(resumable.renew, self._database, self.hold)
            self._renewed = time.monotonic()

    def _write(self, part: _Part, data: bytes) -> None:
        if self._digest is not None:
            self._digest.update(data)
        part.write(data)

    async def _close_part(self) -> None:
        if self._part is not None:
            part, self._part = self._part, None
            await asyncio.to_thread(part.close)
            self._stored.append(
                UploadPart(upload_id=self.hold.upload_id, begin=part.begin, size=part.size, key=part.key)
            )

    def _verify(self, ended: bool) -> None:
        if self._checksum is None or self._digest is None:
            return
        if not ended:
            self._drop()
        elif self._digest.digest() != self._checksum.digest:
            raise ChecksumMismatch(
                "The bytes that arrived have another checksum than Upload-Checksum says. Nothing of this piece was "
                "kept; send it again.",
                offset=self.hold.offset,
            )

    async def _count(self) -> None:
        if self._stored:
            parts = self._stored
            self.hold = await asyncio.to_thread(resumable.add_parts, self._database, self._settings, self.hold, parts)
            self._stored = []
            self._renewed = time.monotonic()

    def _discard(self) -> None:
        """What was stored and does not count."""
        if self._part is not None:
            self._part.abandon()
            self._part = None
        self._drop()

    def _drop(self) -> None:
        for part in self._stored:
            self._storage.delete_prefix(part.key)
        self._stored = []


class _Part:
    """A value on storage while it is being written."""

    def __init__(self, storage: Storage, key: str, begin: int) -> None:
        self.key, self.begin, self.size = key, begin, 0
        self._writing: AbstractContextManager[BinaryIO] = storage.writing(key)
        self._file = self._writing.__enter__()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)

    def close(self) -> None:
        self._writing.__exit__(None, None, None)

    def abandon(self) -> None:
        error = ConnectionAbortedError("the upload was broken off")
        self._writing.__exit__(ConnectionAbortedError, error, None)
