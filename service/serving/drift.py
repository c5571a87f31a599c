"""Watches the p-values of each served version for drift, and says so once: in the log, a gauge and the API."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from models.abstention import AbstentionCalibration
from models.drift import DriftTest, distinct
from service.db import Database, now
from service.errors import WinnowError
from service.metrics import Family
from service.registry.bundle import load
from service.registry.repository import resolve
from service.serving.telemetry import Seen
from service.serving.thinning import Thinning
from service.storage import Storage
from service.tenancy import TenantStorage

MOST_VERSIONS = 100  # the one unused for longest is forgotten first
RECENT = 500

log = structlog.get_logger()
Key = tuple[str, str]
"""Tenant, and name@version."""
CalibrationOf = Callable[[str, str], AbstentionCalibration]


@dataclass(eq=False)
class Watched:
    """One version since its watch began. Without a test where its calibration cannot be read."""

    test: DriftTest | None
    since: datetime = field(default_factory=now)
    alarmed_at: datetime | None = None
    skipped: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


@dataclass(frozen=True)
class Bin:
    """How many images have p-values above `above` and at most `up_to`; `promised` is the calibration's share."""

    above: float
    up_to: float
    promised: float
    observed: int
    recent: int  # of the last RECENT images


@dataclass(frozen=True)
class Drift:
    """What is known of a version. `p_value`: the chance that traffic like the calibration ever looked so odd."""

    alarm: bool
    alarmed_at: datetime | None
    since: datetime
    images: int
    skipped: int
    rate: float
    p_value: float
    calibration_images: int
    bins: list[Bin]


class DriftMonitor:
    """One for a process. Memory is bounded by MOST_VERSIONS, whatever the traffic. Safe from several threads."""

    def __init__(
        self, calibration_of: CalibrationOf, *, rate: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._calibration_of = calibration_of
        self.rate = rate
        self._lock = threading.Lock()
        self._versions: OrderedDict[Key, Watched] = OrderedDict()
        self._thinning = Thinning(clock)

    def take(self, seen: Seen) -> None:
        """Count a request in, if its p-values are those of the calibration."""
        if seen.standard:
            self.observe(seen.tenant, seen.answers.model, seen.answers.p_value)

    def observe(self, tenant: str, model: str, p_values: NDArray[np.float64], skipped: int = 0) -> None:
        """skipped: images that were left out before."""
        with self._lock:
            watched = self._watched((tenant, model))
            if watched is None or watched.test is None:
                return
            chosen = self._thinning.of(p_values)
            watched.skipped += skipped + len(p_values) - len(chosen)
            watched.test.observe(chosen)
            watched.recent.extend(chosen.tolist())
            if watched.alarmed_at is None and watched.test.alarmed[0]:
                watched.alarmed_at = now()
                self._tell(tenant, model, watched.test)

    def drift(self, tenant: str, model: str) -> Drift | None:
        """None where this process has answered nothing with it since it began, or its calibration is unreadable."""
        with self._lock:
            watched = self._versions.get((tenant, model))
            return None if watched is None or watched.test is None else _drift(watched, watched.test)

    def reset(self, tenant: str, model: str) -> None:
        """Begin anew, with the full rate: after a promotion, or when somebody has looked into an alarm."""
        with self._lock:
            self._versions.pop((tenant, model), None)

    def families(self) -> list[Family]:
        """Gauges of all versions watched."""
        with self._lock:
            tests = [(key, watched.test) for key, watched in self._versions.items() if watched.test is not None]
        alarms = [(key, float(test.alarmed[0])) for key, test in tests]
        evidence = [(key, float(test.log_wealth[0] / np.log(10))) for key, test in tests]
        images = [(key, float(test.seen)) for key, test in tests]
        labels = ("tenant", "model")
        return [
            ("winnow_drift_alarm", "1 where live p-values are not what the calibration promises.", labels, alarms),
            (
                "winnow_drift_evidence",
                f"Log10 of the evidence for drift; the alarm is raised at {-np.log10(self.rate):g}.",
                labels,
                evidence,
            ),
            ("winnow_drift_images", "Images that the test has seen.", labels, images),
        ]

    def _watched(self, key: Key) -> Watched | None:
        """None where the database is away: then the next request tries again."""
        if key in self._versions:
            self._versions.move_to_end(key)
            return self._versions[key]
        try:
            watched = Watched(_test(self._calibration_of(*key), self.rate))
        except SQLAlchemyError as error:
            log.warning("drift not watched for now", tenant=key[0], model=key[1], reason=type(error).__name__)
            return None
        except WinnowError as error:
            log.error("drift not watched", tenant=key[0], model=key[1], code=error.code, reason=error.message)
            watched = Watched(None)
        self._versions[key] = watched
        while len(self._versions) > MOST_VERSIONS:
            self._versions.popitem(last=False)
        return watched

    def _tell(self, tenant: str, model: str, test: DriftTest) -> None:
        log.warning(
            "drift alarm",
            tenant=tenant,
            model=model,
            images=test.seen,
            rate=self.rate,
            p_value=float(test.p_value[0]),
            meaning="live p-values are not what this version was calibrated on: abstention may not hold its alpha",
        )


def stored_calibrations(database: Database, storage: Storage) -> CalibrationOf:
    """Looks a version's calibration up in its bundle, digests checked."""

    def calibration_of(tenant: str, model: str) -> AbstentionCalibration:
        with database.of(tenant).session() as session:
            row = resolve(session, model)
        return load(TenantStorage(storage, tenant), row.prefix, row.files).calibration.abstention

    return calibration_of


def _test(calibration: AbstentionCalibration, rate: float) -> DriftTest:
    return DriftTest(calibration.n, rate=rate, cuts=distinct(calibration.test.order()))


def _drift(watched: Watched, test: DriftTest) -> Drift:
    share = test.edges / (test.num_calibration + 1)
    slots = np.rint(np.array(watched.recent) * (test.num_calibration + 1)).astype(np.int64) - 1
    recent = np.bincount(np.searchsorted(test.edges, slots, side="right") - 1, minlength=len(test.sizes))
    columns = [share[:-1], share[1:], np.diff(share), test.counts[0], recent]
    return Drift(
        alarm=bool(test.alarmed[0]),
        alarmed_at=watched.alarmed_at,
        since=watched.since,
        images=test.seen,
        skipped=watched.skipped,
        rate=test.rate,
        p_value=float(test.p_value[0]),
        calibration_images=test.num_calibration,
        bins=[Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True)],
    )
