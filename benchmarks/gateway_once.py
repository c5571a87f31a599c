"""A thousand connections that send the same job under the same idempotency key, at once."""

from __future__ import annotations

import asyncio
import io
import time
from collections import Counter

import httpx
import numpy as np

from benchmarks.gateway_setting import Setting
from benchmarks.harness import ClaimRow, row
from service.client import WinnowClient
from service.embedded.running import RunningStack


def rows(setting: Setting) -> list[ClaimRow]:
    posts = setting.scale.posts
    with setting.stack() as (stack, client):
        dataset = _dataset(client)
        began = time.perf_counter()
        answers = asyncio.run(_sent_at_once(stack, dataset, posts))
        seconds = time.perf_counter() - began
        jobs = [job.id for job in client.jobs(type="sanitise")]
        for job in jobs:
            client.cancel(job)
    told = {answer.json().get("id") for answer in answers}
    others = posts - Counter(answer.status_code for answer in answers)[202]
    return [
        row("gateway/once/jobs", "1", len(jobs), told == set(jobs) and len(jobs) == 1, n=posts),
        row("gateway/once/answers-other-than-202", "0", others, others == 0, n=posts),
        row("gateway/once/seconds", "measured", seconds, True, n=posts, unit="s"),
    ]


def _dataset(client: WinnowClient) -> str:
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    np.savez(buffer, images=rng.integers(0, 256, (400, 16, 16), dtype=np.uint8), labels=np.arange(400) % 2)
    buffer.seek(0)
    job = client.wait(client.upload_dataset("noise", buffer).id)
    return str((job.result or {})["dataset"])


async def _sent_at_once(stack: RunningStack, dataset: str, posts: int) -> list[httpx.Response]:
    headers = {"Authorization": f"Bearer {stack.key}", "Idempotency-Key": "one-job"}
    body = {"type": "sanitise", "dataset": dataset, "reference": dataset, "params": {"false_quarantine_rate": 0.05}}
    limits = httpx.Limits(max_connections=posts)
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, limits=limits, timeout=300) as client:
        return await asyncio.gather(*(client.post("/v1/jobs", json=body) for _ in range(posts)))
