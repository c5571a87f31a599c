"""A thousand connections that all send the same job under the same idempotency key, at once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import httpx
import pytest

from service.client import WinnowClient
from service.embedded.running import RunningStack

pytestmark = pytest.mark.hostile

CONNECTIONS = 1000


async def sent_at_once(stack: RunningStack, dataset: str) -> tuple[list[httpx.Response], int]:
    """The answers, and over how many connections they came."""
    ports: set[int] = set()

    async def note(answer: httpx.Response) -> None:
        ports.add(answer.extensions["network_stream"].get_extra_info("client_addr")[1])

    headers = {"Authorization": f"Bearer {stack.key}", "Idempotency-Key": "one-job"}
    body = {"type": "sanitise", "dataset": dataset, "reference": dataset, "params": {"false_quarantine_rate": 0.05}}
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    hooks = {"response": [note]}
    async with httpx.AsyncClient(
        base_url=stack.url, headers=headers, limits=limits, timeout=200, event_hooks=hooks
    ) as client:
        answers = await asyncio.gather(*(client.post("/v1/jobs", json=body) for _ in range(CONNECTIONS)))
    return answers, len(ports)


def test_a_thousand_posts_with_one_key_make_one_job(
    stack: RunningStack, client: WinnowClient, sets: dict[str, str]
) -> None:
    earlier = {job.id for job in client.jobs(type="sanitise")}
    began = time.monotonic()
    answers, connections = asyncio.run(sent_at_once(stack, sets["trusted"]))
    told = f"{len(answers)} POSTs over {connections} connections: {time.monotonic() - began:.1f} s"
    print(told, Counter(answer.status_code for answer in answers))
    assert connections > CONNECTIONS // 2
    assert {answer.status_code for answer in answers} == {202}, Counter(answer.text for answer in answers)
    ids = {answer.json()["id"] for answer in answers}
    assert len(ids) == 1
    assert {job.id for job in client.jobs(type="sanitise")} - earlier == ids
    client.cancel(ids.pop())
