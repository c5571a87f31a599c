"""API keys: made, used, expiring, rotated, revoked; over HTTP, through the client and on the command line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import structlog
from fastapi import FastAPI
from sqlalchemy import event
from typer.testing import CliRunner, Result

from service import auth
from service.app import create_app
from service.audit import STACK
from service.auth import admin_key_path, authenticate, ensure_admin_key
from service.cli import app as winnow
from service.client import ProblemError, WinnowClient
from service.db import Database, now
from service.errors import Conflict, Forbidden, Unauthorized
from service.scopes import Scope
from service.settings import Settings
from service.tables import ApiKey
from tests.service.live import serving


@pytest.fixture
def app(settings: Settings, database: Database) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def http(app: FastAPI, settings: Settings) -> Iterator[httpx.Client]:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is the command's
    with serving(app, key=ensure_admin_key(settings)) as opened:
        yield opened
    structlog.reset_defaults()


@pytest.fixture
def client(http: httpx.Client, settings: Settings) -> Iterator[WinnowClient]:
    with WinnowClient(str(http.base_url), ensure_admin_key(settings)) as opened:
        yield opened


class Clock:
    """The time as `service.auth` sees it, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = now()
        monkeypatch.setattr(auth, "now", lambda: self.time)

    def pass_seconds(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def make(database: Database, *scopes: Scope, expires_at: datetime | None = None) -> auth.Issued:
    with database.transaction() as session:
        return auth.create(session, "tester", scopes or (Scope.UPLOAD,), expires_at=expires_at, actor=STACK)


def rotate(database: Database, key_id: str, grace_seconds: float) -> str:
    with database.transaction() as session:
        grace = timedelta(seconds=grace_seconds)
        return auth.rotate(session, auth.find(session, key_id), grace=grace, actor=STACK).secret


def code_for(database: Database, secret: str) -> str | None:
    """None where the key counts."""
    try:
        authenticate(database, secret)
    except Unauthorized as error:
        return error.code
    return None


def test_a_made_key_opens_what_it_may_and_is_shown_once(client: WinnowClient, settings: Settings) -> None:
    made = client.keys.create("camera-7", ["upload"])
    assert re.fullmatch(r"wk_[\w-]{43}", made.secret) and made.secret.startswith(made.prefix)
    assert len(made.prefix) == 9
    with WinnowClient(client.url, made.secret) as camera:
        assert list(camera.jobs()) == []
        with pytest.raises(ProblemError) as refused:
            camera.submit("sanitise", dataset="signs@1")
    assert (refused.value.status, refused.value.code) == (403, "missing_scope")
    assert refused.value.extra["scopes"] == ["jobs", "review", "admin"]
    listed = {key.id: key for key in client.keys.list()}
    assert listed[made.id].scopes == ["upload"] and listed[made.id].last_used_at is not None
    assert made.secret not in json.dumps([key.model_dump() for key in listed.values()])
    kept = b"".join(path.read_bytes() for path in settings.home.glob("winnow.db*"))
    assert auth.digest_of(made.secret).encode() in kept and made.secret[9:].encode() not in kept


def test_the_answer_with_a_secret_is_not_to_be_stored(http: httpx.Client) -> None:
    made = http.post("/v1/keys", json={"name": "k", "scopes": ["predict", "predict"]})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    assert made.json()["scopes"] == ["predict"]
    rotated = http.post(f"/v1/keys/{made.json()['id']}/rotate")
    assert (rotated.status_code, rotated.headers["cache-control"]) == (200, "no-store")


def test_admin_implies_the_other_scopes_and_no_other_implies_any(database: Database) -> None:
    admin = make(database, Scope.ADMIN).key
    for scope in Scope:
        auth.check_scopes(admin, {scope})
        one = make(database, scope).key
        allowed = {other for other in Scope if auth.may(one, {other})}
        assert allowed == ({scope} if scope != Scope.ADMIN else set(Scope))
    with pytest.raises(Forbidden):
        auth.check_scopes(make(database, Scope.UPLOAD).key, set())


@pytest.mark.both_databases
def test_a_key_ends_when_it_expires(database: Database, clock: Clock) -> None:
    secret = make(database, expires_at=clock.time + timedelta(seconds=10)).secret
    clock.pass_seconds(9.9)
    assert code_for(database, secret) is None
    clock.pass_seconds(0.1)
    assert code_for(database, secret) == "key_expired"


@pytest.mark.both_databases
def test_after_a_rotation_both_texts_count_for_the_grace(database: Database, clock: Clock) -> None:
    made = make(database)
    second = rotate(database, made.key.id, 60)
    assert authenticate(database, second).id == authenticate(database, made.secret).id == made.key.id
    clock.pass_seconds(60)
    assert code_for(database, made.secret) == "key_expired"
    assert code_for(database, second) is None


def test_a_second_rotation_ends_the_first_text_at_once(database: Database) -> None:
    made = make(database)
    second = rotate(database, made.key.id, 3600)
    third = rotate(database, made.key.id, 3600)
    assert [code_for(database, text) for text in (made.secret, second, third)] == ["unauthorized", None, None]


@pytest.mark.both_databases
def test_a_grace_does_not_outlast_the_key(database: Database, clock: Clock) -> None:
    made = make(database, expires_at=clock.time + timedelta(seconds=10))
    second = rotate(database, made.key.id, 3600)
    clock.pass_seconds(10)
    assert code_for(database, made.secret) == code_for(database, second) == "key_expired"
    with pytest.raises(Conflict, match="expired"):
        rotate(database, made.key.id, 0)


@pytest.mark.both_databases
def test_revoking_ends_every_text_at_once_and_for_good(client: WinnowClient, database: Database) -> None:
    made = client.keys.create("k", ["upload"])
    second = client.keys.rotate(made.id, grace_seconds=3600).secret
    first_time = client.keys.revoke(made.id).revoked_at
    assert code_for(database, made.secret) == code_for(database, second) == "key_revoked"
    assert client.keys.revoke(made.id).revoked_at == first_time is not None
    with pytest.raises(ProblemError) as refused:
        client.keys.rotate(made.id)
    assert refused.value.code == "key_not_active"
    with pytest.raises(ProblemError) as refused:
        client.keys.revoke("none")
    assert refused.value.code == "key_not_found"


@pytest.mark.both_databases
def test_use_is_noted_at_most_once_a_minute(database: Database, clock: Clock) -> None:
    made = make(database)
    updates: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def _count(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
        updates.extend([statement] if statement.startswith("UPDATE api_keys") else [])

    seen = []
    for seconds in (0, 30, 29.9, 0.1, 1):
        clock.pass_seconds(seconds)
        authenticate(database, made.secret)
        with database.session() as session:
            key = session.get(ApiKey, made.key.id)
            assert key is not None and key.last_used_at is not None
            seen.append((key.last_used_at, len(updates)))
    start = seen[0][0]
    minute = start + timedelta(seconds=60)
    assert seen == [(start, 1), (start, 1), (start, 1), (minute, 2), (minute, 2)]


@pytest.mark.both_databases
def test_a_revoked_admin_key_is_replaced_at_the_next_start(settings: Settings, database: Database) -> None:
    first = ensure_admin_key(settings)
    with database.transaction() as session:
        auth.revoke(session, auth.find(session, authenticate(database, first).id), actor=STACK)
    second = ensure_admin_key(settings)
    assert second != first and admin_key_path(settings.home).read_text() == second
    assert admin_key_path(settings.home).stat().st_mode & 0o777 == 0o600
    assert code_for(database, first) == "key_revoked" and code_for(database, second) is None
    rotate(database, authenticate(database, second).id, 0)
    third = ensure_admin_key(settings)
    assert third not in (first, second) and code_for(database, third) is None


BAD_KEYS = [
    {"scopes": ["upload"]},
    {"name": "", "scopes": ["upload"]},
    {"name": "a\nb", "scopes": ["upload"]},
    {"name": "a\n", "scopes": ["upload"]},
    {"name": "a" * 65, "scopes": ["upload"]},
    {"name": "a", "scopes": []},
    {"name": "a", "scopes": ["all"]},
    {"name": "a", "scopes": ["upload"], "secret": "mine"},
    {"name": "a", "scopes": ["upload"], "expires_at": "2020-01-01T00:00:00Z"},
    {"name": "a", "scopes": ["upload"], "expires_at": "2030-01-01T00:00:00"},
    {"name": "a", "scopes": ["upload"], "expires_at": "9999-12-31T23:59:59-23:00"},
    {"name": "a", "scopes": ["upload"], "expires_at": "0001-01-01T00:00:00+23:00"},
]


def test_a_key_or_a_grace_that_cannot_be(http: httpx.Client) -> None:
    for body in BAD_KEYS:
        assert http.post("/v1/keys", json=body).status_code == 422, body
    assert len(http.get("/v1/keys").json()["items"]) == 1
    made = http.post("/v1/keys", json={"name": "k", "scopes": ["upload"]}).json()
    for grace in (-1, 31 * 86_400, "soon"):
        answer = http.post(f"/v1/keys/{made['id']}/rotate", json={"grace_seconds": grace})
        assert answer.status_code == 422, grace


def run(client: WinnowClient, settings: Settings, *arguments: str) -> Result:
    env = {"COLUMNS": "200", "WINNOW_URL": client.url, "WINNOW_KEY": None, "WINNOW_HOME": str(settings.home)}
    return CliRunner().invoke(winnow, ["keys", *arguments], env=env)


def test_the_command_line(client: WinnowClient, settings: Settings, database: Database) -> None:
    made = run(client, settings, "create", "ci", "-s", "jobs", "--scope", "predict", "--days", "30")
    secret = made.stdout.strip()
    key = authenticate(database, secret)
    assert made.exit_code == 0 and key.scopes == ["jobs", "predict"] and key.expires_at is not None
    assert abs(key.expires_at - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
    assert key.id in made.stderr and secret not in made.stderr

    listed = run(client, settings, "list").stdout
    assert key.id in listed and key.prefix in listed and "jobs, predict" in listed and secret not in listed
    rotated = run(client, settings, "rotate", key.id, "--grace-hours", "0", "--json")
    assert code_for(database, json.loads(rotated.stdout)["secret"]) is None
    assert code_for(database, secret) == "key_expired"

    assert "revoked" in run(client, settings, "revoke", key.id).stdout
    assert key.id not in run(client, settings, "list").stdout
    assert {each["id"] for each in json.loads(run(client, settings, "list", "--all", "--json").stdout)} >= {key.id}
    again = run(client, settings, "rotate", key.id)
    assert again.exit_code == 1 and "key_not_active" in again.stderr
    assert run(client, settings, "create", "x", "-s", "everything").exit_code == 2
    assert run(client, settings, "create", "x").exit_code == 2
