"""The graph without a server: images a second of bare `session.run`."""

from __future__ import annotations

import time

from benchmarks.serving_model import Home
from benchmarks.serving_session import open_session
from service.registry.bundle import SERVED

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def bare_throughput(home: Home, *, threads: int, seconds: float) -> float:
    """Images a second at its best batch size, each size tried for `seconds`."""
    session, best = open_session(home.files[SERVED], threads=threads), 0.0
    for size in BATCH_SIZES:
        feeds = {"images": home.images[:size], "masks": home.masks}
        session.run(None, feeds)
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            session.run(None, feeds)
            done += size
        best = max(best, done / (time.perf_counter() - began))
    return best
