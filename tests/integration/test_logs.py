"""One job followed by its ids through the logs of the gateway that took it and the worker that did it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from service.client import WinnowClient
from service.embedded.running import RunningStack
from tests.integration.conftest import Digits, finished

REQUEST = "followed-through-the-logs"
SOON_S = 5.0


def told(stack: RunningStack, part: str, holds: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The lines of a part's log that are of interest; other programs' words are no JSON."""
    lines = (stack.home / "logs" / f"{part}.log").read_text(errors="replace").splitlines()
    return [line for line in (json.loads(each) for each in lines if each.startswith("{")) if holds(line)]


def events(stack: RunningStack, part: str, job_id: str) -> list[tuple[str, str, int]]:
    """(event, request, attempt) of each line about the job."""
    lines = told(stack, part, lambda line: line.get("job_id") == job_id)
    assert all(line["part"] == part and line["timestamp"] and line["level"] == "info" for line in lines)
    return [(line["event"], line["request_id"], line["attempt"]) for line in lines]


def test_a_job_is_followed_by_its_ids(stack: RunningStack, client: WinnowClient, digits: Digits) -> None:
    answer = httpx.post(
        f"{stack.url}/v1/datasets/logged/versions",
        content=digits.npz(slice(0, 40)).read(),
        headers={"Authorization": f"Bearer {stack.key}", "X-Request-Id": REQUEST},
    )
    assert answer.headers["X-Request-Id"] == REQUEST
    job = finished(client, client.job(answer.json()["id"]))
    assert events(stack, "gateway", job.id) == [("job accepted", REQUEST, 0)]
    deadline = time.monotonic() + SOON_S
    while len(seen := events(stack, "worker", job.id)) < 2:  # the line that says that it ended follows the end
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)
    assert seen == [("job claimed", REQUEST, 1), ("job ended", REQUEST, 1)]
    (request,) = told(stack, "gateway", lambda line: line["event"] == "request" and line.get("request_id") == REQUEST)
    assert (request["method"], request["path"], request["status"]) == ("POST", "/v1/datasets/logged/versions", 202)
