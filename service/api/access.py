"""What every call passes: a request id, a key, and a check that the key may do this. The scopes of all routes."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.exc import OperationalError
from starlette import types
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Send

from service import auth
from service.api import problems
from service.api.known_keys import KnownKeys
from service.audit import Actor
from service.errors import WinnowError
from service.limits import Buckets
from service.scopes import Scope
from service.serving.admission import Admission
from service.tables import ApiKey
from service.tenancy import TenantStorage

REQUEST_ID = "x-request-id"
PUBLIC = frozenset(
    {
        "/healthz",
        "/readyz",
        "/v2/health/live",
        "/v2/health/ready",
        "/docs",
        "/docs/oauth2-redirect",
        "/redoc",
        "/openapi.json",
    }
)
ADMITTED = "admitted"
"""In a scope's state, until the application takes it."""
INFERENCE = ("/infer", "/predict")
KEYS_CHANGE_UNDER = ("/v1/keys", "/v1/tenants")
READS = ("GET", "HEAD", "OPTIONS")
USABLE_ID = re.compile(r"[\w.-]{1,64}")
IDS = random.Random()  # noqa: S311 - they name requests and guard nothing; the system's randomness takes a call
BEARER = HTTPBearer(auto_error=False, description="An API key: `wk_…`.")

log = structlog.get_logger("gateway")


class RequestIds:
    """Gives every request an id (the caller's, where usable), logs it, and hands it back in the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: types.Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
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
                tell_request(scope, status, time.monotonic() - began)


def tell_request(scope: types.Scope, status: int, seconds: float) -> None:
    tell = log.debug if status == 200 and is_inference(scope) else log.info  # the metrics count those
    client = (scope.get("client") or ("",))[0]  # behind a proxy that is trusted: whom it names
    told = {"method": scope["method"], "path": scope["path"], "status": status, "took_ms": round(seconds * 1000, 1)}
    tell("request", client=client, **told)


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's, where usable; else a new one."""
    sent = next((value for name, value in headers if name == REQUEST_ID.encode()), b"").decode("latin-1")
    return sent if sent and USABLE_ID.fullmatch(sent) else f"{IDS.getrandbits(64):016x}"


def bearer_of(authorization: bytes) -> str | None:
    """The key in an Authorization header."""
    scheme, _, text = authorization.decode("latin-1").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else None


class Keys:
    """Lets nothing past without a valid key but what is public, before a byte of the body is read or a route found."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: types.Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC:
            try:
                key = await caller(scope["app"].state, scope)
            except (WinnowError, OperationalError) as error:
                answer = await problems.answer(Request(scope), error)
                await answer(scope, receive, send)
                return
            scope.setdefault("state", {}).update(bounds(scope["app"].state, key))
        changes = (
            scope["type"] == "http" and scope["method"] not in READS and scope["path"].startswith(KEYS_CHANGE_UNDER)
        )
        await self._app(scope, receive, _forgetting(scope["app"].state, send) if changes else send)


def _forgetting(everything: State, send: Send) -> Send:
    """Before an answer says that a key has changed, no process of this gateway knows it any more."""

    async def forgetful(message: Message) -> None:
        if message["type"] == "http.response.start":
            known_keys(everything).forget()
            await everything.siblings.forget_keys()
        await send(message)

    return forgetful


@dataclass(frozen=True, slots=True, eq=False)
class Admitted:
    """A request for inference whose head was all that was needed to let it in: the key may, and there is a place."""

    key: ApiKey
    admission: Admission


async def caller(everything: State, scope: types.Scope) -> ApiKey:
    """Whose request it is. Raises Unauthorized, RateLimited, and what the database raises."""
    admitted: Admitted | None = scope.get("state", {}).get(ADMITTED)
    if admitted is not None:
        return admitted.key
    sent = bearer_of(first_of(scope["headers"]).get(b"authorization", b""))
    if is_inference(scope):
        key = await known_keys(everything).authenticate(everything.database, sent)
    else:
        key = await run_in_threadpool(auth.authenticate, everything.database, sent)
    take_token(everything, key)
    return key


def take_token(everything: State, key: ApiKey) -> None:
    """One call of the rate that the key may call at. Raises RateLimited."""
    per_second = key.requests_per_second or everything.settings.requests_per_second
    if per_second is not None:
        buckets: Buckets = everything.buckets
        buckets.take(key.id, per_second)


def first_of(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """By name; of several with one name, the first counts."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found.setdefault(name, value)
    return found


def known_keys(everything: State) -> KnownKeys:
    known: KnownKeys = everything.known_keys
    return known


def is_inference(scope: types.Scope) -> bool:
    """Of the calls whose every microsecond counts."""
    path: str = scope["path"]
    return scope["method"] == "POST" and path.endswith(INFERENCE)


def bounds(everything: State, key: ApiKey) -> dict[str, Any]:
    """The key, and all that a route may reach with it: database and storage of its tenant, and nothing beyond."""
    storage = TenantStorage(everything.storage, key.tenant)
    return {"key": key, "database": everything.database.of(key.tenant), "storage": storage}


class Needs:
    """A route's declaration: the caller's key has one of these scopes, or `admin`. Every route makes exactly one."""

    def __init__(self, *scopes: Scope) -> None:
        self.scopes = frozenset(scopes)

    async def __call__(
        self,
        request: Request,
        _in_docs: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
    ) -> ApiKey:
        key: ApiKey = request.state.key
        auth.check_scopes(key, self.scopes)
        return key


def actor_of(request: Request) -> Actor:
    """Who is behind a change, for the audit log."""
    key: ApiKey = request.state.key
    return Actor(key.id, key.name, request.state.request_id)


_UPLOAD, _JOBS, _REVIEW, _PREDICT = Scope.UPLOAD, Scope.JOBS, Scope.REVIEW, Scope.PREDICT

# What a route may declare; docs/access.md has the table of routes, and a test holds the two together.
MayUpload = Annotated[ApiKey, Depends(Needs(_UPLOAD))]
MaySeeDatasets = Annotated[ApiKey, Depends(Needs(_UPLOAD, _JOBS, _REVIEW))]
MaySeeJobs = Annotated[ApiKey, Depends(Needs(_UPLOAD, _JOBS, _REVIEW))]
MaySubmitJobs = Annotated[ApiKey, Depends(Needs(_JOBS, _REVIEW))]  # review: only jobs of that type
MayRunJobs = Annotated[ApiKey, Depends(Needs(_JOBS))]
MaySeeVerdicts = Annotated[ApiKey, Depends(Needs(_JOBS, _REVIEW))]
MayReview = Annotated[ApiKey, Depends(Needs(_REVIEW))]
MaySeeModels = Annotated[ApiKey, Depends(Needs(_JOBS, _PREDICT))]
MayMoveAliases = Annotated[ApiKey, Depends(Needs(_JOBS))]
MayPredict = Annotated[ApiKey, Depends(Needs(_PREDICT))]
MaySeeUsage = Annotated[ApiKey, Depends(Needs(*(scope for scope in Scope if scope != Scope.OPERATOR)))]
MayOperate = Annotated[ApiKey, Depends(Needs(Scope.OPERATOR))]  # about all tenants
MayAdminister = Annotated[ApiKey, Depends(Needs(Scope.ADMIN))]
