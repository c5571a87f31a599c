"""Which queue a job rings in, and which jobs are rung for again, on a real broker."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from service.db import Database, now
from service.jobs import repository, ringing
from service.jobs.create import add_job
from service.jobs.queue import CPU, GPU, Doorbell, celery_app
from service.jobs.reaper import reap
from service.settings import Settings
from service.tables import Job
from tests.parts import redis_server


@pytest.fixture
def doorbell(settings: Settings, database: Database) -> Iterator[Doorbell]:
    with redis_server(Path(settings.home)) as url:
        yield Doorbell(celery_app(settings.model_copy(update={"redis_url": url})), database)


def added(database: Database, *kinds: str) -> list[str]:
    with database.transaction() as session:
        return [add_job(session, kind, inputs={}, params={}, max_attempts=3).id for kind in kinds]


def after(seconds: float, database: Database, doorbell: Doorbell) -> None:
    """A round of the reaper so much later."""
    with database.transaction() as session:
        for job in session.query(Job).where(Job.rung_at.is_not(None)):
            job.rung_at = (job.rung_at or now()) - timedelta(seconds=seconds)
    reap(database, doorbell)


def rung(doorbell: Doorbell, queue: str = GPU) -> list[str]:
    """The jobs whose messages wait, the next one first."""
    bodies = [json.loads(each)["body"] for each in reversed(doorbell.ask("lrange", queue, "0", "-1"))]
    return [json.loads(base64.b64decode(body))[0][0] for body in bodies]


def test_what_computes_waits_apart_from_what_reads_and_writes(doorbell: Doorbell, database: Database) -> None:
    jobs = added(database, "ingest", "review", "sanitise", "distill", "evaluate")
    assert doorbell.ring(jobs)
    assert doorbell.waiting() == {CPU: 2, GPU: 3}
    assert doorbell.ask("config_get", "maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_a_lost_message_is_made_up_for_and_one_that_waits_is_not_doubled(
    doorbell: Doorbell, database: Database
) -> None:
    doorbell.ring(added(database, "sanitise", "ingest"))
    doorbell.ask("delete", GPU)
    after(ringing.PATIENCE_SECONDS - 1, database, doorbell)
    assert doorbell.waiting() == {CPU: 1, GPU: 0}
    for _ in range(3):
        after(ringing.PATIENCE_SECONDS + 1, database, doorbell)
        assert doorbell.waiting() == {CPU: 1, GPU: 1}


def test_a_lost_message_is_made_up_for_among_those_of_other_jobs(doorbell: Doorbell, database: Database) -> None:
    """Jobs come as fast as they are taken: the queue is never empty, and the lost one gets its turn all the same."""
    lost, *others = added(database, *["sanitise"] * 6)
    doorbell.ring([lost])
    doorbell.ask("delete", GPU)  # or taken while its tenant had as many at work as it may
    doorbell.ring(others)
    for _ in range(8):
        new = added(database, "sanitise")
        doorbell.ring(new)
        after(ringing.PATIENCE_SECONDS + 1, database, doorbell)
        assert len(rung(doorbell)) <= 7
        taken = rung(doorbell)[0]
        doorbell.ask("rpop", GPU)
        repository.claim(database, taken, worker="w", lease_seconds=600)
        if taken == lost:
            break
    assert taken == lost


def test_an_overdue_job_is_rung_whatever_else_the_queue_holds(doorbell: Doorbell, database: Database) -> None:
    helped, lost = added(database, "distill", "distill")
    doorbell.ring([lost])
    doorbell.ask("delete", GPU)
    repository.claim(database, helped, worker="w", lease_seconds=600)
    doorbell.call_for_help(helped, "distill", "scoring", 5)
    after(ringing.PATIENCE_SECONDS + 1, database, doorbell)
    assert lost not in rung(doorbell)
    after(ringing.OVERDUE_SECONDS, database, doorbell)
    assert rung(doorbell).count(lost) == 1


def test_thousands_that_wait_do_not_multiply_their_messages(
    doorbell: Doorbell, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ringing, "SPARE", 5)
    monkeypatch.setattr(ringing, "MOST_AT_ONCE", 40)
    jobs = added(database, *["evaluate"] * 100)
    counts = []
    for _ in range(4):  # a broker that was away is told of them by and by
        reap(database, doorbell)
        counts.append(doorbell.waiting()[GPU])
    assert counts == [40, 80, 100, 100]
    for _ in range(4):
        after(ringing.OVERDUE_SECONDS + 1, database, doorbell)
    assert doorbell.waiting()[GPU] == 105
    doorbell.ask("flushdb")
    for _ in range(4):
        after(ringing.PATIENCE_SECONDS + 1, database, doorbell)
    assert sorted(rung(doorbell)) == sorted(jobs)
    assert doorbell.ask("dbsize") <= 3
