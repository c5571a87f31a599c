"""Inference before all layers of the application: they cost as much as an answer, and do nothing for it.

What they do for other calls is done here, in one go: request id, key, rate, log, metrics, and errors in their form.
"""

from __future__ import annotations

import time

import structlog
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api import problems
from service.api.access import REQUEST_ID, caller, is_inference, request_id_of, tell_request
from service.api.inference.infer import headers_of, inferred, route_of
from service.errors import WinnowError
from service.serving.telemetry import Answered

Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, Headers, bytes]


class Gateway(FastAPI):
    """The application. express: whether inference goes past its layers."""

    express = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.express and scope["type"] == "http" and scope["method"] == "POST":
            found = route_of(scope["path"])
            if found is not None:
                scope["route"], scope["path_params"] = found
                scope["app"] = self
                await _infer(self.state, scope, receive, send)
                return
        if scope["type"] == "http" and self.state.first is not None and not is_inference(scope):
            await misdirected()(scope, receive, send)
            return
        await super().__call__(scope, receive, send)


def misdirected() -> Response:
    """For what came to a sibling behind a request that it had not read to its end: only the first process knows."""
    return problems.problem(
        503,
        "misdirected",
        "This connection is one for inference. Repeat the request: a new connection takes it to who can answer it.",
        headers={"Retry-After": "1", "connection": "close"},
    )


async def _infer(everything: State, scope: Scope, receive: Receive, send: Send) -> None:
    began, request_id = time.perf_counter(), request_id_of(scope["headers"])
    scope.setdefault("state", {})["request_id"] = request_id
    status = 500
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        try:
            status, headers, content = await _answer(everything, scope, receive)
            headers.append((REQUEST_ID.encode(), request_id.encode()))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": content})
        finally:
            seconds = time.perf_counter() - began
            everything.telemetry.answered(Answered("POST", scope["route"].path, status, seconds))
            tell_request(scope, status, seconds)


async def _answer(everything: State, scope: Scope, receive: Receive) -> Answer:
    try:
        key = await caller(everything, scope)
        content, header = await inferred(everything, scope, key, receive)
    except (WinnowError, OperationalError) as error:
        refused = await problems.answer(Request(scope), error)
    except Exception as error:  # noqa: BLE001 - it is logged, and told in the one form
        refused = await problems.unexpected(Request(scope), error)
    else:
        return 200, headers_of(content, header), content
    return refused.status_code, list(refused.raw_headers), bytes(refused.body)
