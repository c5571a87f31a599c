"""The examples of the OpenAPI document hold: each is what its model reads and writes, and what its schema describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import TypeAdapter

from service.api.examples import ANSWERS, PARAMETERS
from service.api.openapi import operations
from service.app import create_app
from service.settings import Settings

Document = dict[str, Any]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(Settings(home=tmp_path_factory.mktemp("home"), redis_url="redis://127.0.0.1:1/0").resolved())


@pytest.fixture(scope="module")
def document(app: FastAPI) -> Document:
    found: Document = app.openapi()
    return found


@pytest.mark.parametrize("call", ANSWERS)
def test_an_answer_is_what_its_model_reads_and_writes(app: FastAPI, call: str) -> None:
    example = ANSWERS[call]
    adapter: TypeAdapter[Any] = TypeAdapter(models_of(app)[call])
    assert adapter.dump_python(adapter.validate_python(example), mode="json") == example


@pytest.mark.parametrize("call", ANSWERS)
def test_an_answer_is_shown_and_is_what_the_document_says(document: Document, call: str) -> None:
    method, path = call.split(" ")
    answers = document["paths"][path][method.lower()]["responses"]
    shown = next(answer for status, answer in answers.items() if status.startswith("2"))["content"]["application/json"]
    assert shown["example"] == ANSWERS[call]
    check(document, shown["schema"], shown["example"])


def test_the_examples_of_bodies_are_what_the_document_says(document: Document) -> None:
    """Those that the models of requests carry, and those of single fields."""
    found = list(carried(document["components"]["schemas"], ()))
    for place, schema, example in found:
        check(document, schema, example, place)
    assert {"JobRequest", "TenantIn", "KeyIn", "SelectionIn"} <= {place[0] for place, _, _ in found}


def test_the_examples_of_parameters_are_used_and_are_what_the_document_says(document: Document) -> None:
    used: set[Any] = set()
    for method, path, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            if "example" in parameter:
                check(document, parameter["schema"], parameter["example"], (method, path, parameter["name"]))
                used.add(parameter["example"])
    assert used >= set(PARAMETERS.values())


def models_of(app: FastAPI) -> dict[str, Any]:
    """The model that each call answers with."""
    found: dict[str, Any] = {}
    for context in iter_route_contexts(app.routes):
        route = getattr(context, "original_route", context)
        if isinstance(route, APIRoute):
            found |= {f"{method} {context.path}": route.response_model for method in route.methods or ()}
    return found


def carried(schema: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Document, Any]]:
    """(where, schema, example) of every example within."""
    if isinstance(schema, dict):
        if isinstance(schema.get("examples"), list):
            yield from ((place, schema, example) for example in schema["examples"])
        for name, inner in schema.items():
            if name != "examples":
                yield from carried(inner, (*place, name))


def check(document: Document, schema: Document, example: Any, place: object = "") -> None:
    whole = {**schema, "components": document["components"]}
    errors = [error.message for error in jsonschema_rs.Draft202012Validator(whole).iter_errors(example)]
    assert errors == [], (place, example)
