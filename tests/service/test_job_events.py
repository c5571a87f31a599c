"""Jobs followed over HTTP: streams that tell all once, end by themselves, and cost one look for all who listen."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import orjson
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.auth import ensure_admin_key
from service.db import Database, now
from service.jobs import repository
from service.jobs.create import add_job
from service.jobs.repository import Claim, claim, finish, renew
from service.jobs.state import JobState
from service.settings import Settings
from service.tables import Job
from tests.service.live import serving

Event = tuple[str, int | None, dict[str, object]]
SSE = {"Accept": "text/event-stream"}
HALF = {"done": 1, "total": 2, "unit": "shards", "phase": "score", "fraction": 0.5}


@pytest.fixture
def app(settings: Settings, database: Database) -> FastAPI:
    return create_app(settings.model_copy(update={"stream_heartbeat_seconds": 0.05, "most_listeners": 60}))


@pytest.fixture
def client(app: FastAPI, settings: Settings) -> Iterator[httpx.Client]:
    with serving(app, key=ensure_admin_key(settings)) as opened:
        yield opened


@pytest.fixture
def job_id(database: Database) -> str:
    with database.transaction() as session:
        return add_job(session, "ingest", inputs={}, params={}, max_attempts=3).id


def claimed(database: Database, job_id: str) -> Claim:
    taken = claim(database, job_id, worker="w", lease_seconds=60)
    assert taken is not None
    return taken


def succeed(database: Database, job_id: str) -> None:
    taken = claimed(database, job_id)
    with database.transaction() as session:
        finish(session, taken, JobState.SUCCEEDED, "succeeded", result={"dataset": "signs@1"})


def parsed(lines: Iterator[str]) -> Iterator[Event]:
    """As a browser reads them (WHATWG HTML, section 9.2.6)."""
    kind, number, data = "message", None, ""
    for line in lines:
        if line == "":
            if data:
                yield kind, number, orjson.loads(data)
            kind, number, data = "message", None, ""
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "id":
            number = int(value)
        elif name == "data":
            data += value


@contextmanager
def following(client: httpx.Client, job_id: str, **headers: str) -> Iterator[httpx.Response]:
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers={**SSE, **headers}, timeout=10) as answer:
        yield answer


def states(events: list[Event]) -> list[str]:
    return [str(told["state"]) for kind, _, told in events if kind == "state"]


def test_a_stream_tells_all_of_a_job_as_it_happens_and_ends_with_it(
    client: httpx.Client, database: Database, job_id: str
) -> None:
    with following(client, job_id) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        events = parsed(answer.iter_lines())
        seen = [next(events), next(events)]
        taken = claimed(database, job_id)
        while seen[-1][2].get("state") != "running":
            seen.append(next(events))
        renew(database, taken, lease_seconds=60, progress=HALF)
        while seen[-1][0] != "progress" or seen[-1][2]["done"] != 1:
            seen.append(next(events))
        with database.transaction() as session:
            finish(session, taken, JobState.SUCCEEDED, "succeeded", result={})
        seen += events  # ends by itself
    assert states(seen) == ["queued", "running", "succeeded"]
    numbers = [number for kind, number, _ in seen if kind == "state"]
    assert numbers == sorted({int(told["id"]) for kind, _, told in seen if kind == "state"})  # type: ignore[call-overload]
    assert all(number is None for kind, number, _ in seen if kind == "progress")
    assert seen[-1][2]["state"] == "succeeded"


def test_who_comes_back_gets_what_came_after_and_is_told_when_nothing_will(
    client: httpx.Client, database: Database, job_id: str
) -> None:
    with following(client, job_id) as answer:
        first = next(event for event in parsed(answer.iter_lines()) if event[0] == "state")
    succeed(database, job_id)
    with following(client, job_id, **{"Last-Event-ID": str(first[1])}) as answer:
        rest = list(parsed(answer.iter_lines()))
    assert states(rest) == ["running", "succeeded"]
    with following(client, job_id, **{"Last-Event-ID": str(rest[-1][1])}) as answer:
        assert answer.status_code == 204  # a browser's EventSource stops at that
    with following(client, job_id) as answer:
        assert states(list(parsed(answer.iter_lines()))) == ["queued", "running", "succeeded"]


def test_many_listeners_cost_one_look_a_round(
    app: FastAPI, client: httpx.Client, database: Database, job_id: str
) -> None:
    arrived = threading.Barrier(31)

    def follow() -> list[str]:
        with following(client, job_id) as answer:
            events = parsed(answer.iter_lines())
            seen = [next(event for event in events if event[0] == "state")]
            arrived.wait(20)
            return states([*seen, *events])

    with ThreadPoolExecutor(30) as pool:
        told = [pool.submit(follow) for _ in range(30)]
        arrived.wait(20)
        assert app.state.feeds.listeners == 30
        looks, began = app.state.feeds.looks, time.monotonic()
        time.sleep(1.2)
        rounds = (time.monotonic() - began) / 0.5
        assert 1 <= app.state.feeds.looks - looks <= rounds + 1
        succeed(database, job_id)
        assert {tuple(each.result()) for each in told} == {("queued", "running", "succeeded")}
    until = time.monotonic() + 5
    while app.state.feeds.listeners and time.monotonic() < until:
        time.sleep(0.01)
    assert app.state.feeds.listeners == 0


def test_a_silent_stream_shows_that_it_lives(client: httpx.Client, job_id: str) -> None:
    with following(client, job_id) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "retry: 2000"
        assert next(line for line in lines if line.startswith(":")) == ": still here"


def test_streams_do_not_hold_up_a_shutdown(settings: Settings, database: Database, job_id: str) -> None:
    ended = threading.Event()

    def follow(url: httpx.URL, headers: httpx.Headers, heard: threading.Event) -> None:
        with httpx.Client(base_url=url, headers=headers) as own, following(own, job_id) as answer:
            for _ in answer.iter_lines():
                heard.set()
        ended.set()

    with serving(create_app(settings), key=ensure_admin_key(settings)) as client:
        heard = threading.Event()
        thread = threading.Thread(target=follow, args=(client.base_url, client.headers, heard))
        thread.start()
        assert heard.wait(10)
        began = time.monotonic()
    assert time.monotonic() - began < 4
    thread.join(5)
    assert ended.is_set()


def test_listeners_are_bounded(settings: Settings, database: Database, job_id: str) -> None:
    one = settings.model_copy(update={"most_listeners": 1})
    with serving(create_app(one), key=ensure_admin_key(settings)) as client, following(client, job_id) as first:
        lines = first.iter_lines()
        assert next(lines) == "retry: 2000"
        answer = client.get(f"/v1/jobs/{job_id}/events", headers=SSE)
        assert (answer.status_code, answer.json()["code"]) == (503, "too_many_listeners")
        assert answer.headers["retry-after"]


def test_json_gives_pages_of_what_happened(client: httpx.Client, database: Database, job_id: str) -> None:
    succeed(database, job_id)
    path, headers = f"/v1/jobs/{job_id}/events", {"Accept": "application/json"}
    page = client.get(path, headers=headers, params={"limit": 2}).json()
    rest = client.get(path, headers=headers, params={"cursor": page["next_cursor"]}).json()
    assert [event["state"] for event in page["items"] + rest["items"]] == ["queued", "running", "succeeded"]
    assert rest["next_cursor"] is None
    assert client.get("/v1/jobs/none/events", headers=headers).json()["code"] == "job_not_found"
    refused = client.get(path, headers={"Accept": "image/png"})
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
    assert refused.json()["offered"] == ["text/event-stream", "application/json"]


def test_an_etag_holds_until_the_job_changes(client: httpx.Client, database: Database, job_id: str) -> None:
    taken = claimed(database, job_id)
    renew(database, taken, lease_seconds=60, progress=HALF)
    path = f"/v1/jobs/{job_id}"
    first = client.get(path)
    again = client.get(path, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"] and again.headers["retry-after"] == "1"
    assert first.json()["eta_seconds"] is not None  # which grew in between, and makes no difference
    renew(database, taken, lease_seconds=60, progress={**HALF, "done": 2})
    assert client.get(path, headers={"If-None-Match": first.headers["etag"]}).json()["progress"]["done"] == 2


def test_lists_are_filtered(client: httpx.Client, database: Database) -> None:
    before = now()
    with database.transaction() as session:
        made = {
            "read": add_job(session, "sanitise", inputs={"dataset": "signs@1"}, params={}, max_attempts=3).id,
            "newer": add_job(session, "sanitise", inputs={"dataset": "signs@2"}, params={}, max_attempts=3).id,
            "other": add_job(session, "ingest", inputs={"name": "signs_x"}, params={}, max_attempts=3).id,
            "asked": add_job(session, "evaluate", inputs={"model": "m:best"}, params={}, max_attempts=3).id,
        }
        result = add_job(session, "ingest", inputs={"name": "signs"}, params={}, max_attempts=3)
        result.result = {"dataset": "signs@1"}
        made["made"] = result.id
    between = now()
    with database.transaction() as session:
        made["late"] = add_job(session, "distill", inputs={"model": "m"}, params={}, max_attempts=3).id
        repository.find(session, made["late"]).state = JobState.FAILED

    def listed(**query: str) -> set[str]:
        ids = {job["id"] for job in client.get("/v1/jobs", params=query).json()["items"]}
        return {name for name, job_id in made.items() if job_id in ids}

    assert listed(dataset="signs@1") == {"read", "made"}
    assert listed(dataset="signs") == {"read", "newer", "made"}
    assert listed(dataset="sign%") == set()
    assert listed(model="m") == {"asked", "late"}
    assert listed(model="m:best") == {"asked"}
    assert listed(created_after=between.isoformat()) == {"late"}
    assert listed(created_after=before.isoformat(), created_before=between.isoformat()) == made.keys() - {"late"}
    assert listed(type="distill", state="failed") == {"late"}
    assert client.get("/v1/jobs", params={"created_after": "2026-01-01T00:00:00"}).status_code == 422  # no zone


def test_an_idempotency_key_is_looked_up_before_anything_is_written(
    client: httpx.Client, database: Database, job_id: str
) -> None:
    with database.transaction() as session:
        session.get_one(Job, job_id).idempotency_key = "k"
    answer = client.post("/v1/jobs", json={"type": "review", "job": job_id}, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
