"""Where bytes live: a protocol, and a folder that implements it. A key is visible only once its bytes are whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from service.errors import NotFound


class Storage(Protocol):
    """Keys are relative POSIX paths; a write replaces the whole value at once."""

    def read(self, key: str) -> bytes: ...
    def write(self, key: str, data: bytes) -> None: ...
    def open(self, key: str) -> BinaryIO: ...
    @contextmanager
    def writing(self, key: str) -> Iterator[BinaryIO]: ...
    def exists(self, key: str) -> bool: ...
    def size(self, key: str) -> int: ...
    def delete_prefix(self, prefix: str) -> None: ...
    def check(self) -> None: ...


class LocalStorage:
    """Values are files under one folder, written beside their place, synced and renamed."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._root.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        parts = PurePosixPath(key).parts
        if (
            not parts
            or key.startswith("/")
            or any(part in ("..", ".") or "\\" in part or "\0" in part for part in parts)
        ):
            raise ValueError(f"not a storage key: {key!r}")
        return self._root.joinpath(*parts)

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

    @contextmanager
    def writing(self, key: str) -> Iterator[BinaryIO]:
        """A file to write to; it becomes the value of `key` when the block ends well, and is gone when it does not."""
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".partial-")
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

    def delete_prefix(self, prefix: str) -> None:
        path = self.path(prefix)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises OSError where the folder cannot be written to."""
        with tempfile.TemporaryFile(dir=self._root):
            return
