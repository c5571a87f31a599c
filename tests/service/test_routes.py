"""What HTTP asks of every route: HEAD, OPTIONS, 405 with Allow, 304, 406, 415."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from service.api.negotiation import preferred
from service.api.routes import Route
from service.app import create_app
from service.auth import ensure_admin_key
from service.db import Database
from service.errors import NotAcceptable
from service.settings import Settings
from tests.service.conftest import MakeDataset
from tests.service.live import serving


@pytest.fixture
def app(settings: Settings, database: Database) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def client(app: FastAPI, settings: Settings) -> Iterator[httpx.Client]:
    with serving(app, key=ensure_admin_key(settings)) as opened:
        yield opened


def test_every_router_is_made_of_our_routes(app: FastAPI) -> None:
    routes = [context.original_route for context in iter_route_contexts(app.routes)]
    other = [route.path for route in routes if isinstance(route, APIRoute) and not isinstance(route, Route)]
    assert other == [], "make the router with route_class=Route"
    assert sum(isinstance(route, Route) for route in routes) > 25


def test_head_is_the_head_of_get(client: httpx.Client, make_dataset: MakeDataset) -> None:
    make_dataset("signs", {"a": 2, "b": 2})
    for path in ("/v1/jobs", "/v1/datasets/signs@1", "/v1/datasets/signs@1/export", "/v1/jobs/none", "/healthz"):
        head, got = client.head(path), client.get(path)
        assert head.content == b"" and head.status_code == got.status_code, path
        assert head.headers["content-type"] == got.headers["content-type"]
        assert head.headers.get("content-length") == got.headers.get("content-length")


def test_head_of_a_stream_does_not_wait_for_its_end(
    client: httpx.Client, make_dataset: MakeDataset, database: Database
) -> None:
    make_dataset("signs", {"a": 2})
    job = client.post("/v1/datasets/signs/versions", content=b"PK\x03\x04").json()
    answer = client.head(f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}, timeout=5)
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_405_and_options_name_all_methods_of_a_path(client: httpx.Client) -> None:
    refused = client.request("TRACE", "/v1/jobs/x/verdicts/0")
    assert (refused.status_code, refused.json()["code"]) == (405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, HEAD, PUT, DELETE, OPTIONS"
    asked = client.options("/v1/jobs")
    assert (asked.status_code, asked.headers["allow"]) == (204, "GET, HEAD, POST, OPTIONS")
    assert client.options("/nowhere").status_code == 404


def test_what_has_not_changed_is_not_sent_again(client: httpx.Client, make_dataset: MakeDataset) -> None:
    make_dataset("signs", {"a": 2, "b": 2})
    for path in ("/v1/datasets", "/v1/datasets/signs", "/v1/datasets/signs@1", "/v1/datasets/signs@1/samples"):
        tag = client.get(path).headers["etag"]
        assert client.get(path).headers["etag"] == tag
        again = client.get(path, headers={"If-None-Match": f"W/{tag}"})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert client.get(path, headers={"If-None-Match": '"x"'}).status_code == 200
        assert client.get(path, headers={"If-None-Match": "*"}).status_code == 304
    tag = client.get("/v1/datasets").headers["etag"]
    make_dataset("signs", {"a": 3, "b": 2})
    assert client.get("/v1/datasets", headers={"If-None-Match": tag}).status_code == 200


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_to_be_json_says_so(client: httpx.Client, media: str) -> None:
    answer = client.post("/v1/jobs", content=b'{"type": "review"}', headers={"Content-Type": media})
    assert (answer.status_code, answer.json()["code"]) == (415, "not_json")
    right = client.post("/v1/jobs", content=b'{"type": "review"}', headers={"Content-Type": "application/json"})
    assert right.json()["code"] == "missing_input"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("*/*", "a/json"),
        ("", "a/json"),
        ("b/csv", "b/csv"),
        ("b/csv;q=0.5, a/json;q=0.4", "b/csv"),
        ("b/*, a/json;q=0.9", "b/csv"),
        ("*/*;q=0.1, b/csv;q=0", "a/json"),
        ("text/html, */*;q=0.8", "a/json"),
    ],
)
def test_the_caller_gets_what_it_likes_best(accept: str, wanted: str) -> None:
    assert preferred(accept, ("a/json", "b/csv")) == wanted


@pytest.mark.parametrize("accept", ["c/d", "a/json;q=0", "a/*;q=x"])
def test_what_nobody_takes_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        preferred(accept, ("a/json", "b/csv"))
