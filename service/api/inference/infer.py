"""Inference over the protocol: what every microsecond counts for, so without validation by models."""

from __future__ import annotations

import time

from sqlalchemy.exc import OperationalError
from starlette.datastructures import State
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service import auth
from service.api import problems
from service.api.access import ADMITTED, Admitted, Needs, first_of
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
HEADER_LENGTH = b"inference-header-content-length"


class Infer:
    """One request, answered by one version: the route, for where the layers before it have something to do."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        everything: State = scope["app"].state
        try:
            content, header = await inferred(everything, scope, scope["state"]["key"], receive)
        except (WinnowError, OperationalError) as error:
            refused = await problems.answer(Request(scope), error)
            await refused(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers_of(content, header)})
        await send({"type": "http.response.body", "body": content})


async def inferred(everything: State, scope: Scope, key: ApiKey, receive: Receive) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where bytes follow it. Raises what the caller is to be told."""
    auth.check_scopes(key, NEEDS.scopes)
    told: dict[str, str] = scope["path_params"]
    reference = model_of(told["model"], told.get("version"))
    engine: Engine = everything.engine
    admitted: Admitted | None = scope["state"].pop(ADMITTED, None)
    with engine.admit(tenant=key.tenant) if admitted is None else admitted.admission:
        began = time.monotonic()
        asked = await _read(first_of(scope["headers"]), receive, everything)
        deadline = None if asked.timeout_s is None else began + asked.timeout_s
        answers = await engine.infer(reference, asked.images, asked.options, tenant=key.tenant, deadline=deadline)
    return answer(answers, asked.outputs, asked.id)


def headers_of(content: bytes, header: int | None) -> list[tuple[bytes, bytes]]:
    if header is None:
        return [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
    return [
        (b"content-length", b"%d" % len(content)),
        (b"content-type", b"application/octet-stream"),
        (HEADER_LENGTH, b"%d" % header),
    ]


async def _read(headers: dict[bytes, bytes], receive: Receive, everything: State) -> InferenceRequest:
    most = everything.settings.max_predict_bytes
    announced = headers.get(b"content-length", b"0").decode("latin-1")
    body = await receive_body(receive, announced, max_bytes=most, within_seconds=BODY_SECONDS)
    encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    length = headers.get(HEADER_LENGTH)

    def read() -> InferenceRequest:
        whole = unpacked(body, encoding, most=most)
        told = None if length is None else length.decode("latin-1")
        return read_request(whole, told, most_images=everything.settings.max_predict_images)

    small = len(body) <= SMALL_BYTES and not encoding
    return read() if small else await everything.engine.off_loop(read)


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
routes: list[InferRoute] = [InferRoute(path, Infer(), methods=["POST"]) for path in PATHS]


def route_of(path: str) -> tuple[InferRoute, dict[str, str]] | None:
    """The route of a POST for inference, and what stands in its path; None for another call."""
    if not path.endswith("/infer"):
        return None
    for route in routes:
        if (found := route.path_regex.match(path)) is not None:
            return route, found.groupdict()
    return None
