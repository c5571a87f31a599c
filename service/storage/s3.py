"""Storage in a bucket of S3 or what speaks its protocol: streamed in parts, read by ranges, whole or not at all."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from service.disk import discard, scratch_told
from service.errors import InvalidInput, NotFound
from service.storage.protocol import Entry, StorageUnavailable, checked_key

PART_BYTES = 8 * 1024 * 1024
MOST_PARTS = 10_000  # that S3 allows in one value
PARTS_AT_ONCE = 2  # what bounds the memory of a writer, with PART_BYTES
READ_AHEAD_BYTES = 256 * 1024
GAP_BYTES = 64 * 1024  # that it is better to read than to ask twice
LISTED_AT_ONCE = 1000
PROBE = "health/probe"
PATIENCE = timedelta(seconds=20)  # with a store that does not answer
PROBE_PATIENCE = timedelta(seconds=3)


@dataclass(frozen=True)
class Place:
    """Where a bucket is. The credentials are AWS's own variables, or what the machine's role gives."""

    bucket: str
    prefix: str | None
    endpoint: str | None  # None: AWS's own
    region: str | None

    @classmethod
    def of(cls, url: str, *, endpoint: str, region: str) -> Place:
        """url: s3://bucket or s3://bucket/prefix. Raises InvalidInput."""
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise InvalidInput(
                f"WINNOW_STORAGE_URL is {url!r}: write s3://bucket or s3://bucket/prefix.", code="bad_storage_url"
            )
        return cls(parts.netloc, parts.path.strip("/") or None, endpoint or None, region or None)

    def store(self, patience: timedelta) -> S3Store:
        given = {"endpoint": self.endpoint, "region": self.region}
        config: Any = {name: value for name, value in given.items() if value is not None}
        return S3Store(
            self.bucket,
            prefix=self.prefix,
            config=config,
            client_options={"allow_http": (self.endpoint or "").startswith("http://"), "timeout": patience},
            retry_config={
                "max_retries": 8,
                "retry_timeout": patience,
                "backoff": {"max_backoff": timedelta(seconds=4)},
            },
        )

    def __str__(self) -> str:
        return f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


class S3Storage:
    """Made after a fork, never before one: its connections live in threads that do not survive it."""

    def __init__(self, place: Place, *, largest_bytes: int = 0) -> None:
        """largest_bytes: of the values that will be written; it sets the size of a part."""
        self._place = place
        self._store = place.store(PATIENCE)
        self._part_bytes = max(PART_BYTES, -(-largest_bytes // (MOST_PARTS - 1)))

    def read(self, key: str) -> bytes:
        with self._told(key):
            return obstore.get(self._store, _path(key)).bytes().to_bytes()

    def write(self, key: str, data: bytes) -> None:
        with self._told(key):
            obstore.put(self._store, _path(key), data, chunk_size=self._part_bytes, max_concurrency=PARTS_AT_ONCE)

    def open(self, key: str) -> BinaryIO:
        with self._told(key):
            meta = obstore.head(self._store, _path(key))
        return io.BufferedReader(_Ranges(self, key, meta["size"], meta["e_tag"]), READ_AHEAD_BYTES)

    def open_local(self, key: str) -> BinaryIO:
        with scratch_told():
            file = tempfile.TemporaryFile(prefix="winnow-spool-")  # noqa: SIM115 (the caller closes it)
            try:
                with self._told(key):
                    for chunk in obstore.get(self._store, _path(key)).stream(min_chunk_size=PART_BYTES):
                        file.write(chunk)
                file.flush()
            except BaseException:
                discard(file)
                raise
        file.seek(0)
        return cast(BinaryIO, file)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
        with self._told(key):
            found = obstore.get_ranges(self._store, _path(key), starts=starts, ends=stops, coalesce=GAP_BYTES)
            return [each.to_bytes() for each in found]

    @contextmanager
    def writing(self, key: str) -> Iterator[BinaryIO]:
        with self._told(key):
            writer = obstore.open_writer(
                self._store, _path(key), buffer_size=self._part_bytes, max_concurrency=PARTS_AT_ONCE
            )
            with writer:  # an error in the block aborts the upload
                yield cast(BinaryIO, _Sink(writer))

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except NotFound:
            return False
        return True

    def size(self, key: str) -> int:
        with self._told(key):
            return int(obstore.head(self._store, _path(key))["size"])

    def list(self, prefix: str = "") -> Iterator[Entry]:
        if prefix and self.exists(prefix):
            with self._told(prefix):
                yield _entry(obstore.head(self._store, _path(prefix)))
        with self._told(prefix):
            for batch in obstore.list(self._store, _path(prefix) if prefix else None, chunk_size=LISTED_AT_ONCE):
                yield from (_entry(meta) for meta in batch if meta["path"] != prefix)

    def unfinished(self) -> Iterator[Entry]:
        """The bucket's own rule for unfinished multipart uploads removes them; they are in no listing."""
        return iter(())

    def delete_prefix(self, prefix: str) -> None:
        with self._told(prefix):
            for batch in obstore.list(self._store, _path(prefix), chunk_size=LISTED_AT_ONCE):
                obstore.delete(self._store, [meta["path"] for meta in batch])
            obstore.delete(self._store, [_path(prefix)])

    def check(self) -> None:
        with self._told(PROBE):
            obstore.put(self._place.store(PROBE_PATIENCE), PROBE, b"winnow")

    def range(self, key: str, start: int, count: int, etag: str | None) -> bytes:
        """Bytes of the very value that was opened. Raises NotFound where another has taken its place."""
        options: Any = {"range": (start, start + count)}
        if etag:
            options["if_match"] = etag
        with self._told(key):
            return obstore.get(self._store, _path(key), options=options).bytes().to_bytes()

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"storage holds nothing at {key}") from error
        except BaseError as error:
            why = str(error).splitlines()[0][:300]
            raise StorageUnavailable(
                f"The storage {self._place} refused or did not answer at {key}: {why}. Nothing half-written is "
                "visible; winnow doctor says what is wrong with it."
            ) from error


class _Ranges(io.RawIOBase):
    """A value read by ranges; io.BufferedReader reads ahead of it."""

    def __init__(self, storage: S3Storage, key: str, size: int, etag: str | None) -> None:
        self._storage = storage
        self._key = key
        self._size = size
        self._etag = etag
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(22, "a place before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._size - self._at)
        if count <= 0:
            return 0
        data = self._storage.range(self._key, self._at, count, self._etag)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        """In one request; what this replaces would make one every 8 KiB."""
        left = self._size - self._at
        data = self._storage.range(self._key, self._at, left, self._etag) if left > 0 else b""
        self._at += len(data)
        return data


class _Sink(io.RawIOBase):
    """What a writer of files expects around an upload in parts."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._written = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written

    def write(self, data: Any) -> int:
        count = memoryview(data).nbytes
        if count:
            self._writer.write(data if isinstance(data, bytes) else memoryview(data).cast("B"))
        self._written += count
        return count


def _path(key: str) -> str:
    return "/".join(checked_key(key))


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], meta["size"], meta["last_modified"])
