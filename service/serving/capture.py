"""Keeps a sample of the images that models abstained on, for a person to look at. Off unless settings say otherwise.

Bounded thrice: by a share of them, by a number a minute, and by bytes for each tenant. None is kept for ever.
"""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from service.errors import NotFound, WinnowError
from service.references import ModelRef, parse_model_ref
from service.serving.answers import Observed
from service.serving.batches import Images
from service.settings import Settings
from service.storage import Storage
from service.tenancy import TenantStorage

ROOT = "captures"
GATHER_S = 2.0
MOST_WAITING = 512
TRIM_S = 3600.0
DAY_S = 86_400.0

log = structlog.get_logger()
Tenants = Callable[[], list[str]]


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """One image as the model saw it, and what it would have said."""

    tenant: str
    model: str  # name@version
    at: float  # seconds since 1970
    image: Images  # (h, w, c)
    label: str  # the likeliest class, which was not answered
    reason: str
    p_value: float


@dataclass(frozen=True)
class Policy:
    """Of the settings. Nothing is kept where `share` is 0."""

    share: float
    per_minute: int
    most_bytes: int  # of a tenant
    seconds: float  # for which an image is kept

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        days = settings.capture_days
        per_minute = max(1, settings.capture_per_minute // settings.gateway_processes)  # each has a sampler of its own
        return cls(settings.capture_share, per_minute, settings.capture_bytes, days * DAY_S)


class Captures:
    """What was kept of one tenant: segments of images of one version, in the order of their making."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def add(self, images: list[Captured], *, now: float) -> None:
        """Keep images of one version together, as one value."""
        ref = parse_model_ref(images[0].model)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            images=np.stack([each.image for each in images]),
            at=np.array([each.at for each in images]),
            labels=np.array([each.label for each in images]),
            reasons=np.array([each.reason for each in images]),
            p_values=np.array([each.p_value for each in images]),
        )
        key = f"{ROOT}/{ref.name}/{ref.version}/{int(now * 1000):013d}-{secrets.token_hex(4)}.npz"
        self._storage.write(key, buffer.getvalue())

    def trim(self, policy: Policy, *, now: float) -> None:
        """Drop what is too old, and then the oldest until the rest fits."""
        segments = [(_made_ms(entry.key), entry.key, entry.size) for entry in self._storage.list(ROOT)]
        total = sum(size for _, _, size in segments)
        for made_ms, key, size in sorted(segments):
            if total <= policy.most_bytes and now - made_ms / 1000 <= policy.seconds:
                return
            self._storage.delete_prefix(key)
            total -= size

    def segments(self, model: str) -> list[str]:
        """Of all versions of a model, the newest first: `version/segment`."""
        found = [entry.key for entry in self._storage.list(f"{ROOT}/{model}")]
        return ["/".join(key.split("/")[2:]).removesuffix(".npz") for key in sorted(found, key=_made_ms, reverse=True)]

    def read(self, model: str, segment: str) -> dict[str, NDArray[np.generic]]:
        """Arrays of one segment. Raises NotFound."""
        with self._storage.open(f"{ROOT}/{model}/{segment}.npz") as file, np.load(io.BytesIO(file.read())) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def clear(self, model: str) -> None:
        self._storage.delete_prefix(f"{ROOT}/{model}")


class Sampler:
    """Chooses images on the event loop, and writes them in a thread of its own; drops old ones by the hour."""

    def __init__(
        self,
        storage: Storage,
        policy: Policy,
        tenants: Callable[[], list[str]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """tenants: whose old images are dropped, whether or not anything is captured now."""
        self._storage, self._policy, self._tenants, self._clock = storage, policy, tenants, clock
        self._rng = np.random.default_rng()
        self._room, self._filled_at = float(policy.per_minute), clock()
        self._waiting: deque[Captured] = deque(maxlen=MOST_WAITING)
        self._lock = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_on(self) -> bool:
        return self._policy.share > 0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and end."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def watch(self, observed: Observed) -> None:
        """A watcher of the engine."""
        answers = observed.answers
        if not answers.abstained.any():
            return
        for row in answers.abstained.nonzero()[0].tolist():
            if self._rng.random() < self._policy.share and self._has_room():
                self._waiting.append(
                    Captured(
                        observed.tenant,
                        answers.model,
                        self._clock(),
                        observed.images[row].copy(),
                        answers.classes[answers.index[row]],
                        str(answers.reason[row]),
                        float(answers.p_value[row]),
                    )
                )
                self._wake.set()

    def flush(self) -> None:
        """Write what has been chosen; where the storage is away it is lost, and that is told."""
        with self._lock:
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
            for tenant, images in _by_version(waiting):
                captures = Captures(TenantStorage(self._storage, tenant))
                try:
                    captures.add(images, now=self._clock())
                    captures.trim(self._policy, now=self._clock())
                except (WinnowError, OSError) as error:
                    log.warning("captured images not kept", tenant=tenant, images=len(images), reason=str(error))

    def trim(self) -> None:
        """Drop what is too old, of every tenant."""
        try:
            for tenant in self._tenants():
                Captures(TenantStorage(self._storage, tenant)).trim(self._policy, now=self._clock())
        except (WinnowError, OSError, SQLAlchemyError) as error:
            log.warning("old captured images not dropped", reason=str(error))

    def _has_room(self) -> bool:
        present, most = self._clock(), float(self._policy.per_minute)
        self._room = min(self._room + (present - self._filled_at) * most / 60, most)
        self._filled_at = present
        if self._room < 1:
            return False
        self._room -= 1
        return True

    def _run(self) -> None:
        self.trim()
        while not self._closing.is_set():
            if not self._wake.wait(TRIM_S):
                self.trim()
                continue
            self._closing.wait(GATHER_S)
            self._wake.clear()
            self.flush()


def checked_segment(text: str) -> str:
    """`version/segment` as `segments` gives it. Raises NotFound for anything else, so that no path leads elsewhere."""
    version, _, name = text.partition("/")
    if not (version.isdecimal() and name and all(part.isalnum() for part in name.split("-"))):
        raise NotFound(f"There are no captured images {text[:100]!r}.", code="capture_not_found")
    return text


def _made_ms(key: str) -> int:
    return int(key.rpartition("/")[2].split("-")[0])


def _by_version(images: list[Captured]) -> Iterator[tuple[str, list[Captured]]]:
    groups: dict[tuple[str, str], list[Captured]] = {}
    for each in images:
        groups.setdefault((each.tenant, each.model), []).append(each)
    for (tenant, _), found in groups.items():
        yield tenant, found


def version_of(model: str, segment: str) -> str:
    """name@version of a segment."""
    return str(ModelRef(model, int(segment.partition("/")[0])))
