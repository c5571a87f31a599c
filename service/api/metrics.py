"""Metrics over HTTP, and the measuring of every request."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette import types
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send

from service.api.access import MayOperate
from service.api.routes import Route
from service.serving.telemetry import Answered
from service.siblings.looks import Together

router = APIRouter(tags=["health"], route_class=Route)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NO_ROUTE = "none"


@router.get("/metrics", summary="Prometheus metrics of this gateway")
def metrics(request: Request, _key: MayOperate) -> Response:
    """About all tenants, so for who runs the service."""
    state = request.app.state
    state.telemetry.flush()
    others = [look.families for look in state.siblings.look_now()]
    text = generate_latest(Together(state.metrics.registry, others))
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)


class Measured:
    """Tells the telemetry of every request: by the route's template, so that no sender invents labels."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: types.Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = getattr(scope.get("route"), "path", NO_ROUTE)
            seconds = time.perf_counter() - began
            scope["app"].state.telemetry.answered(Answered(method, route, status, seconds))
