"""Follows a job: by asking now and then, or by its events as they happen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import orjson

from service.client.answers import parse
from service.client.errors import CannotReach, ClientError, NotWinnow, ProblemError, WaitTimedOut
from service.client.records import FINISHED, Job, JobEvent

if TYPE_CHECKING:
    from service.client.session import WinnowClient

POLL_S = 0.5
OUTAGE_TOLERATED_S = 30.0  # a gateway that is being restarted is back long before


def wait(
    client: WinnowClient, job_id: str, *, on_progress: Callable[[Job], None] | None, timeout_s: float | None
) -> Job:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    last_heard = time.monotonic()
    while True:
        pause_s = POLL_S
        try:
            answer = client._send("GET", f"/v1/jobs/{job_id}")
        except ClientError as error:
            if not _is_outage(error) or time.monotonic() - last_heard > OUTAGE_TOLERATED_S:
                raise
        else:
            last_heard = time.monotonic()
            job = parse(answer, Job)
            if on_progress is not None:
                on_progress(job)
            if job.finished:
                return job
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimedOut(job)
            pause_s = _retry_after_s(answer)
        time.sleep(pause_s if deadline is None else max(0.0, min(pause_s, deadline - time.monotonic())))


def events(client: WinnowClient, job_id: str, *, after: int) -> Iterator[JobEvent]:
    """Comes back where a stream ended early, and goes on where that was."""
    last_heard = time.monotonic()
    while True:
        try:
            for event in _streamed(client, job_id, after):
                last_heard = time.monotonic()
                after = event.id if event.id is not None else after
                yield event
                if event.state in FINISHED and client.job(job_id).finished:
                    return
            if client.job(job_id).finished:
                return
        except ClientError as error:
            if not _is_outage(error) or time.monotonic() - last_heard > OUTAGE_TOLERATED_S:
                raise
        time.sleep(POLL_S)


def _streamed(client: WinnowClient, job_id: str, after: int) -> Iterator[JobEvent]:
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(after)} if after else {})}
    with client._streamed(f"/v1/jobs/{job_id}/events", {}, headers) as answer:
        for kind, told in _messages(answer.iter_lines()):
            yield JobEvent.model_validate({"kind": kind, **({"progress": told} if kind == "progress" else told)})


def _messages(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, orjson.loads(value)


def _retry_after_s(answer: httpx.Response) -> float:
    try:
        return max(float(answer.headers["Retry-After"]), 0.05)
    except (KeyError, ValueError):
        return POLL_S


def _is_outage(error: ClientError) -> bool:
    """Whether the service may be back in a moment."""
    if isinstance(error, ProblemError | NotWinnow):
        return error.status in (502, 503, 504)
    return isinstance(error, CannotReach)
