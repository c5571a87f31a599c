"""A file as the pieces in which it is sent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

CHUNK_BYTES = 256 * 1024


def bytes_left(file: BinaryIO) -> int:
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    return end - here


def pieces(file: BinaryIO, total: int, on_sent: Callable[[int, int], None] | None) -> Iterator[bytes]:
    """on_sent: called with (bytes sent, bytes in all) after each."""
    sent = 0
    while sent < total and (piece := file.read(min(CHUNK_BYTES, total - sent))):
        yield piece
        sent += len(piece)
        if on_sent is not None:
            on_sent(sent, total)
