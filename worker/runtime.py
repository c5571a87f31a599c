"""What every step of a worker stands on: settings, database, storage, doorbell, and its own name."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from threading import Event

from celery import Celery

from service.db import Database
from service.jobs.queue import Doorbell
from service.settings import Settings
from service.storage import Storage, open_storage
from worker.metrics import WorkerMetrics


@dataclass(frozen=True)
class Runtime:
    """Opened once a process; nothing of it survives a fork.

    doubted: set where a step failed in a way that may have left the process half-made, as memory refused in the middle
    of an import does. It then does no further job: another child takes its place.
    """

    settings: Settings
    database: Database
    storage: Storage
    doorbell: Doorbell
    worker: str
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    doubted: Event = field(default_factory=Event)

    @classmethod
    def open(cls, settings: Settings, app: Celery) -> Runtime:
        database = Database.open(settings.database_url)
        return cls(
            settings,
            database,
            open_storage(settings),
            Doorbell(app, database),
            f"{socket.gethostname()}:{os.getpid()}",
        )
