"""Fixtures for tests of a gateway that serves one model; the module's own `settings` say how."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from tiny_model import publish_version

from service.app import create_app
from service.auth import ensure_admin_key
from service.settings import Settings
from tests.service.live import serving


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    app = create_app(settings)
    publish_version(app.state.database, app.state.storage, "signs")
    return app


@pytest.fixture
def client(app: FastAPI, settings: Settings) -> Iterator[httpx.Client]:
    with serving(app, key=ensure_admin_key(settings)) as client:
        yield client
