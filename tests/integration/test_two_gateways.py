"""Two gateways and two workers that share PostgreSQL, a bucket and Redis, and nothing else: which one is asked is all
the same."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import select

from service.client import WinnowClient
from service.db import Database
from service.embedded.running import another_worker, running_stack
from service.serving.routes import FRESH_SECONDS
from service.settings import Settings
from service.tables import Job
from tests.integration.conftest import FAST_DISTILL, Digits, cluster_parts, finished
from tests.parts import end, free_port

pytestmark = pytest.mark.slow

AT_ONCE = 24
START_S = 120.0
LOOK_S = 0.5
"""What a look into the database may take on a busy machine."""
ROWS = [slice(0, 640), slice(640, 680), slice(680, 720), slice(720, 760), slice(760, 800), slice(800, 840)]


class Pair(NamedTuple):
    """Clients of either gateway, the key of both, and the database behind them."""

    first: WinnowClient
    second: WinnowClient
    key: str
    database: Database


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    place = tmp_path_factory.mktemp("two")
    with cluster_parts(request, tmp_path_factory) as parts:
        given = {**parts, "OMP_NUM_THREADS": "1"}
        with (
            running_stack(place / "first", environment=given) as stack,
            another_worker(stack, place / "worker.log", environment=given),
            another_gateway(place / "second", given) as url,
            WinnowClient(stack.url, stack.key) as first,
            WinnowClient(url, stack.key) as second,
        ):
            database = Database.open(Settings(database_url=parts["WINNOW_DATABASE_URL"]).resolved().database_url)
            yield Pair(first, second, stack.key, database)
            database.close()


@contextmanager
def another_gateway(home: Path, environment: dict[str, str]) -> Iterator[str]:
    """In a home of its own; gives its URL when it is ready."""
    home.mkdir()
    port = free_port()
    env = {**os.environ, **environment, "WINNOW_HOME": str(home), "WINNOW_PORT": str(port)}
    with (home / "gateway.log").open("wb") as log:
        command = [sys.executable, "-P", "-m", "service"]
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not is_ready(url):
            assert process.poll() is None and time.monotonic() < deadline, (home / "gateway.log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        end(process)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def versions(pair: Pair, digits: Digits) -> list[str]:
    """Uploaded at once, every other one through the second gateway; asked for at the one that did not take it."""

    def upload(number: int) -> str:
        client, other = (pair.first, pair.second) if number % 2 == 0 else (pair.second, pair.first)
        job = client.upload_dataset(f"digits-{number}", digits.npz(ROWS[number]))
        return str((finished(other, job).result or {})["dataset"])

    with ThreadPoolExecutor(len(ROWS)) as pool:
        return list(pool.map(upload, range(len(ROWS))))


@pytest.fixture(scope="module")
def distilled(pair: Pair, versions: list[str]) -> list[str]:
    """The ids that came of one distillation asked for many times at once, under one key, at both gateways."""
    barrier = threading.Barrier(AT_ONCE)

    def send(number: int) -> str:
        with WinnowClient((pair.first, pair.second)[number % 2].url, pair.key) as own:
            barrier.wait()
            made = own.submit(
                "distill", dataset=versions[0], model="digits", params=FAST_DISTILL, idempotency_key="one-job"
            )
        return made.id

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(send, range(AT_ONCE)))


@pytest.fixture(scope="module")
def model(pair: Pair, distilled: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Version 1 was made by a worker; version 2 is its bundle, taken from one gateway and brought to the other."""
    finished(pair.second, pair.first.job(distilled[0]))
    bundle = pair.first.bundles.export("digits@1", tmp_path_factory.mktemp("bundle") / "digits.winnow")
    assert pair.second.bundles.bring("digits", bundle) == "digits@2"
    return "digits"


def test_what_is_uploaded_through_one_is_known_to_the_other_and_both_workers_come(
    pair: Pair, versions: list[str]
) -> None:
    assert versions == [f"digits-{number}@1" for number in range(len(ROWS))]
    told = [[(job.id, job.state) for job in client.jobs(type="ingest")] for client in (pair.first, pair.second)]
    assert told[0] == told[1] and len(told[0]) == len(ROWS)
    with pair.database.session() as session:
        jobs = session.scalars(select(Job).where(Job.type == "ingest")).all()
    assert {job.attempt for job in jobs} == {1}
    assert len({job.worker for job in jobs}) == 2


def test_one_key_makes_one_job_whichever_gateway_is_asked(pair: Pair, distilled: list[str]) -> None:
    assert len(distilled) == AT_ONCE and len(set(distilled)) == 1
    assert [job.id for job in pair.second.jobs(type="distill")] == distilled[:1]


def test_a_model_that_came_through_one_is_served_by_the_other(pair: Pair, model: str, digits: Digits) -> None:
    images = digits.npz(slice(840, 880)).getvalue()
    answers = [
        client.predict(f"{model}@{version}", images) for client in (pair.first, pair.second) for version in (1, 2)
    ]
    assert [each.model for each in answers] == ["digits@1", "digits@2"] * 2
    assert len({tuple(answer.label for answer in each.predictions) for each in answers}) == 1


def test_an_alias_moved_through_one_is_followed_by_the_other_in_time(pair: Pair, model: str, digits: Digits) -> None:
    image = digits.npz(slice(840, 841)).getvalue()
    for version in (1, 2):  # both in memory, so that nothing but the look is waited for
        pair.second.predict(f"{model}@{version}", image)
    pair.first.set_alias(model, "champion", 1)
    answering(pair.second, image, "digits@1", since=time.monotonic())
    pair.first.set_alias(model, "champion", 2)
    answering(pair.second, image, "digits@2", since=time.monotonic())


def answering(client: WinnowClient, image: bytes, wanted: str, *, since: float) -> None:
    """Every request that begins later than the documented time after `since` is answered by `wanted`."""
    late: list[Any] = []
    while len(late) < 5:
        begun = time.monotonic() - since
        answer = client.predict("digits:champion", image).model
        if begun > FRESH_SECONDS + LOOK_S:
            late.append(answer)
        else:
            assert answer in ("digits@1", "digits@2")
        time.sleep(0.05)
    assert set(late) == {wanted}
