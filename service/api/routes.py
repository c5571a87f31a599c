"""What every route does beside its own: HEAD where there is GET, ETags and 304, 415 for a body that is not JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.params import Form
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from service.errors import TooLarge, UnsupportedMedia

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
KEPT_ON_304 = ("etag", "cache-control", "vary", "retry-after", "content-location", "expires", "date")

Answering = Callable[[Request], Coroutine[Any, Any, Response]]


class Route(APIRoute):
    """Every router is made with `route_class=Route`; a test holds them to it."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(self._as_get(scope))

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = self._as_get(scope)
        if seen is scope:
            await super().handle(scope, receive, send)
        else:
            head = _HeadOnly(send)
            await super().handle(seen, head.receive, head.send)

    def get_route_handler(self) -> Answering:
        answering = super().get_route_handler()
        takes_json = self.body_field is not None and not isinstance(self.body_field.field_info, Form)

        async def answer(request: Request) -> Response:
            if takes_json:
                check_is_json(request.headers)
                await keep_json(request, request.app.state.settings.max_json_bytes)
            response = await answering(request)
            return conditional(request, response) if request.method == "GET" else response

        return answer

    def _as_get(self, scope: Scope) -> Scope:
        """A HEAD for a route that has only GET is that GET, of which the head is sent."""
        methods = self.methods or set()
        if scope["type"] != "http" or scope["method"] != "HEAD" or "HEAD" in methods or "GET" not in methods:
            return scope
        return {**scope, "method": "GET"}


class _HeadOnly:
    """Sends the head of an answer and ends it; whoever streams is told that nobody listens."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._sent = anyio.Event()

    async def receive(self) -> Message:
        await self._sent.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(message)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            self._sent.set()


def check_is_json(headers: Headers) -> None:
    """Raises UnsupportedMedia for a body that says it is something else; no body at all is the call's own matter."""
    if headers.get("content-length") == "0" or not {"content-length", "transfer-encoding"} & set(headers.keys()):
        return
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise UnsupportedMedia(
            f"This call takes a JSON body; this one says that it is {media or 'nothing'}. Send "
            "Content-Type: application/json.",
            code="not_json",
        )


async def keep_json(request: Request, max_bytes: int) -> None:
    """Read the body before anything parses it. Raises TooLarge as soon as it is longer than it may be."""
    announced = request.headers.get("content-length", "0")
    too_large = TooLarge(f"A JSON body may have {max_bytes} bytes, this one has more.", code="body_too_large")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    request._body = bytes(body)  # what Request.body() keeps and gives


def conditional(request: Request, response: Response) -> Response:
    """The answer with an ETag, or 304 where the caller has it already."""
    body = getattr(response, "body", None)
    if response.status_code != 200 or response.headers.get("cache-control") == "no-store":
        return response
    if "etag" not in response.headers:
        if body is None:
            return response
        response.headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    response.headers.setdefault("Cache-Control", "private, no-cache")
    response.headers.setdefault("Vary", "Accept, Authorization")
    return not_modified(response.headers["etag"], dict(response.headers)) if has(request, response) else response


def has(request: Request, response: Response) -> bool:
    return holds(request.headers.get("if-none-match"), response.headers["etag"])


def holds(if_none_match: str | None, etag: str) -> bool:
    """Whether an If-None-Match names this tag; compared weakly, as RFC 9110 has it for GET."""
    if if_none_match is None:
        return False
    named = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in named or etag.removeprefix("W/") in named


def not_modified(etag: str, headers: dict[str, str]) -> Response:
    kept = {name: value for name, value in headers.items() if name.lower() in KEPT_ON_304}
    return Response(status_code=304, headers={**kept, "etag": etag})


def allowed(app: FastAPI, scope: Scope) -> list[str]:
    """The methods that this path has, whichever route they are on."""
    return [
        method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] == Match.FULL for route in app.router.routes)
    ]
