"""How the C library hands out memory to the threads of a gateway."""

from __future__ import annotations

import ctypes

M_ARENA_MAX = -8  # of glibc's malloc.h
ARENAS = 2


def share_arenas() -> bool:
    """Let all threads that begin from here on share two of malloc's arenas. False where the C library has none.

    glibc gives every thread an arena of its own, eight for each core, and what one has freed the others cannot take: a
    gateway of many threads creeps upwards for tens of thousands of requests, until each arena has seen its worst.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_ARENA_MAX, ARENAS) == 1
