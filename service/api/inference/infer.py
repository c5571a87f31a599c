"""Inference over the protocol: the hot path, so a bare route without validation by models."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service import auth
from service.api.access import Needs
from service.api.bodies import read_body
from service.references import ModelRef, parse_model_ref
from service.scopes import Scope
from service.serving.engine import Engine
from service.serving.protocol.errors import BadInferenceRequest
from service.serving.protocol.outputs import answer
from service.serving.protocol.request import InferenceRequest, read_request, unpacked
from service.tables import ApiKey

BODY_SECONDS = 60.0
SMALL_BYTES = 128 * 1024
"""Bodies up to this size are taken apart on the event loop: a thread would take longer to come."""
HEADER_LENGTH = "Inference-Header-Content-Length"


async def infer(request: Request) -> Response:
    """One request, answered by one version."""
    key: ApiKey = request.state.key
    auth.check_scopes(key, NEEDS.scopes)
    reference = model_of(request.path_params["model"], request.path_params.get("version"))
    state = request.app.state
    engine: Engine = state.engine
    with engine.admit(tenant=key.tenant):
        began = time.monotonic()
        body = await read_body(request, max_bytes=state.settings.max_predict_bytes, within_seconds=BODY_SECONDS)
        encoding = request.headers.get("content-encoding", "").strip().lower()
        length = request.headers.get(HEADER_LENGTH)

        def read() -> InferenceRequest:
            whole = unpacked(body, encoding, most=state.settings.max_predict_bytes)
            return read_request(whole, length, most_images=state.settings.max_predict_images)

        small = len(body) <= SMALL_BYTES and not encoding
        asked = read() if small else await engine.off_loop(read)
        deadline = None if asked.timeout_s is None else began + asked.timeout_s
        answers = await engine.infer(reference, asked.images, asked.options, tenant=key.tenant, deadline=deadline)
    content, header = answer(answers, asked.outputs, asked.id)
    if header is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={HEADER_LENGTH: str(header)})


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

    needs = (Needs(Scope.PREDICT),)


NEEDS = InferRoute.needs[0]
PATHS = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
routes = [InferRoute(path, infer, methods=["POST"]) for path in PATHS]
