"""Inference over the protocol: the hot path, so a bare ASGI application without validation by models."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.exc import OperationalError
from starlette.datastructures import Headers, State
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service import auth
from service.api import problems
from service.api.access import Needs
from service.api.bodies import receive_body
from service.errors import WinnowError
from service.references import ModelRef, parse_model_ref
from service.scopes import Scope as KeyScope
from service.serving.engine import Engine
from service.serving.protocol.errors import BadInferenceRequest
from service.serving.protocol.outputs import answer
from service.serving.protocol.request import InferenceRequest, read_request, unpacked
from service.tables import ApiKey

BODY_SECONDS = 60.0
SMALL_BYTES = 128 * 1024
"""Bodies up to this size are taken apart on the event loop: a thread would take longer to come."""
HEADER_LENGTH = "Inference-Header-Content-Length"
PLACE = "place"
"""In the scope's state, where the request was let in as soon as its head was read."""


class Infer:
    """One request, answered by one version."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            content, header = await _answered(scope, receive)
        except (WinnowError, OperationalError) as error:
            refused = await problems.answer(Request(scope), error)
            await refused(scope, receive, send)
            return
        kind = b"application/json" if header is None else b"application/octet-stream"
        headers = [(b"content-length", b"%d" % len(content)), (b"content-type", kind)]
        if header is not None:
            headers.append((HEADER_LENGTH.lower().encode(), b"%d" % header))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


async def _answered(scope: Scope, receive: Receive) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where bytes follow it."""
    key: ApiKey = scope["state"]["key"]
    auth.check_scopes(key, NEEDS.scopes)
    told: dict[str, str] = scope["path_params"]
    reference = model_of(told["model"], told.get("version"))
    state: State = scope["app"].state
    engine: Engine = state.engine
    with scope["state"].pop(PLACE, None) or engine.admit(tenant=key.tenant):
        began = time.monotonic()
        asked = await _read(Headers(scope=scope), receive, state)
        deadline = None if asked.timeout_s is None else began + asked.timeout_s
        answers = await engine.infer(reference, asked.images, asked.options, tenant=key.tenant, deadline=deadline)
    return answer(answers, asked.outputs, asked.id)


async def _read(headers: Headers, receive: Receive, state: State) -> InferenceRequest:
    most = state.settings.max_predict_bytes
    announced = headers.get("content-length", "0")
    body = await receive_body(receive, announced, max_bytes=most, within_seconds=BODY_SECONDS)
    encoding = headers.get("content-encoding", "").strip().lower()
    length = headers.get(HEADER_LENGTH)

    def read() -> InferenceRequest:
        whole = unpacked(body, encoding, most=most)
        return read_request(whole, length, most_images=state.settings.max_predict_images)

    small = len(body) <= SMALL_BYTES and not encoding
    return read() if small else await state.engine.off_loop(read)


def model_of(model: str, version: str | None) -> ModelRef:
    """`signs` and version `2`, or an alias for a version; or all of it in the name. Raises InvalidReference."""
    if version is None:
        return parse_model_ref(model)
    ref = parse_model_ref(model)
    if ref.version is not None or ref.alias is not None:
        raise BadInferenceRequest(f"{model!r} says which version, and {version!r} says it again.", code="two_versions")
    return parse_model_ref(f"{model}@{version}" if version.isdecimal() else f"{model}:{version}")


class InferRoute(Route):
    """Declares what it needs as the other routes do."""

    needs = (Needs(KeyScope.PREDICT),)


NEEDS = InferRoute.needs[0]
PATHS = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
routes = [InferRoute(path, Infer(), methods=["POST"]) for path in PATHS]


class Shortcut:
    """Takes inference straight to its route: the layers between cost as much as an answer, and do nothing for it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/infer"):
            for route in routes:
                if (found := route.path_regex.match(scope["path"])) is not None:
                    taken: dict[str, Any] = {"route": route, "path_params": found.groupdict()}
                    scope.update(taken)
                    await route.app(scope, receive, send)
                    return
        await self._app(scope, receive, send)
