"""One job on two real workers: what it finds is what one finds alone, whatever happens to either of them."""

from __future__ import annotations

import io
import os
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select

from service.client import Job, WinnowClient
from service.db import Database
from service.embedded.running import RunningStack, another_worker, running_stack, settings_of
from service.jobs.state import FINISHED
from service.jobs.steps import StepState
from service.jobs.tables import Step
from service.storage import open_storage
from service.tables import DatasetVersion
from service.tables import Job as JobRow
from tests.integration.conftest import FAST_FILTER, Digits, chosen_parts, finished
from tests.integration.test_durability import decided, wait_for_phase

pytestmark = pytest.mark.slow

LEASE_S = 3.0
ENVIRONMENT = {
    "WINNOW_STEP_IMAGES": "700",
    "WINNOW_LEASE_SECONDS": str(LEASE_S),
    "WINNOW_HEARTBEAT_SECONDS": "0.3",
    "OMP_NUM_THREADS": "1",
}
PARAMS: dict[str, Any] = {**FAST_FILTER, "panel": {**FAST_FILTER["panel"], "max_images": 600}}  # quick to fit
DRAWN = 20_000
TIMES = 6
"""How often the candidates are repeated, so that scoring them takes long enough to be disturbed."""


@pytest.fixture(scope="module")
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the workers are given: parts of their own, so that no other worker comes."""
    with chosen_parts(request, tmp_path_factory) as chosen:
        yield {**ENVIRONMENT, **chosen}


@pytest.fixture(scope="module")
def pair(given: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("pair"), environment=given) as running:
        yield running


@pytest.fixture(scope="module")
def asker(pair: RunningStack) -> Iterator[WinnowClient]:
    with WinnowClient(pair.url, pair.key) as opened:
        yield opened


@pytest.fixture(scope="module")
def database(pair: RunningStack, given: dict[str, str]) -> Iterator[Database]:
    opened = Database.open(settings_of(pair, given).database_url, pooled=False)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def versions(asker: WinnowClient, digits: Digits) -> dict[str, str]:
    many = Digits(np.tile(digits.images[240:1640], (TIMES, 1, 1)), np.tile(digits.labels[240:1640], TIMES))
    jobs = {
        "trusted": asker.upload_dataset("trusted", digits.npz(slice(0, 240))),
        "signs": asker.upload_dataset("signs", many.npz(slice(None))),
    }
    return {name: (finished(asker, job).result or {})["dataset"] for name, job in jobs.items()}


@pytest.fixture(scope="module")
def alone(asker: WinnowClient, versions: dict[str, str]) -> list[Any]:
    """What one worker finds by itself."""
    return decided(asker, finished(asker, submitted(asker, versions)))


def submitted(asker: WinnowClient, versions: dict[str, str]) -> Job:
    return asker.submit("sanitise", dataset=versions["signs"], reference=versions["trusted"], params=PARAMS)


@pytest.fixture
def second_log(pair: RunningStack, given: dict[str, str], tmp_path: Path) -> Iterator[Path]:
    """Of a second worker, which is ready."""
    log = tmp_path / "second.log"
    with another_worker(pair, log, environment=given):
        yield log


def wait_until(condition: Callable[[], Any], otherwise: str, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)
    return found


def helped(database: Database, job: Job) -> Step | None:
    """A step that a worker which does not own the job is working on."""
    with database.session() as session:
        owner = session.get_one(JobRow, job.id).worker
        running = select(Step).where(Step.job_id == job.id, Step.state == StepState.RUNNING, Step.worker != owner)
        return session.scalars(running).first()


def frozen(database: Database, job: Job) -> Step:
    """A helper's step in the middle of which the helper was stopped."""

    def try_it() -> Step | None:
        step = helped(database, job)
        if step is None:
            return None
        os.kill(pid_of(step), signal.SIGSTOP)
        present = helped(database, job)
        if present is not None and (present.number, present.attempt) == (step.number, step.attempt):
            return step
        os.kill(pid_of(step), signal.SIGCONT)
        return None

    found: Step = wait_until(try_it, "nobody helped")
    return found


def pid_of(step: Step) -> int:
    assert step.worker is not None
    return int(step.worker.rpartition(":")[2])


def messages(asker: WinnowClient, job: Job) -> list[str]:
    return [event.message or "" for event in asker.events(job.id) if event.kind == "state"]


def steps_left(database: Database, job: Job) -> int:
    with database.session() as session:
        return len(session.scalars(select(Step).where(Step.job_id == job.id)).all())


def test_two_workers_find_what_one_finds(
    asker: WinnowClient,
    versions: dict[str, str],
    alone: list[Any],
    database: Database,
    second_log: Path,
) -> None:
    job = submitted(asker, versions)
    wait_until(lambda: helped(database, job), "the second worker took no step")
    assert decided(asker, finished(asker, job)) == alone
    assert asker.job(job.id).attempt == 1
    assert b"step ended" in second_log.read_bytes()
    assert steps_left(database, job) == 0


@pytest.mark.usefixtures("second_log")
def test_a_killed_helper_costs_its_step_alone(
    asker: WinnowClient,
    versions: dict[str, str],
    alone: list[Any],
    database: Database,
) -> None:
    job = submitted(asker, versions)
    step = frozen(database, job)
    os.kill(pid_of(step), signal.SIGKILL)
    done = finished(asker, job)
    assert done.attempt == 1
    assert f"step {step.number} of scoring: worker_lost; it is tried again" in messages(asker, job)
    assert decided(asker, job) == alone


@pytest.mark.usefixtures("second_log")
def test_a_killed_owner_costs_no_finished_step(
    asker: WinnowClient,
    versions: dict[str, str],
    alone: list[Any],
    database: Database,
) -> None:
    job = submitted(asker, versions)
    wait_until(lambda: helped(database, job), "nobody helped")
    with database.session() as session:
        owner = session.get_one(JobRow, job.id).worker or ""
        before = {each.number: each.attempt for each in session.scalars(succeeded_steps(job))}
    os.kill(int(owner.rpartition(":")[2]), signal.SIGKILL)
    wait_until(lambda: asker.job(job.id).attempt == 2, "nobody took the job over", 20)
    looks = steps_until_the_end(database, job)
    done = finished(asker, job)
    assert looks, "the second attempt was over before anybody looked"
    assert all(before.items() <= look.items() for look in looks)
    assert done.attempt == 2
    assert decided(asker, job) == alone


def steps_until_the_end(database: Database, job: Job) -> list[dict[int, int]]:
    """The attempts of the steps that have succeeded, at every look while the job runs."""
    looks = []
    while True:
        with database.session() as session:
            found = {each.number: each.attempt for each in session.scalars(succeeded_steps(job))}
            state = session.get_one(JobRow, job.id).state
        if state in FINISHED:
            return looks
        if found:  # none once the job has succeeded: its rows are forgotten in the transaction that says so
            looks.append(found)
        time.sleep(0.02)


def succeeded_steps(job: Job) -> Any:
    return select(Step).where(Step.job_id == job.id, Step.state == StepState.SUCCEEDED)


def test_a_frozen_helper_that_wakes_publishes_nothing(
    asker: WinnowClient,
    versions: dict[str, str],
    alone: list[Any],
    database: Database,
    pair: RunningStack,
    second_log: Path,
) -> None:
    """Either of the two may be the one that helps."""

    def noticed() -> int:
        logs = (pair.home / "logs/worker.log", second_log)
        return sum(log.read_bytes().count(b"step superseded, nothing published") for log in logs)

    before = noticed()
    job = submitted(asker, versions)
    step = frozen(database, job)
    try:
        done = finished(asker, job)
    finally:
        os.kill(pid_of(step), signal.SIGCONT)
    wait_until(lambda: noticed() > before, "it did not notice")
    assert done.attempt == 1
    assert decided(asker, job) == alone
    assert len(published(database, job)) == 1


def published(database: Database, job: Job) -> list[DatasetVersion]:
    with database.session() as session:
        return list(session.scalars(select(DatasetVersion).where(DatasetVersion.job_id == job.id)))


def test_a_step_that_fails_in_each_attempt_fails_the_job_which_succeeds_on_retry(
    pair: RunningStack,
    given: dict[str, str],
    asker: WinnowClient,
    versions: dict[str, str],
    alone: list[Any],
    database: Database,
) -> None:
    storage = open_storage(settings_of(pair, given))
    with database.session() as session:
        key = f"{session.scalars(select(DatasetVersion.prefix).where(DatasetVersion.name == 'signs')).first()}"
    shard = f"{key}/shard-00000.npy"
    right = storage.read(shard)
    job = submitted(asker, versions)
    wait_for_phase(asker, job, ("checking",))  # the fits have read what they need
    storage.write(shard, right[:1000])
    try:
        failed = finished(asker, job, state="failed")
    finally:
        storage.write(shard, right)
    assert failed.error is not None
    assert failed.error["code"] == "corrupt"
    assert failed.error["message"].startswith("A step of scoring failed in each of its attempts, the last time so: ")
    assert [each.endswith("out of attempts") for each in messages(asker, job)].count(True) == 1
    asker.retry(job.id)
    assert decided(asker, finished(asker, job)) == alone


@pytest.mark.usefixtures("second_log")
def test_a_cancel_reaches_the_helpers_too(asker: WinnowClient, versions: dict[str, str], database: Database) -> None:
    job = submitted(asker, versions)
    wait_until(lambda: helped(database, job), "nobody helped")
    asker.cancel(job.id)
    asked_at = time.monotonic()
    finished(asker, job, state="cancelled", timeout_s=20)
    wait_until(lambda: helped(database, job) is None, "a helper went on", 5)
    assert time.monotonic() - asked_at < 5


@pytest.mark.usefixtures("second_log")
def test_two_workers_decode_what_one_decodes_whatever_happens_to_one_of_them(
    asker: WinnowClient, archive: Path, decoded_alone: Job, database: Database
) -> None:
    job = asker.upload_dataset("drawn", archive)
    step = frozen(database, job)
    os.kill(pid_of(step), signal.SIGKILL)
    done = finished(asker, job)
    assert f"step {step.number} of decoding: worker_lost; it is tried again" in messages(asker, job)
    assert done.attempt == 1 and steps_left(database, job) == 0
    (first,), (second,) = published(database, decoded_alone), published(database, job)
    assert first.digest == second.digest and first.num_samples == second.num_samples == DRAWN


@pytest.fixture(scope="module")
def decoded_alone(asker: WinnowClient, archive: Path) -> Job:
    return finished(asker, asker.upload_dataset("drawn", archive))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many images that decoding them takes long enough to be disturbed."""
    path, rng = tmp_path_factory.mktemp("drawn") / "drawn.zip", np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as opened:
        for number, pixels in enumerate(rng.integers(0, 256, (DRAWN, 32, 32, 3), dtype=np.uint8)):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            opened.writestr(f"{number % 4}/{number}.png", buffer.getvalue())
    return path


def test_scores_are_finite_and_differ(alone: list[Any]) -> None:
    """What the others compare is not all the same."""
    scores = np.array([list(row[3].values()) for row in alone])
    assert np.isfinite(scores).all()
    assert (scores.std(axis=0) > 0).all()
