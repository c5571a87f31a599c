"""What every storage promises: keys are relative POSIX paths, and a key is visible only once its bytes are whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol

from service.errors import Unavailable


@dataclass(frozen=True)
class Entry:
    """A value as a listing tells it."""

    key: str
    size: int
    modified: datetime  # UTC


class Storage(Protocol):
    """A write replaces the whole value at once. What is not there raises NotFound, what is away StorageUnavailable."""

    def read(self, key: str) -> bytes: ...

    def write(self, key: str, data: bytes) -> None: ...

    def open(self, key: str) -> BinaryIO:
        """Any part of the value, in any order, without the rest."""
        ...

    def open_local(self, key: str) -> BinaryIO:
        """The same as a file of this machine, with a `fileno`: for what reads all of it, in an order of its own."""
        ...

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes from each start to each stop, within the value: many at once, for what is scattered over it."""
        ...

    def writing(self, key: str) -> AbstractContextManager[BinaryIO]:
        """A file to write to; it becomes the value of `key` when the block ends well, and is gone when it does not."""
        ...

    def exists(self, key: str) -> bool: ...

    def size(self, key: str) -> int: ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every value under `prefix`, in no order; "" for all. `a` is a prefix of `a/b` and `a`, not of `ab`."""
        ...

    def unfinished(self) -> Iterator[Entry]:
        """What writers that were killed left behind, as far as it can be listed; no value of any key."""
        ...

    def delete_prefix(self, prefix: str) -> None:
        """The value at `prefix` and all under it; nothing where there is none."""
        ...

    def check(self) -> None:
        """Raises StorageUnavailable where nothing can be written."""
        ...


class StorageUnavailable(Unavailable):
    """The disk is full, or the object store does not answer. What was being written is not visible."""

    code = "storage_unavailable"


def checked_key(key: str) -> tuple[str, ...]:
    """The parts of a key. Raises ValueError for what is not one, such as a path that leads elsewhere."""
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or any(part in ("..", ".") or "\\" in part or "\0" in part for part in parts):
        raise ValueError(f"not a storage key: {key!r}")
    return parts
