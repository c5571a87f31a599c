"""Renders every error as RFC 9457 problem+json, or as `/v2` has it. The one table from error to status is here."""

from __future__ import annotations

from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service import errors
from service.api.routes import allowed

STATUS_OF: dict[type, int] = {  # of the nearest class that stands here
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.NotAcceptable: 406,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.WrongTusVersion: 412,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.ChecksumMismatch: 460,
    errors.InvalidInput: 422,
    errors.Locked: 423,
    errors.TooManyRequests: 429,
    errors.Unavailable: 503,
}
TITLES = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    409: "Conflict",
    410: "Gone",
    412: "Precondition failed",
    413: "Too large",
    415: "Unsupported format",
    422: "Cannot be processed",
    423: "Locked",
    429: "Too many requests",
    460: "Checksum mismatch",
    500: "Internal error",
    503: "Unavailable for now",
}

INFERENCE = "/v2"

log = structlog.get_logger()


def status_of(error: errors.WinnowError) -> int:
    return next((STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF), 500)


def problem(status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **extra: Any) -> Response:
    body = {
        "type": f"urn:winnow:error:{code}",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "code": code,
        "detail": detail,
    }
    path = str(extra.get("instance", ""))
    if path == INFERENCE or path.startswith(f"{INFERENCE}/"):
        return _inference_error(status, code, detail, headers, extra)
    content = orjson.dumps({**body, **extra}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status, headers, media_type="application/problem+json")


def _inference_error(
    status: int, code: str, detail: str, headers: dict[str, str] | None, extra: dict[str, Any]
) -> Response:
    """As the Open Inference Protocol has it: `error` is a text, and what cannot be processed is 400. `code` is ours."""
    told = {name: value for name, value in extra.items() if name != "instance"}
    content = orjson.dumps({"error": detail, "code": code, **told}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, 400 if status == 422 else status, headers, media_type="application/json")


def install(app: FastAPI) -> None:
    """Make `app` answer every error, its own and the framework's, in the one form."""
    app.add_exception_handler(errors.WinnowError, _winnow_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(OperationalError, _database_away)
    app.add_exception_handler(Exception, unexpected)


async def answer(request: Request, error: errors.WinnowError | OperationalError) -> Response:
    """For what is refused before the application is reached, whose handlers these are otherwise."""
    return await (_winnow_error if isinstance(error, errors.WinnowError) else _database_away)(request, error)


async def _winnow_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, errors.WinnowError):
        raise error
    status = status_of(error)
    if status == 500:
        log.error("internal error", path=request.url.path, code=error.code, exc_info=error)
    headers = {}
    if isinstance(error, errors.TooManyRequests | errors.Unavailable):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if request.url.path.startswith("/v1/uploads"):
        headers["Tus-Resumable"] = headers["Tus-Version"] = "1.0.0"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return problem(status, error.code, error.message, headers=headers, instance=request.url.path, **error.details)


async def _validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    found = [{"field": ".".join(map(str, item["loc"])), "problem": item["msg"]} for item in error.errors()]
    told = "; ".join(f"{item['field']}: {item['problem']}" for item in found)
    return problem(
        422, "invalid_request", f"The request is not right: {told}.", instance=request.url.path, errors=found
    )


async def _http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 405:
        return _not_this_method(request)
    codes = {404: "no_such_route", 400: "bad_request"}
    code = codes.get(error.status_code, "http_error")
    detail = f"{request.method} {request.url.path}: {error.detail}. The calls there are stand in /docs."
    return problem(error.status_code, code, detail, headers=dict(error.headers or {}), instance=request.url.path)


def _not_this_method(request: Request) -> Response:
    methods = [*allowed(request.app, request.scope), "OPTIONS"]
    headers = {"Allow": ", ".join(methods)}
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    detail = f"{request.url.path} has no {request.method}; it has {headers['Allow']}. The calls stand in /docs."
    return problem(405, "method_not_allowed", detail, headers=headers, instance=request.url.path)


async def _database_away(request: Request, error: Exception) -> Response:
    log.error("database away", path=request.url.path, exc_info=error)
    detail = "The database does not answer at the moment. Nothing was changed; repeat the call."
    return problem(503, "database_unavailable", detail, headers={"Retry-After": "2"}, instance=request.url.path)


async def unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected error", path=request.url.path, exc_info=error)
    detail = "Something went wrong inside Winnow. The log has it under this request's id."
    return problem(500, "internal", detail, instance=request.url.path)
