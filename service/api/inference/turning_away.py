"""The quick no: while the house is full, a request for inference is refused before it costs what an answer costs.

Under several times the load that it can bear, a gateway that takes each request through all of its layers only to
refuse it has no time left for those that it took.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import State
from starlette.responses import Response

from service.api.access import REQUEST_ID, bearer_of, known_keys, request_id_of
from service.api.inference.infer import routes
from service.api.problems import problem, status_of
from service.serving.engine import Engine
from service.serving.errors import QueueFull
from service.serving.telemetry import Answered

LARGEST_BYTES = 1024 * 1024
"""Of a body that is read to its end only to be refused."""


def refusal(state: State, path: str, headers: Sequence[tuple[bytes, bytes]]) -> Response | None:
    """The answer to a POST, where the house is full; None where the application is to be asked.

    The sender must be known by then: his tenant counts as one that wants a share of the places.
    """
    if not path.endswith("/infer"):
        return None
    route = next((route for route in routes if route.path_regex.match(path)), None)
    sent = dict(headers)
    if route is None or b"expect" in sent or not _is_small(sent):
        return None
    tenant = known_keys(state).tenant(bearer_of(sent.get(b"authorization", b"").decode("latin-1")))
    engine: Engine = state.engine
    error = None if tenant is None else engine.turn_away(tenant=tenant)
    if not isinstance(error, QueueFull):
        return None
    state.telemetry.answered(Answered("POST", route.path, status_of(error), 0.0))
    told = {"Retry-After": str(error.retry_after_seconds), REQUEST_ID: request_id_of(headers)}
    return problem(status_of(error), error.code, error.message, headers=told, instance=path)


def _is_small(sent: dict[bytes, bytes]) -> bool:
    length = sent.get(b"content-length", b"")
    return length.isdigit() and int(length) <= LARGEST_BYTES
