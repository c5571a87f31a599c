"""How often a key may call: a bucket of tokens for each, in the memory of this gateway."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import TooManyRequests

BURST_SECONDS = 2.0  # a key that was silent for this long may spend it all at once
MOST_BUCKETS = 10_000


class RateLimited(TooManyRequests):
    """A key called more often than it may."""

    code = "rate_limited"


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class Buckets:
    """Safe from several threads. A key that is not seen for long is forgotten, which leaves it with a full bucket."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, key_id: str, per_second: float) -> None:
        """One token. Raises RateLimited, with the seconds until there is one again."""
        capacity = max(1.0, per_second * BURST_SECONDS)
        present = self._clock()
        with self._lock:
            bucket = self._buckets.setdefault(key_id, _Bucket(capacity, present))
            self._buckets.move_to_end(key_id)
            bucket.tokens = min(capacity, bucket.tokens + (present - bucket.filled_at) * per_second)
            bucket.filled_at = present
            left = bucket.tokens
            if left >= 1.0:
                bucket.tokens -= 1.0
            while len(self._buckets) > MOST_BUCKETS:
                self._buckets.popitem(last=False)
        if left < 1.0:
            wait = (1.0 - left) / per_second
            raise RateLimited(
                f"This key may make {per_second:g} requests a second, and has made more. Come back in {wait:.2f} s.",
                retry_after_seconds=max(1, math.ceil(wait)),
            )
