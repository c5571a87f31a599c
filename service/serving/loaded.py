"""Model versions in memory: loaded when first asked for, the least recently used let go."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import structlog

log = structlog.get_logger()


class Sized(Protocol):
    """What takes room in memory."""

    @property
    def bytes(self) -> int: ...


ValueT = TypeVar("ValueT", bound=Sized)
Key = tuple[str, str, int]
"""Tenant, name and version: a version never changes, so what was loaded for it never goes stale."""


class Loaded(Generic[ValueT]):
    """Values of `budget_bytes` together, and at most `capacity`; the newest stays even where it alone is larger.

    Safe from several threads; a key is loaded once, however many ask for it at once.
    """

    def __init__(self, capacity: int, budget_bytes: int, load: Callable[[Key], ValueT]) -> None:
        self._capacity = capacity
        self._budget_bytes = budget_bytes
        self._load = load
        self._kept: OrderedDict[Key, ValueT] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def peek(self, key: Key) -> ValueT | None:
        """The value if it is in memory; never waits for one to be loaded."""
        with self._lock:
            value = self._kept.get(key)
            if value is not None:
                self._kept.move_to_end(key)
            return value

    def get(self, key: Key) -> ValueT:
        """The value, loaded if need be. What `load` raises is raised here, and tried again the next time."""
        with self._loading:
            value = self.peek(key)
            return self._add(key) if value is None else value

    def items(self) -> list[tuple[Key, ValueT]]:
        with self._lock:
            return list(self._kept.items())

    def drop(self, key: Key) -> bool:
        """Whether it was there."""
        with self._lock:
            return self._kept.pop(key, None) is not None

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    def _add(self, key: Key) -> ValueT:
        began = time.monotonic()
        value = self._load(key)
        with self._lock:
            self._kept[key] = value
            let_go = self._let_go()
        seconds = round(time.monotonic() - began, 3)
        log.info("model loaded", model=_told(key), seconds=seconds, let_go=[_told(each) for each in let_go])
        return value

    def _let_go(self) -> list[Key]:
        """Whoever still uses one that is let go keeps it alive until the answer is out."""
        let_go = []
        while len(self._kept) > 1 and (len(self._kept) > self._capacity or self._bytes() > self._budget_bytes):
            let_go.append(self._kept.popitem(last=False)[0])
        return let_go

    def _bytes(self) -> int:
        return sum(value.bytes for value in self._kept.values())


def _told(key: Key) -> str:
    tenant, name, version = key
    return f"{tenant}/{name}@{version}"
