"""The only place where HTTP is assembled."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

from fastapi import FastAPI

from service.api import (
    access,
    audit,
    bundles,
    captures,
    datasets,
    drift,
    health,
    jobs,
    keys,
    metrics,
    models,
    problems,
    reviews,
    tenants,
    tracing,
    uploads,
    verdicts,
    webhooks,
)
from service.api.inference import describing, infer
from service.api.inference.express import Gateway
from service.api.known_keys import KnownKeys
from service.api.openapi import described
from service.db import Database
from service.events.feeds import Feeds
from service.jobs.overrides import Standings
from service.jobs.queue import Doorbell, celery_app
from service.jobs.verdict_pages import Orders
from service.limits import Buckets
from service.logs import configure_logs
from service.serving.engine import Engine
from service.serving.production import Production
from service.serving.telemetry import Seen
from service.settings import Settings
from service.siblings.first import Siblings
from service.storage import open_storage
from service.uploads.sweeping import Sweeper
from service.webhooks.deliverer import Deliverer


class First(Protocol):
    """What a sibling's application needs of the process that started it."""

    def watch_drift(self, seen: Seen) -> None: ...


DESCRIPTION = """
Winnow removes poison from image training sets, and serves the model trained on what is left.
Every error is `application/problem+json` with a stable `code`.
"""

PARTS = (
    datasets,
    uploads,
    jobs,
    verdicts,
    reviews,
    models,
    bundles,
    drift,
    captures,
    keys,
    tenants,
    audit,
    webhooks,
    health,
    metrics,
    describing,
)
"""What has routes; of two that fit a path the first is taken."""


def create_app(settings: Settings, *, first: First | None = None) -> Gateway:
    """The gateway over an existing, migrated database. first: the process that this one is a sibling of."""
    database = Database.open(settings.database_url)
    storage = open_storage(settings)
    engine = Engine(database, storage, settings)
    watch_drift = None if first is None else first.watch_drift
    production = Production(engine, database, storage, settings, watch_drift=watch_drift)
    doorbell = Doorbell(celery_app(settings), database)
    sweeper = Sweeper(database, storage, settings, doorbell)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        production.start()
        if first is None:
            sweeper.start()
            async with app.state.deliverer.running():
                yield
            await app.state.siblings.close()
            sweeper.close()
        else:
            yield
        app.state.feeds.close()
        engine.close()
        production.close()
        database.close()

    app = Gateway(title="Winnow", version="0.1.0", description=DESCRIPTION, lifespan=lifespan)
    app.state.storage = storage
    siblings = Siblings(production.drift)
    app.state.first, app.state.siblings = first, siblings
    if first is None:
        text = "Processes of this gateway that answer inference."
        production.metrics.gauge("winnow_gateway_processes", text, lambda: 1 + siblings.serving)
    _keep(app, settings, database, doorbell, engine, production)
    app.add_middleware(access.Keys)
    app.add_middleware(access.RequestIds)
    app.add_middleware(metrics.Measured)  # added last, so met first
    problems.install(app)
    app.openapi = partial(described, app)  # type: ignore[method-assign] # as FastAPI documents it
    app.router.routes[:0] = infer.routes
    for part in PARTS:
        app.include_router(part.router)
    return app


def _keep(
    app: FastAPI, settings: Settings, database: Database, doorbell: Doorbell, engine: Engine, production: Production
) -> None:
    """What the routes find in `app.state`, but the storage."""
    app.state.settings = settings
    app.state.database = database
    app.state.engine = engine
    app.state.metrics, app.state.telemetry = production.metrics, production.telemetry
    app.state.drift, app.state.statistics = production.drift, production.statistics
    app.state.sampler = production.sampler
    app.state.known_keys = KnownKeys()
    app.state.buckets = Buckets()
    app.state.orders = Orders()
    app.state.standings = Standings()
    app.state.feeds = Feeds(database, most_listeners=settings.most_listeners)
    app.state.deliverer = Deliverer(
        database,
        allow_private=settings.webhooks_allow_private,
        timeout_seconds=settings.webhook_timeout_seconds,
    )
    app.state.doorbell = doorbell


def from_env() -> FastAPI:
    """For `uvicorn --factory service.app:from_env`."""
    settings = Settings.from_env()
    configure_logs(settings.log_level, part="gateway")
    app = create_app(settings)
    tracing.install(app, os.environ)
    return app
