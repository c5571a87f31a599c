"""What every call passes: a request id, and a key."""

from __future__ import annotations

import re
import secrets
import time
from typing import Annotated

import structlog
from fastapi import Depends, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth import authenticate
from service.db import Database
from service.tables import ApiKey

REQUEST_ID = "x-request-id"

log = structlog.get_logger("gateway")


class RequestIds:
    """Gives every request an id (the caller's, where usable), logs it, and hands it back in the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(REQUEST_ID.encode(), b"").decode("latin-1")
        request_id = sent if re.fullmatch(r"[\w.-]{1,64}", sent) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.monotonic()
        status = 500

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID.encode(), request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, tagged)
            finally:
                took_ms = round((time.monotonic() - began) * 1000, 1)
                log.info("request", method=scope["method"], path=scope["path"], status=status, took_ms=took_ms)


def require_key(request: Request) -> ApiKey:
    """The caller's key. Raises Unauthorized."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    database: Database = request.app.state.database
    return authenticate(database, key.strip() if scheme.lower() == "bearer" else None)


Key = Annotated[ApiKey, Depends(require_key)]
