"""How a process hands out memory: to the threads of a gateway, and back to the system once a job has freed it."""

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


def give_back() -> bool:
    """What was freed goes to the system, so that one phase's peak is not the next one's floor. False where it cannot.

    glibc keeps freed pages between others that are in use: after a fit, a hundred MiB of them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(0) == 1
