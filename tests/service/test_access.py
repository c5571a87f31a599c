"""Every route of the application, tried with keys that must not open it; the list comes from the application itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from service import auth
from service.api.access import PUBLIC, Needs
from service.app import create_app
from service.audit import STACK
from service.auth import ensure_admin_key
from service.db import Database, now
from service.jobs.create import add_job
from service.scopes import Scope
from service.settings import Settings
from service.webhooks import repository as webhooks
from service.webhooks.outbox import TEST, add_delivery
from tests.service.conftest import MakeDataset
from tests.service.live import serving

PAGE = Path(__file__).parents[2] / "docs/access.md"
PROBLEM = {"type", "title", "status", "code", "detail", "instance"}
INFERENCE_ERROR = {"error", "code"}


def declared(dependant: Dependant) -> Iterator[Needs]:
    if isinstance(dependant.call, Needs):
        yield dependant.call
    for inner in dependant.dependencies:
        yield from declared(inner)


def routes_of(app: FastAPI) -> list[tuple[str, str, list[Needs]]]:
    """(method, path, what it declares) of everything that answers."""
    found = []
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route, "dependant", None)
        bare = getattr(getattr(route, "original_route", route), "needs", ())
        needs = list(bare) if dependant is None else list(declared(dependant))
        found += [(method, route.path or "", needs) for method in sorted((route.methods or set()) - {"HEAD"})]
    return found


@pytest.fixture
def app(settings: Settings, database: Database) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def client(app: FastAPI, settings: Settings) -> Iterator[httpx.Client]:
    with serving(app, key=ensure_admin_key(settings)) as opened:
        opened.headers["Accept"] = "application/json"  # of what could be followed for ever, a page
        yield opened


@pytest.fixture
def places(database: Database, make_dataset: MakeDataset) -> dict[str, str]:
    """What to put into a route's path: things that are there, so that an answer would be data."""
    with database.transaction() as session:
        job = add_job(session, "ingest", inputs={}, params={}, max_attempts=3)
        key = auth.create(session, "target", [Scope.UPLOAD], expires_at=None, actor=STACK).key
        webhook = webhooks.create(session, "https://hooks.example/", [], "")
        delivery = add_delivery(session, webhook, TEST, {})
    rest = {
        "name": "signs",
        "index": "0",
        "alias": "champion",
        "upload_id": "x",
        "tenant": "default",
        "model": "signs",
        "version": "1",
        "segment": "0",
    }
    ids = {"job_id": job.id, "key_id": key.id, "webhook_id": webhook.id, "delivery_id": delivery.id}
    return {**rest, **ids, "reference": make_dataset("signs", {"a": 2, "b": 2})}


def filled(path: str, places: dict[str, str]) -> str:
    return re.sub(r"{(\w+)}", lambda match: places[match[1]], path)  # KeyError: say above what to put there


def told_of(path: str) -> set[str]:
    return INFERENCE_ERROR if path.startswith("/v2") else PROBLEM


def make(database: Database, *scopes: Scope) -> auth.Issued:
    with database.transaction() as session:
        return auth.create(session, "tester", scopes, expires_at=None, actor=STACK)


def wrong_keys(database: Database) -> dict[str | None, str]:
    """Authorization headers that open nothing, each with its code."""
    expired, revoked, rotated = (make(database, Scope.ADMIN) for _ in range(3))
    with database.transaction() as session:
        auth.find(session, expired.key.id).expires_at = now() - timedelta(seconds=1)
        auth.revoke(session, auth.find(session, revoked.key.id), actor=STACK)
        auth.rotate(session, auth.find(session, rotated.key.id), grace=timedelta(0), actor=STACK)
    return {
        None: "unauthorized",
        "Bearer": "unauthorized",
        "Bearer wk_" + "A" * 43: "unauthorized",
        f"Basic {expired.secret}": "unauthorized",
        f"Bearer {expired.secret[:-1]}": "unauthorized",
        f"Bearer {expired.key.digest}": "unauthorized",
        f"Bearer {expired.secret}": "key_expired",
        f"Bearer {revoked.secret}": "key_revoked",
        f"Bearer {rotated.secret}": "key_expired",
    }


def test_every_route_declares_what_it_needs(app: FastAPI) -> None:
    wrong = [
        f"{method} {path}"
        for method, path, needs in routes_of(app)
        if len(needs) != (0 if path in PUBLIC else 1) or any(not need.scopes for need in needs)
    ]
    assert wrong == [], "declare the scope with one of the May… of service.api.access"
    assert len(routes_of(app)) > 25


def test_no_route_opens_for_no_key_or_one_that_does_not_count(
    app: FastAPI, client: httpx.Client, database: Database, places: dict[str, str]
) -> None:
    client.headers.pop("authorization")
    for header, code in wrong_keys(database).items():
        headers = {} if header is None else {"Authorization": header}
        for method, path, _needs in routes_of(app):
            if path not in PUBLIC:
                answer = client.request(method, filled(path, places), headers=headers, content=b"{not json")
                assert (answer.status_code, answer.json()["code"]) == (401, code), (method, path, header)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert set(answer.json()) == told_of(path)


def test_no_route_opens_for_every_scope_but_its_own(
    app: FastAPI, client: httpx.Client, database: Database, places: dict[str, str]
) -> None:
    tried = 0
    for method, path, needs in routes_of(app):
        if path not in PUBLIC:
            key = make(database, *(set(Scope) - needs[0].scopes - {Scope.ADMIN}))
            url, headers = filled(path, places), {"Authorization": f"Bearer {key.secret}"}
            answer = client.request(method, url, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope"), (method, path, answer.text)
            assert set(answer.json()) == {*told_of(path), "scopes"}
            assert set(answer.json()["scopes"]) == needs[0].scopes | {Scope.ADMIN}
            tried += 1
    assert tried > 25


def test_every_route_opens_for_each_of_its_scopes(
    app: FastAPI, client: httpx.Client, database: Database, places: dict[str, str]
) -> None:
    for method, path, needs in routes_of(app):
        for scope in {Scope.ADMIN, *needs[0].scopes} if needs else set():
            headers = {"Authorization": f"Bearer {make(database, scope).secret}"}
            answer = client.request(method, filled(path, places), headers=headers)
            assert answer.status_code not in (401, 403) and answer.status_code < 504, (method, path, answer.text)


def test_a_reviewer_submits_reviews_and_no_other_job(client: httpx.Client, database: Database) -> None:
    headers = {"Authorization": f"Bearer {make(database, Scope.REVIEW).secret}"}
    codes = {
        kind: client.post("/v1/jobs", json={"type": kind}, headers=headers).json()["code"]
        for kind in ("sanitise", "distill", "evaluate", "harden", "review")
    }
    assert codes.pop("review") == "missing_input"
    assert set(codes.values()) == {"missing_scope"}


def test_an_unknown_path_is_not_told_to_strangers(client: httpx.Client) -> None:
    assert client.get("/v1/nothing", headers={"Authorization": ""}).status_code == 401
    assert client.get("/healthz/../v1/jobs", headers={"Authorization": ""}).status_code == 401
    assert client.get("/v1/nothing").json()["code"] == "no_such_route"


def test_the_page_has_the_scopes_of_every_route(app: FastAPI) -> None:
    text = PAGE.read_text()
    assert [scope for scope in Scope if f"| `{scope}` |" not in text] == []
    rows = re.findall(r"^\| `([A-Z]+) (/[^`]*)` \| ([^|]+) \|", text, re.MULTILINE)
    told = {(method, path): set(re.findall(r"`(\w+)`", scopes)) for method, path, scopes in rows}
    true = {(method, path): set(needs[0].scopes) for method, path, needs in routes_of(app) if needs}
    assert told == true
    assert [path for path in PUBLIC if f"`{path}`" not in text] == []


def test_the_docs_say_that_calls_take_a_key(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    open_calls = [path for path, calls in paths.items() for call in calls.values() if not call.get("security")]
    assert set(open_calls) == {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}


def test_no_secret_is_in_any_log(settings: Settings, database: Database) -> None:
    """The gateway as it runs, at its most talkative, through calls that succeed, are refused and go wrong."""
    admin = ensure_admin_key(settings)
    secrets = [admin, "wk_" + "B" * 43]
    with gateway(settings) as (client, log):
        client.headers["X-Forwarded-For"] = "203.0.113.9"  # we come from a proxy of this machine
        for key in secrets:
            client.headers["Authorization"] = f"Bearer {key}"
            for path in ("/v1/jobs", "/v1/jobs/none", "/v1/keys", "/nowhere"):
                client.get(path)
        client.headers["Authorization"] = f"Bearer {admin}"
        made = client.post("/v1/keys", json={"name": "k", "scopes": ["upload"]}).json()
        rotated = client.post(f"/v1/keys/{made['id']}/rotate").json()
        client.post("/v1/keys", json={"name": "k", "scopes": [admin], "secret": admin})
        with database.transaction() as session:  # the database away: a fault, told with its traceback
            session.connection().exec_driver_sql("ALTER TABLE api_keys RENAME TO gone")
        assert client.get("/v1/keys").status_code == 503
    secrets += [made["secret"], rotated["secret"]]
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert sum(line.get("event") == "request" for line in lines) >= 12
    assert {line["client"] for line in lines if line.get("event") == "request"} == {"203.0.113.9"}
    assert any("exception" in line for line in lines)
    for secret in secrets:
        assert secret not in text and secret[3:] not in text and auth.digest_of(secret) not in text


class gateway:  # noqa: N801 - a context manager
    """`python -m service` on a free port, with its log in a file."""

    def __init__(self, settings: Settings) -> None:
        self.log = settings.home / "gateway.log"
        self.settings = settings

    def __enter__(self) -> tuple[httpx.Client, Path]:
        wanted: dict[str, Any] = {"HOME": self.settings.home, "PORT": 0, "LOG_LEVEL": "DEBUG"}
        env = {**os.environ, **{f"WINNOW_{name}": str(value) for name, value in wanted.items()}}
        with self.log.open("w") as file:
            self.process = subprocess.Popen([sys.executable, "-m", "service"], env=env, stderr=file)
        deadline = time.monotonic() + 30
        while not (found := re.search(r"running on (http://[\d.:]+)", self.log.read_text())):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        self.client = httpx.Client(base_url=found[1])
        return self.client, self.log

    def __exit__(self, *_error: object) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)


def test_keys_are_listed_in_the_order_of_their_making(client: httpx.Client, database: Database) -> None:
    for _ in range(5):
        make(database, Scope.UPLOAD)
        time.sleep(0.002)
    first = client.get("/v1/keys", params={"limit": 3}).json()
    rest = client.get("/v1/keys", params={"cursor": first["next_cursor"]}).json()
    times = [key["created_at"] for key in first["items"] + rest["items"]]
    assert len(times) == 6 and all(before <= after for before, after in pairwise(times))
