"""The gate in front of the engine: a bounded number of requests in house, and a quick no with a time to come back."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from service.errors import WinnowError
from service.serving.errors import QueueFull, TenantQueueFull

SMOOTHING = 0.1  # weight of the newest request in the running mean
LONGEST_RETRY_SECONDS = 30
REMEMBERED_SECONDS = 2.0
"""How long a tenant that came counts as one that wants a share of the places."""


class Admission:
    """One request's place in house, from when it is let in until it leaves or the block ends."""

    def __init__(self, gate: Gate, tenant: str, since: float) -> None:
        self._gate: Gate | None = gate
        self.tenant, self._since = tenant, since

    def leave(self) -> None:
        """Only once is there something to give back."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate._give_back(self.tenant, self._since)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.leave()


class Gate:
    """Lets `places` requests in at once; those over it are refused before anything of theirs is read.

    While several tenants come, none holds more than its share of the places; one alone may hold them all.
    """

    def __init__(self, places: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = places
        self._clock = clock
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()
        self._total = 0
        self._came: dict[str, float] = {}
        self._mean_seconds: float | None = None
        self.refusals: list[Callable[[str, WinnowError], None]] = []

    @property
    def inside(self) -> int:
        return self._total

    def enter(self, tenant: str = "") -> Admission:
        """Raises QueueFull or TenantQueueFull, with the seconds to come back in."""
        given = self.ask(tenant)
        if isinstance(given, Admission):
            return given
        raise given

    def ask(self, tenant: str = "") -> Admission | QueueFull | TenantQueueFull:
        """As `enter`; what would be raised is handed back, for those who have no time to raise it."""
        present = self._clock()
        with self._lock:
            refused = self._take(tenant, present)
        if refused is None:
            return Admission(self, tenant, present)
        self.tell(tenant, refused)
        return refused

    def tell(self, tenant: str, refused: WinnowError) -> None:
        """Tell who counts refusals."""
        for told in self.refusals:
            told(tenant, refused)

    def _take(self, tenant: str, present: float) -> QueueFull | TenantQueueFull | None:
        self._came[tenant] = present
        if self._total >= self._places:
            return QueueFull(
                f"{self._places} prediction requests are already in house. Come back later, or send fewer at once.",
                retry_after_seconds=self._retry_after(),
            )
        if 2 * self._total >= self._places and (share := self._share(present)) <= self._inside[tenant]:
            return TenantQueueFull(
                f"Of the {self._places} prediction requests that fit in house, {share} may be yours while others send "
                "theirs. Wait for an answer before you send more.",
                retry_after_seconds=self._retry_after(),
            )
        self._inside[tenant] += 1
        self._total += 1
        return None

    def _share(self, present: float) -> int:
        since = present - REMEMBERED_SECONDS
        if len(self._came) > 1:
            self._came = {name: at for name, at in self._came.items() if at >= since or self._inside[name]}
        return max(1, self._places // len(self._came))

    def _retry_after(self) -> int:
        return min(max(math.ceil(self._mean_seconds or 0.0), 1), LONGEST_RETRY_SECONDS)

    def _give_back(self, tenant: str, since: float) -> None:
        seconds = self._clock() - since
        with self._lock:
            self._total -= 1
            self._inside[tenant] -= 1
            if not self._inside[tenant]:
                del self._inside[tenant]
            mean = self._mean_seconds
            self._mean_seconds = seconds if mean is None else (1 - SMOOTHING) * mean + SMOOTHING * seconds
