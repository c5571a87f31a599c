"""Model versions in memory: loaded when first asked for, the least recently used let go."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger()
ValueT = TypeVar("ValueT")
Key = tuple[str, str, int]
"""Tenant, name and version: a version never changes, so what was loaded for it never goes stale."""


class Loaded(Generic[ValueT]):
    """At most `capacity` values. Safe from several threads; a key is loaded once, however many ask for it at once."""

    def __init__(self, capacity: int, load: Callable[[Key], ValueT]) -> None:
        self._capacity = capacity
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

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    def _add(self, key: Key) -> ValueT:
        began = time.monotonic()
        value = self._load(key)
        with self._lock:
            self._kept[key] = value
            # Whoever still uses one that is let go keeps it alive until the answer is out.
            let_go = [self._kept.popitem(last=False)[0] for _ in range(len(self._kept) - self._capacity)]
        seconds = round(time.monotonic() - began, 3)
        log.info("model loaded", model=_told(key), seconds=seconds, let_go=[_told(each) for each in let_go])
        return value


def _told(key: Key) -> str:
    tenant, name, version = key
    return f"{tenant}/{name}@{version}"
