"""How a process hands out memory: to a gateway's threads, to a fit's next step, and back to the system in the end."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
ARENAS = 2
LARGEST_KEPT, KEPT = 2**28, 2**30


def keep_pages() -> bool:
    """Keep what is freed for what is asked for next, until `give_back`. False where the C library cannot.

    Every step of a fit frees what the next one asks for. By default most of it goes to the system in between, which
    fills every page with zeros again. Both bounds or none: either ends glibc's own adapting of the other, and to keep
    much while even small pieces are mapped is more work than ever.
    """
    return _mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and _mallopt(M_TRIM_THRESHOLD, KEPT)


def share_arenas() -> bool:
    """Let all threads that begin from here on share two of malloc's arenas. False where the C library has none.

    glibc gives every thread an arena of its own, eight for each core, and what one has freed the others cannot take: a
    gateway of many threads creeps upwards for tens of thousands of requests, until each arena has seen its worst.
    """
    return _mallopt(M_ARENA_MAX, ARENAS)


def give_back() -> bool:
    """What was freed goes to the system, so that one phase's peak is not the next one's floor. False where it cannot.

    glibc keeps freed pages between others that are in use: after a fit, a hundred MiB of them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(0) == 1


def _mallopt(option: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(option, value) == 1
