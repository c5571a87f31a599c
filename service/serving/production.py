"""All that watches a gateway at work, put together: metrics, telemetry, drift."""

from __future__ import annotations

from service.db import Database
from service.metrics import Gauges, Metrics, StackState, time_statements
from service.serving.drift import DriftMonitor, stored_calibrations
from service.serving.engine import Engine
from service.serving.telemetry import Telemetry
from service.settings import Settings
from service.storage import Storage


class Production:
    """One for a process; `start` it when the engine takes requests, `close` it after the engine."""

    def __init__(self, engine: Engine, database: Database, storage: Storage, settings: Settings) -> None:
        self.metrics = Metrics()
        self.telemetry = Telemetry(self.metrics)
        self.drift = DriftMonitor(stored_calibrations(database, storage), rate=settings.drift_alarm_rate)
        self.telemetry.takers.append(self.drift.take)
        self.metrics.registry.register(Gauges(StackState(database)))
        self.metrics.registry.register(Gauges(self.drift.families))
        time_statements(database, self.metrics)
        engine.watchers.append(self.telemetry.watch)
        engine.refusals.append(self.telemetry.refused)

    def start(self) -> None:
        self.telemetry.start()

    def close(self) -> None:
        self.telemetry.close()
