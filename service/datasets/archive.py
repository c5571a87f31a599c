"""The files inside an archive, as columns: an object for each would take ten times their memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

AT_ONCE = 4096
NO_CRC = -1

Rows = NDArray[np.int32]


class Member(NamedTuple):
    """A regular file of an archive, and where its bytes are."""

    name: str  # with forward slashes
    size: int  # unpacked, as its header says
    offset: int
    packed: int
    method: int = 0
    crc: int | None = None


class MembersBuilder:
    """Members as they are found, one by one."""

    def __init__(self) -> None:
        self._names, self._ends = bytearray(), array("q", [0])
        self._sizes, self._offsets, self._packed = array("q"), array("q"), array("q")
        self._methods, self._crcs = array("H"), array("q")

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, member: Member) -> None:
        self._names += member.name.encode()
        self._ends.append(len(self._names))
        self._sizes.append(member.size)
        self._offsets.append(member.offset)
        self._packed.append(member.packed)
        self._methods.append(member.method)
        self._crcs.append(NO_CRC if member.crc is None else member.crc)

    def built(self) -> Members:
        """They share the memory; nothing can be added any more."""
        names = pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(self._ends), pa.py_buffer(self._names))
        return Members(
            names,
            np.frombuffer(self._sizes, np.int64),
            np.frombuffer(self._offsets, np.int64),
            np.frombuffer(self._packed, np.int64),
            np.frombuffer(self._methods, np.uint16),
            np.frombuffer(self._crcs, np.int64),
            np.arange(len(self), dtype=np.int32),
        )


@dataclass(frozen=True, eq=False)
class Members:
    """Some members of an archive in some order: `rows` of columns that all selections of them share."""

    _names: pa.LargeStringArray
    _sizes: NDArray[np.int64]
    _offsets: NDArray[np.int64]
    _packed: NDArray[np.int64]
    _methods: NDArray[np.uint16]
    _crcs: NDArray[np.int64]
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Member]:
        return self.between(0, len(self))

    def between(self, start: int, stop: int) -> Iterator[Member]:
        """Those places from `start` up to `stop`, as far as there are any."""
        for at in range(start, min(stop, len(self)), AT_ONCE):
            rows = self.rows[at : min(at + AT_ONCE, stop)]
            numbers = (self._sizes, self._offsets, self._packed, self._methods)
            columns = [self._names.take(pa.array(rows)).to_pylist(), *(each[rows].tolist() for each in numbers)]
            crcs = (None if crc == NO_CRC else crc for crc in self._crcs[rows].tolist())
            yield from map(Member, *columns, crcs)

    def names(self) -> Iterator[str]:
        for at in range(0, len(self), AT_ONCE):
            yield from self._names.take(pa.array(self.rows[at : at + AT_ONCE])).to_pylist()

    @property
    def sizes(self) -> NDArray[np.int64]:
        return self._sizes[self.rows]

    @property
    def offsets(self) -> NDArray[np.int64]:
        return self._offsets[self.rows]

    @property
    def packed(self) -> NDArray[np.int64]:
        return self._packed[self.rows]

    def where(self, wanted: NDArray[np.bool_]) -> Members:
        """Those of which it is true, (n,), in the same order."""
        return replace(self, rows=self.rows[wanted])

    def by_name(self) -> Members:
        """In the order of the names' code points; of the same name, as they lie."""
        return replace(self, rows=self.rows[pc.sort_indices(self._names.take(pa.array(self.rows))).to_numpy()])


class Archive(Protocol):
    """An indexed archive; nothing of it is ever extracted to a path."""

    kind: str
    members: Members

    @property
    def unpacked(self) -> BinaryIO | None:
        """The file that members' offsets are in; None where it is the upload itself."""
        ...

    def read(self, member: Member, limit: int) -> bytes:
        """At most `limit` bytes. Raises ImageRejected where they cannot be had."""
        ...
