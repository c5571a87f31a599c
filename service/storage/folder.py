"""Storage in a folder: values are files, written beside their place, synced and renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from service.disk import is_full
from service.errors import NotFound
from service.storage.protocol import Entry, StorageUnavailable, checked_key

PARTIAL = ".partial-"
AWAY = (errno.EROFS, errno.EIO, errno.EACCES, errno.ENOTCONN, errno.ESTALE)


class LocalStorage:
    """One folder of this machine, or of a network file system that all machines share."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._root.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        return self._root.joinpath(*checked_key(key))

    def read(self, key: str) -> bytes:
        with self.open(key) as file:
            return file.read()

    def write(self, key: str, data: bytes) -> None:
        with self.writing(key) as file:
            file.write(data)

    def open(self, key: str) -> BinaryIO:
        try:
            return self.path(key).open("rb")
        except FileNotFoundError:
            raise NotFound(f"storage holds nothing at {key}") from None

    def open_local(self, key: str) -> BinaryIO:
        return self.open(key)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        with self.open(key) as file:
            return [os.pread(file.fileno(), stop - start, start) for start, stop in ranges]

    @contextmanager
    def writing(self, key: str) -> Iterator[BinaryIO]:
        target = self.path(key)
        with self._away_told():
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=PARTIAL)
            try:
                with os.fdopen(handle, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(target)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def size(self, key: str) -> int:
        try:
            return self.path(key).stat().st_size
        except FileNotFoundError:
            raise NotFound(f"storage holds nothing at {key}") from None

    def list(self, prefix: str = "") -> Iterator[Entry]:
        start = self.path(prefix) if prefix else self._root
        if start.is_file():
            yield self._entry(start)
            return
        yield from (entry for path, entry in self._walk(start) if not path.name.startswith(PARTIAL))

    def unfinished(self) -> Iterator[Entry]:
        yield from (entry for path, entry in self._walk(self._root) if path.name.startswith(PARTIAL))

    def delete_prefix(self, prefix: str) -> None:
        path = self.path(prefix)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def check(self) -> None:
        with self._away_told(), tempfile.TemporaryFile(dir=self._root) as file:
            file.write(b"\0")
            file.flush()

    def _walk(self, start: Path) -> Iterator[tuple[Path, Entry]]:
        for folder, _, names in os.walk(start):
            for name in names:
                path = Path(folder, name)
                try:
                    yield path, self._entry(path)
                except FileNotFoundError:  # renamed or deleted since the folder was read
                    continue

    def _entry(self, path: Path) -> Entry:
        told = path.stat()
        modified = datetime.fromtimestamp(told.st_mtime, UTC)
        return Entry(path.relative_to(self._root).as_posix(), told.st_size, modified)

    @contextmanager
    def _away_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_full(error):
                raise StorageUnavailable(
                    f"The storage in {self._root} is full ({error.strerror or error}). Make room there (winnow gc "
                    "--dry-run says what nothing refers to), then repeat."
                ) from error
            if error.errno in AWAY:
                raise StorageUnavailable(
                    f"The storage in {self._root} cannot be written to ({error.strerror}). Nothing was kept; mend it, "
                    "then repeat."
                ) from error
            raise
