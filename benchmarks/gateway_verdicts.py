"""Pages of verdicts in the order of their p-values, out of a million rows, over HTTP; on each database there is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from benchmarks.gateway_setting import Setting
from benchmarks.harness import ClaimRow, row
from service.api.schemas import encode_cursor
from service.client import WinnowClient
from service.db import Database
from service.embedded.running import RunningStack
from service.jobs import artifacts
from service.jobs.create import add_job
from service.jobs.verdict_index import index_key
from service.jobs.verdicts import VerdictTable, paged_key
from service.storage import LocalStorage
from tests.parts import PostgresMissing, postgres_server

WANTED_MS = 100
CLASSES = 43
COLD_JOBS = 10
NAMES = ("residual_energy", "label_loss", "unchecked_loss", "label_agreement")
Query = Mapping[str, str]


def rows(setting: Setting) -> list[ClaimRow]:
    found = _on(setting, "sqlite", None)
    try:
        with postgres_server() as server:
            found += _on(setting, "postgresql", server.url(server.make_database()))
    except PostgresMissing as missing:
        print(f"only on SQLite: {missing}")
    return found


def _on(setting: Setting, name: str, database_url: str | None) -> list[ClaimRow]:
    environment = {"WINNOW_DATABASE_URL": database_url} if database_url else None
    with setting.stack(environment) as (stack, client), ExitStack() as opened:
        jobs = _jobs(stack, database_url, setting.scale.verdicts)
        http = opened.enter_context(httpx.Client(base_url=stack.url, headers={"Authorization": f"Bearer {stack.key}"}))
        http.get("/v1/jobs").raise_for_status()  # a gateway that has answered before, but nothing of these tables
        cold = [_asked(http, job, {"sort": "p_value"}) for job in jobs]
        found = [_claim(f"gateway/verdicts/{name}/never-asked-before", "max", max(cold), len(cold))]
        _check(client, jobs[0])
        for kind, queries in _kinds(setting.scale.verdicts).items():
            _asked(http, jobs[0], next(queries()))
            took = np.array([_asked(http, jobs[0], query) for query in islice(queries(), setting.scale.pages)])
            for measure, share in (("median", 0.5), ("p99", 0.99)):
                claim = f"gateway/verdicts/{name}/{kind}"
                found.append(_claim(claim, measure, float(np.quantile(took, share)), len(took)))
    return found


def _claim(claim: str, measure: str, took_ms: float, n: int) -> ClaimRow:
    return row(f"{claim}/{measure}", f"< {WANTED_MS} ms", took_ms, took_ms < WANTED_MS, n=n, unit="ms")


def _kinds(count: int) -> dict[str, Callable[[], Iterator[Query]]]:
    """Queries without end, of each kind of page."""

    def always(**query: str) -> Callable[[], Iterator[Query]]:
        return lambda: iter(lambda: {"sort": "p_value", **query}, None)

    def middle() -> Iterator[Query]:
        rng = np.random.default_rng(0)
        while True:
            yield {"sort": "p_value", "cursor": encode_cursor(int(rng.integers(count // 4, 3 * count // 4)))}

    def classes() -> Iterator[Query]:
        rng = np.random.default_rng(1)
        while True:
            yield {"sort": "p_value", "label": f"class {rng.integers(CLASSES)}"}

    return {
        "first-page": always(),
        "middle-page": middle,
        "of-a-verdict": always(verdict="quarantine"),
        "of-a-class": classes,
        "of-a-verdict-and-class": always(verdict="quarantine", label="class 7"),
    }


def _asked(http: httpx.Client, job: str, query: Query) -> float:
    """Milliseconds that a page took, with its last byte."""
    began = time.perf_counter()
    answer = http.get(f"/v1/jobs/{job}/verdicts", params=query)
    took_ms = 1e3 * (time.perf_counter() - began)
    if answer.status_code != 200 or len(answer.json()["items"]) != 100:
        raise RuntimeError(f"{query}: {answer.status_code} {answer.text[:300]}")
    return took_ms


def _check(client: WinnowClient, job: str) -> None:
    """The pages are what they are said to be."""
    told = list(islice(client.verdicts(job, verdict="quarantine", sort="p_value"), 250))
    p_values = [each.p_value or 0.0 for each in told]
    if p_values != sorted(p_values) or {each.verdict for each in told} != {"quarantine"}:
        raise RuntimeError("the pages are not in the order of their p-values")


def _jobs(stack: RunningStack, database_url: str | None, count: int) -> list[str]:
    """Finished sanitise jobs with as many verdicts each; their tables are links to one."""
    database = Database.open(database_url or f"sqlite:///{stack.home / 'winnow.db'}", pooled=False)
    storage, first = LocalStorage(stack.home / "storage"), ""
    ids = []
    for _ in range(COLD_JOBS):
        with database.transaction() as session:
            job = add_job(session, "sanitise", inputs={}, params={}, max_attempts=3)
            job.state, job.attempt = "succeeded", 1
            ids.append(job.id)
            key = artifacts.verdicts_key(job)
        if not first:
            first = key
            _table(count).write(storage, key)
            continue
        for kept in (str, paged_key, index_key):
            each, of = kept(key), kept(first)
            _path(stack, each).parent.mkdir(parents=True, exist_ok=True)
            os.link(_path(stack, of), _path(stack, each))
    return ids


def _path(stack: RunningStack, key: str) -> Path:
    return stack.home / "storage" / key


def _table(count: int) -> VerdictTable:
    rng = np.random.default_rng(0)
    own = rng.random((count, len(NAMES)))
    p_values = rng.random(count)
    flagged = p_values <= 0.05
    columns: dict[str, Any] = {
        "sample_ids": pa.array([f"{number:064x}" for number in rng.permutation(count)]),
        "paths": pa.array([f"train/{number % CLASSES:02d}/{number:07d}.png" for number in range(count)]),
        "labels": pa.array([f"class {label}" for label in rng.integers(0, CLASSES, count)]),
    }
    return VerdictTable.of(
        **columns,
        verdicts=np.where(flagged, "quarantine", "keep"),
        p_values=p_values,
        names=NAMES,
        scores=rng.standard_normal((count, len(NAMES))),
        own_p=own,
        spoke=(own <= 0.05) & flagged[:, None],
    )
