"""Is the gateway up, and is everything there that it needs?"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request
from kombu.exceptions import OperationalError
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse, Response

from service.api.routes import Route
from service.db import now
from service.storage import StorageUnavailable
from service.tables import Worker

WORKER_SILENT_SECONDS = 15.0

router = APIRouter(tags=["health"], route_class=Route)


@router.get("/healthz", summary="The gateway answers")
def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Database, storage, broker and a worker are there",
    responses={503: {"description": "What is missing", "model": dict[str, Any]}},
)
def readyz(request: Request) -> Response:
    state = request.app.state
    checks = {
        "database": _database(state),
        "storage": _storage(state),
        "broker": _broker(state),
        "worker": _worker(state),
    }
    missing = {part: problem for part, problem in checks.items() if problem is not None}
    body = {"status": "ready" if not missing else "not ready", "missing": missing}
    return JSONResponse(body, 200 if not missing else 503)


def _database(state: Any) -> str | None:
    try:
        with state.database.session() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        return f"does not answer ({type(error).__name__})"
    return None


def _storage(state: Any) -> str | None:
    try:
        state.storage.check()
    except StorageUnavailable as error:
        return f"cannot be written to ({error.message})"
    return None


def _broker(state: Any) -> str | None:
    try:
        state.doorbell.check()
    except (OperationalError, OSError) as error:
        return f"does not answer ({type(error).__name__})"
    return None


def _worker(state: Any) -> str | None:
    try:
        with state.database.session() as session:
            seen = session.scalar(select(func.max(Worker.seen_at)))
    except SQLAlchemyError as error:
        return f"unknown: the database does not answer ({type(error).__name__})"
    if seen is None:
        return "none has started yet"
    silent = now() - seen
    return None if silent < timedelta(seconds=WORKER_SILENT_SECONDS) else f"silent for {silent.total_seconds():.0f} s"
