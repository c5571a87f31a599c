"""What a job does when its disk is full, its storage or database goes away, or memory runs out under it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from service.client import Job, WinnowClient
from service.db import Database
from service.embedded.running import RunningStack, running_stack, settings_of
from service.tables import DatasetVersion
from tests.integration.conftest import FAST_FILTER, Digits, finished
from tests.integration.test_durability import decided, wait_for_phase, worker_pids
from tests.parts import PostgresServer, S3Server, postgres_server, s3_server

pytestmark = pytest.mark.slow

LEASE_S = 3.0
SOON = {"WINNOW_LEASE_SECONDS": str(LEASE_S), "WINNOW_HEARTBEAT_SECONDS": "0.3", "OMP_NUM_THREADS": "1"}
PARAMS: dict[str, Any] = {**FAST_FILTER, "filter": {"width": 8, "fit": {"epochs": 12}}}
DISK_BYTES = 48 * 1024 * 1024


@dataclass
class House:
    """A stack whose parts can be taken away, and what its jobs find if nothing is."""

    stack: RunningStack
    client: WinnowClient
    database: Database
    sets: dict[str, str]
    right: list[Any]

    def submit(self) -> Job:
        return self.client.submit("sanitise", **self.sets, params=PARAMS)

    def published(self, job: Job) -> int:
        with self.database.session() as session:
            return len(session.scalars(select(DatasetVersion).where(DatasetVersion.job_id == job.id)).all())


ROOM = 128 * 2**20
"""For threads and for what is small."""


@contextmanager
def house(home: Path, digits: Digits, environment: dict[str, str]) -> Iterator[House]:
    with (
        running_stack(home, environment={**SOON, **environment}) as stack,
        WinnowClient(stack.url, stack.key) as client,
    ):
        database = Database.open(settings_of(stack, environment).database_url, pooled=False)
        jobs = {
            "reference": client.upload_dataset("trusted", digits.npz(slice(0, 240))),
            "dataset": client.upload_dataset("signs", digits.npz(slice(240, 640))),
        }
        sets = {name: (finished(client, job).result or {})["dataset"] for name, job in jobs.items()}
        made = House(stack, client, database, sets, [])
        made.right = decided(client, finished(client, made.submit()))
        yield made
        database.close()


@dataclass
class Cluster:
    house: House
    postgres: PostgresServer
    s3: S3Server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Iterator[Cluster]:
    with postgres_server() as postgres, s3_server() as s3:
        given = {
            **s3.environment,
            "WINNOW_DATABASE_URL": postgres.url(postgres.make_database()),
            "WINNOW_STORAGE_URL": f"s3://{s3.make_bucket()}/winnow",
            "WINNOW_S3_ENDPOINT": s3.endpoint,
            "WINNOW_S3_REGION": "eu-central-1",
        }
        with house(tmp_path_factory.mktemp("cluster"), digits, given) as made:
            yield Cluster(made, postgres, s3)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of its own that can be filled."""
    place = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", place], check=False)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, small_disk: Path, digits: Digits) -> Iterator[House]:
    """On one machine, its storage on the small disk."""
    with house(tmp_path_factory.mktemp("alone"), digits, {"WINNOW_STORAGE": str(small_disk / "storage")}) as made:
        yield made


def test_a_full_disk_fails_the_job_with_the_reason_and_it_succeeds_once_there_is_room(
    alone: House, small_disk: Path
) -> None:
    job, filler = alone.submit(), small_disk / "filler"
    wait_for_phase(alone.client, job, ("surrogates", "denoiser"))
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(65_536))
    try:
        failed = finished(alone.client, job, state="failed")
    finally:
        filler.unlink()
    assert not [path for path in small_disk.rglob("*") if path.name.startswith(".partial")]
    assert_succeeds_on_retry(alone, failed, "full")


def test_a_storage_that_falls_silent_fails_the_job_which_succeeds_on_retry(cluster: Cluster) -> None:
    home = cluster.house
    job = home.submit()
    wait_for_phase(home.client, job, ("surrogates", "denoiser"))
    assert cluster.s3.process is not None
    cluster.s3.process.send_signal(signal.SIGSTOP)
    try:
        failed = finished(home.client, job, state="failed")
    finally:
        cluster.s3.process.send_signal(signal.SIGCONT)
    assert_succeeds_on_retry(home, failed, "s3://")


def assert_succeeds_on_retry(home: House, failed: Job, told: str) -> None:
    assert failed.error is not None and failed.error["code"] == "storage_unavailable"
    assert told in failed.error["message"] and home.published(failed) == 0
    home.client.retry(failed.id)
    assert decided(home.client, finished(home.client, failed)) == home.right
    assert home.published(failed) == 1


def test_a_job_outlives_an_absence_of_the_database(cluster: Cluster) -> None:
    """Longer than its lease: whoever goes on, goes on from a checkpoint, and one result is published."""
    home = cluster.house
    job = home.submit()
    wait_for_phase(home.client, job, ("surrogates", "denoiser"))
    cluster.postgres.stop()
    time.sleep(2 * LEASE_S)
    cluster.postgres.start()
    assert home.client.wait(job.id, timeout_s=200).succeeded
    assert decided(home.client, job) == home.right
    assert home.published(job) == 1


def test_a_job_whose_worker_is_killed_for_its_memory_each_time_fails_and_the_queue_goes_on(alone: House) -> None:
    job, following = alone.submit(), alone.submit()
    for attempt in (1, 2, 3):
        while (seen := alone.client.job(job.id)).attempt < attempt or seen.state != "running":
            assert not seen.finished
            time.sleep(0.05)
        os.kill(worker_pids(alone.stack)[1], signal.SIGKILL)  # as the kernel does
    failed = finished(alone.client, job, state="failed")
    assert failed.error is not None and failed.error["code"] == "worker_lost" and failed.attempt == 3
    assert "memory" in failed.error["message"] and alone.published(job) == 0
    assert decided(alone.client, finished(alone.client, following)) == alone.right


def test_a_job_that_is_refused_memory_says_so_and_the_queue_goes_on(alone: House) -> None:
    """RLIMIT_AS of a child that has loaded torch becomes too small for a step; another child does the next job."""
    os.kill(worker_pids(alone.stack)[1], signal.SIGKILL)
    wide = {**PARAMS, "filter": {"width": 64, "depth": 12, "fit": {"epochs": 1, "batch_size": 4096}}}
    job = alone.client.submit("sanitise", **alone.sets, params=wide)
    wait_for_phase(alone.client, job, ("surrogates",))
    child = worker_pids(alone.stack)[1]
    limit = resource.prlimit(child, resource.RLIMIT_AS)[1]
    resource.prlimit(child, resource.RLIMIT_AS, (used_bytes(child) + ROOM, limit))
    failed = finished(alone.client, job, state="failed")
    assert failed.error is not None and failed.error["code"] == "out_of_memory", failed.error
    assert alone.published(job) == 0
    assert decided(alone.client, finished(alone.client, alone.submit())) == alone.right
    assert child not in worker_pids(alone.stack)


def used_bytes(pid: int) -> int:
    """Of addresses."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
