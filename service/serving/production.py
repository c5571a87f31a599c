"""All that watches a gateway at work, put together: metrics, telemetry, drift."""

from __future__ import annotations

from sqlalchemy import select

from service.db import Database
from service.metrics import Family, Gauges, Metrics, StackState, time_statements
from service.serving.capture import Policy, Sampler
from service.serving.drift import DriftMonitor, stored_calibrations
from service.serving.engine import Engine
from service.serving.statistics import Statistics
from service.serving.telemetry import Take, Telemetry
from service.settings import Settings
from service.storage import Storage
from service.tables import Tenant


class Production:
    """One for a process; `start` it when the engine takes requests, `close` it after the engine."""

    def __init__(
        self,
        engine: Engine,
        database: Database,
        storage: Storage,
        settings: Settings,
        *,
        watch_drift: Take | None = None,
    ) -> None:
        """watch_drift: where another process watches for this one, and tells of the stack."""
        self.metrics = Metrics()
        self.telemetry = Telemetry(self.metrics)
        self.drift = DriftMonitor(stored_calibrations(database, storage), rate=settings.drift_alarm_rate)
        self.statistics = Statistics()
        self.telemetry.takers += [watch_drift or self.drift.take, self.statistics.take]
        if watch_drift is None:
            self.metrics.registry.register(Gauges(StackState(database)))
            self.metrics.registry.register(Gauges(self.drift.families))
        self.metrics.registry.register(Gauges(lambda: _engine_state(engine)))
        self.sampler = Sampler(storage, Policy.of(settings), lambda: _tenants(database))
        if self.sampler.is_on:
            engine.watchers.append(self.sampler.watch)
        time_statements(database, self.metrics)
        engine.watchers.append(self.telemetry.watch)
        engine.refusals.append(self.telemetry.refused)

    def start(self) -> None:
        self.telemetry.start()
        self.sampler.start()

    def close(self) -> None:
        self.telemetry.close()
        self.sampler.close()


def _engine_state(engine: Engine) -> list[Family]:
    load, loaded = engine.load_state(), engine.loaded()
    told: list[tuple[str, str, float]] = [
        ("winnow_inference_inside", "Inference requests in house.", load.inside),
        ("winnow_inference_queued_requests", "Inference requests that wait for a call.", load.queued_requests),
        ("winnow_inference_queued_images", "Images that wait for a call.", load.queued_images),
        ("winnow_inference_computing", "Calls being computed.", load.computing),
        ("winnow_models_loaded", "Model versions in memory.", len(loaded)),
        ("winnow_models_bytes", "Memory of the model versions in memory, about.", sum(each.bytes for each in loaded)),
    ]
    return [(name, text, (), [((), value)]) for name, text, value in told]


def _tenants(database: Database) -> list[str]:
    with database.session() as session:
        return list(session.scalars(select(Tenant.name)))
