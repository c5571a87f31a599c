"""How often each model was asked and how long it took, as the protocol's statistics tell it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from service.serving.telemetry import Seen

MOST_VERSIONS = 1000
NS = 1_000_000_000

Version = tuple[str, str]
"""Tenant, and name@version."""


@dataclass(slots=True)
class Counted:
    """Of one version since this process began."""

    requests: int = 0
    images: int = 0
    queued_ns: int = 0
    computed_ns: int = 0
    last_ms: int = 0

    def with_(self, other: Counted) -> Counted:
        """Of two processes."""
        return Counted(
            self.requests + other.requests,
            self.images + other.images,
            self.queued_ns + other.queued_ns,
            self.computed_ns + other.computed_ns,
            max(self.last_ms, other.last_ms),
        )


class Statistics:
    """A taker of the telemetry. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: OrderedDict[Version, Counted] = OrderedDict()

    def take(self, seen: Seen) -> None:
        key = (seen.tenant, seen.answers.model)
        timing = seen.answers.timing
        with self._lock:
            counted = self._versions.setdefault(key, Counted())
            self._versions.move_to_end(key)
            counted.requests += 1
            counted.images += len(seen.answers)
            counted.queued_ns += int(timing.queued_s * NS)
            counted.computed_ns += int(timing.computed_s * NS)
            counted.last_ms = time.time_ns() // 1_000_000
            while len(self._versions) > MOST_VERSIONS:
                self._versions.popitem(last=False)

    def counted(self) -> dict[Version, Counted]:
        """Of all versions that have been asked, at this moment."""
        with self._lock:
            return {version: replace(counted) for version, counted in self._versions.items()}


def joined(parts: Iterable[Mapping[Version, Counted]]) -> dict[Version, Counted]:
    """What several processes counted, as one."""
    whole: dict[Version, Counted] = {}
    for part in parts:
        for version, counted in part.items():
            whole[version] = counted.with_(whole[version]) if version in whole else counted
    return whole


def told(reference: str, found: Counted) -> dict[str, Any]:
    """As Triton writes it. Executions are requests: calls that several requests share are counted by each."""
    name, _, version = reference.rpartition("@")
    whole = found.queued_ns + found.computed_ns
    spans = {"success": whole, "fail": None, "queue": found.queued_ns, "compute_input": 0}
    spans |= {"compute_infer": found.computed_ns, "compute_output": 0, "cache_hit": None, "cache_miss": None}
    return {
        "name": name,
        "version": version,
        "last_inference": found.last_ms,
        "inference_count": found.images,
        "execution_count": found.requests,
        "inference_stats": {
            span: {"count": 0 if ns is None else found.requests, "ns": ns or 0} for span, ns in spans.items()
        },
        "batch_stats": [],
    }
