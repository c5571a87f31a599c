"""The OpenAPI document: FastAPI's, with every error declared as problem+json, headers, and examples that hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.examples import ANSWERS, PARAMETERS
from service.api.problems import TITLES
from service.datasets.export import MEDIA_TYPES

Document = dict[str, Any]
Operation = dict[str, Any]

METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
PROBLEM = {"$ref": "#/components/schemas/Problem"}
PROBLEM_SCHEMA: Document = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457. `code` is stable; docs/errors.md lists them all. More members say what is special.",
    "required": ["type", "title", "status", "code", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:winnow:error:job_not_found"]},
        "title": {"type": "string", "examples": ["Not found"]},
        "status": {"type": "integer", "examples": [404]},
        "code": {"type": "string", "examples": ["job_not_found"]},
        "detail": {"type": "string", "examples": ["There is no job 01a1fe2153ab."]},
        "instance": {"type": "string", "examples": ["/v1/jobs/01a1fe2153ab"]},
    },
}
ALWAYS = (401, 403, 422, 429, 500, 503)
WITH_A_PATH = (404, 409, 410)
WITH_A_BODY = (400, 404, 409, 413, 415)


INFERENCE_ERROR: Document = {
    "application/json": {
        "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    }
}
FILE: Document = {"schema": {"type": "string", "format": "binary"}}
EMPTY = ("GET /v2/health/live", "GET /v2/health/ready")  # answered by the status alone
FILES = {  # what is answered with no JSON
    "GET /v1/datasets/{reference}/samples/{index}/image": ("image/png",),
    "GET /v1/datasets/{reference}/export": tuple(sorted(set(MEDIA_TYPES.values()))),
    "GET /v1/models/{name}/captures/{version}/{segment}/{index}/image": ("image/png",),
    "GET /v1/models/{name}/captures/export": tuple(sorted(set(MEDIA_TYPES.values()))),
    "GET /metrics": ("text/plain",),
}


def described(app: FastAPI) -> Document:
    """What `app.openapi` gives; made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
        )
        app.openapi_schema = _completed(document)
    return app.openapi_schema


def operations(document: Document) -> Iterator[tuple[str, str, Operation]]:
    for path, calls in document["paths"].items():
        for method, operation in calls.items():
            if method in METHODS:
                yield method, path, operation


def _completed(document: Document) -> Document:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = PROBLEM_SCHEMA
    for method, path, operation in operations(document):
        if operation.get("security"):
            _declare_errors(method, path, operation)
        for media in FILES.get(f"{method.upper()} {path}", ()):
            content = operation["responses"]["200"].setdefault("content", {})
            content.pop("application/json", None)
            content[media] = FILE
        _show_examples(method, path, operation)
    for call in EMPTY:
        method, path = call.split(" ")
        if path in document["paths"]:
            document["paths"][path][method.lower()]["responses"]["200"].pop("content", None)
    return document


def _declare_errors(method: str, path: str, operation: Operation) -> None:
    answers = operation["responses"]
    answers.pop("422", None)
    statuses = [*ALWAYS, *(WITH_A_PATH if "{" in path else ()), *(WITH_A_BODY if "requestBody" in operation else ())]
    if any(parameter["name"] == "accept" for parameter in operation.get("parameters", ())):
        statuses.append(406)
    for status in sorted(set(statuses)):
        answers.setdefault(str(status), _problem(path, TITLES.get(status, "Error")))
    answers.setdefault("default", _problem(path, "Any other error"))
    if method == "get":
        answers["304"] = {"description": "Not modified: what `If-None-Match` names is still so"}
    for status in ("429", "503"):
        answers[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}


def _problem(path: str, title: str) -> Document:
    """In /v2, errors have the form that the Open Inference Protocol gives them."""
    content = INFERENCE_ERROR if path.startswith("/v2") else {"application/problem+json": {"schema": PROBLEM}}
    return {"description": title, "content": content}


def _show_examples(method: str, path: str, operation: Operation) -> None:
    for parameter in operation.get("parameters", ()):
        known = PARAMETERS.get(f"{path.split('/')[2]}.{parameter['name']}", PARAMETERS.get(parameter["name"]))
        if known is not None:
            parameter.setdefault("example", known)
    example = ANSWERS.get(f"{method.upper()} {path}")
    if example is not None:
        answer = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
        answer["content"]["application/json"]["example"] = example
