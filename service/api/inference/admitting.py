"""Lets a request for inference in, or refuses it, as soon as its head is read and before it costs what an answer costs.

Under several times the load that it can bear, a gateway that takes each request through all of its layers only to
refuse it has no time left for those that it took.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from starlette.datastructures import State
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service import auth
from service.api.access import REQUEST_ID, Admitted, bearer_of, first_of, known_keys, request_id_of, take_token
from service.api.inference.infer import NEEDS, route_of
from service.api.problems import INFERENCE, problem, status_of
from service.errors import TooManyRequests, Unauthorized, Unavailable
from service.limits import RateLimited
from service.serving.admission import Admission
from service.serving.engine import Engine
from service.serving.telemetry import Answered
from service.tables import ApiKey

LARGEST_BYTES = 1024 * 1024
"""Of a body that is read to its end only to be refused."""

Headers = Sequence[tuple[bytes, bytes]]


def admitted(state: State, path: str, headers: Headers) -> Admitted | bytes | None:
    """What a POST gets: its place, or a whole HTTP answer that refuses it; None where the application is to be asked.

    Only who may infer is let in or refused here: the key was seen valid a moment ago, and has the scope.
    """
    found, sent = route_of(path), first_of(headers)
    if found is None or b"expect" in sent or not _is_small(sent):
        return None
    key = _known(state, sent)
    if key is None or not auth.may(key, NEEDS.scopes):
        return None
    given = _given(state, key)
    if isinstance(given, Admitted):
        return given
    status = status_of(given)
    state.telemetry.answered(Answered("POST", found[0].path, status, 0.0))
    made = _refusal.__wrapped__ if isinstance(given, RateLimited) else _refusal  # its text is new every time
    before, after = made(given.code, given.message, given.retry_after_seconds, status)
    return before + request_id_of(headers).encode() + after


def _known(state: State, sent: dict[bytes, bytes]) -> ApiKey | None:
    try:
        return known_keys(state).known(state.database, bearer_of(sent.get(b"authorization", b"")))
    except Unauthorized:  # the application says so, and why
        return None


def _given(state: State, key: ApiKey) -> Admitted | TooManyRequests | Unavailable:
    engine: Engine = state.engine
    try:
        take_token(state, key)
    except RateLimited as error:
        return error
    admission = engine.ask(tenant=key.tenant)
    return Admitted(key, admission) if isinstance(admission, Admission) else admission


@lru_cache(maxsize=64)
def _refusal(code: str, message: str, retry_after_seconds: int, status: int) -> tuple[bytes, bytes]:
    """What is written before and after the request's id."""
    answer = problem(status, code, message, headers={"Retry-After": str(retry_after_seconds)}, instance=INFERENCE)
    head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
    return STATUS_LINE[status] + head + REQUEST_ID.encode() + b": ", b"\r\n\r\n" + bytes(answer.body)


def _is_small(sent: dict[bytes, bytes]) -> bool:
    length = sent.get(b"content-length", b"")
    return length.isdigit() and int(length) <= LARGEST_BYTES
