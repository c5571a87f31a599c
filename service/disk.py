"""What a full disk looks like, and the files of this machine that no other process is to see: those in TMPDIR."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from service.errors import Unavailable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ScratchFull(Unavailable):
    """TMPDIR cannot hold what has to be at hand for a while."""

    code = "scratch_full"


def is_full(error: OSError) -> bool:
    """Whether there was no room for what was written. NumPy gives no errno, only how much it could write."""
    return error.errno in FULL or (error.errno is None and "requested and" in str(error))


def scratch_full(error: OSError) -> ScratchFull:
    return ScratchFull(
        f"There is no room for temporary files in {tempfile.gettempdir()} ({error.strerror or error}). Make room "
        "there, or let TMPDIR name a larger disk; then retry."
    )


@contextmanager
def scratch_told() -> Iterator[None]:
    """Raises ScratchFull where what is written in the block, to temporary files, finds no room."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise scratch_full(error) from error
        raise


def discard(file: IO[bytes]) -> None:
    """Close a file that nobody will read: what it had no room for is not missed."""
    with suppress(OSError):
        file.close()
