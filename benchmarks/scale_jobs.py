"""Many small jobs: how soon each starts on an idle stack, and whether anything grows with their number."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from io import BytesIO
from itertools import chain

import numpy as np

from benchmarks.harness import ClaimRow, row
from benchmarks.memory import resident_mib
from benchmarks.scale_setting import Setting, drawn, worker_pids
from service.client import WinnowClient
from service.db import Database
from service.embedded.running import RunningStack
from service.embedded.state import read_state
from service.jobs.queue import Doorbell, celery_app
from service.settings import Settings

SOONER_THAN_MS, SLOPE_MIB = 50.0, 1.0
ONE_BY_ONE = 1000
"""Jobs that are sent after the one before has ended; the others are sent by so many threads at once:"""
SENDERS = 8
LOOKS = 40
LOOK_EVERY_S = 0.01
LOOK_LATER_S = 0.1
"""Where the start is not timed: the gateway is to be busy with jobs, not with questions about them."""
WARM_SHARE = 0.5
"""Of the jobs, after which memory is looked at: caches fill first, such as that of each connection to the database."""


def rows(setting: Setting) -> list[ClaimRow]:
    keys: list[int] = []
    memory: dict[str, list[tuple[int, float]]] = {name: [] for name in ("worker", "worker-child", "gateway")}
    with setting.stack() as (stack, client), ThreadPoolExecutor(SENDERS) as senders:
        pids, doorbell, every = _pids(stack), _doorbell(stack), max(1, setting.jobs // LOOKS)
        alone = min(ONE_BY_ONE, setting.jobs)
        began = time.monotonic()
        waits = [_one(client, number, LOOK_EVERY_S) for number in range(alone)]
        each_s = (time.monotonic() - began) / alone
        many = senders.map(lambda number: _one(client, number, LOOK_LATER_S), range(alone, setting.jobs))
        for number, _ in enumerate(chain(waits, many)):
            if number >= alone and number % every == 0:
                for name, pid in pids.items():
                    memory[name].append((number, resident_mib(pid)))
                keys.append(int(doorbell.ask("dbsize")))
    median, late = (1000 * float(np.quantile(waits, q)) for q in (0.5, 0.99))
    soon, n, first, last = median < SOONER_THAN_MS, setting.jobs, max(keys[: LOOKS // 4]), max(keys[-LOOKS // 4 :])
    return [
        row("scale/jobs/post-to-start", f"< {SOONER_THAN_MS:g} ms", median, soon, n=alone, unit="ms"),
        row("scale/jobs/post-to-start-p99", "measured", late, True, n=alone, unit="ms"),
        row("scale/jobs/post-to-end", "measured", 1000 * each_s, True, n=alone, unit="ms"),
        row("scale/jobs/broker-keys", f"<= {first}, as at first", last, last <= first, n=n, unit="keys"),
        *(_growth(name, _slope(seen, n), n) for name, seen in memory.items()),
    ]


def _growth(name: str, slope: float, jobs: int) -> ClaimRow:
    claim, holds = f"scale/jobs/memory-of-{name}", slope < SLOPE_MIB
    return row(claim, f"< {SLOPE_MIB:g} MiB a 10,000 jobs", slope, holds, n=jobs, unit="MiB a 10,000 jobs")


def _one(client: WinnowClient, number: int, look_every_s: float) -> float:
    """Seconds from the POST to the worker's claim of an ingest of two images that nobody has sent before."""
    images, _ = drawn(2, number)
    buffer = BytesIO()
    np.savez(buffer, images=images[:, :8, :8], labels=np.arange(2))
    buffer.seek(0)
    posted = time.time()
    job = client.upload_dataset(f"small-{number % SENDERS}", buffer)
    while not (job := client.job(job.id)).finished:
        time.sleep(look_every_s)
    if not job.succeeded:
        raise RuntimeError(f"job {job.id} ended as {job.state}: {job.error}")
    return datetime.fromisoformat(job.started_at or "").timestamp() - posted


def _pids(stack: RunningStack) -> dict[str, int]:
    state = read_state(stack.home)
    if state is None:
        raise RuntimeError(f"no stack runs in {stack.home}")
    parent, child = worker_pids(stack)
    return {"worker": parent, "worker-child": child, "gateway": state.parts["gateway"]}


def _doorbell(stack: RunningStack) -> Doorbell:
    url = f"redis+socket://{stack.home / 'broker' / 'broker.sock'}"
    settings = Settings(home=stack.home, redis_url=url).resolved()
    return Doorbell(celery_app(settings), Database.open(settings.database_url, pooled=False))


def _slope(seen: list[tuple[int, float]], jobs: int) -> float:
    """MiB a 10,000 jobs, of the line through what was seen once warm."""
    warm = np.array([each for each in seen if each[0] >= WARM_SHARE * jobs])
    return float(np.polyfit(warm[:, 0], warm[:, 1], 1)[0] * 10_000)
