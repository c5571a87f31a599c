"""Which queue a job rings in, on a real broker."""

from __future__ import annotations

from pathlib import Path

from service.db import Database
from service.jobs.create import add_job
from service.jobs.queue import CPU, GPU, Doorbell, celery_app
from service.jobs.reaper import reap
from service.settings import Settings
from service.tables import Job
from tests.parts import redis_server


def test_what_computes_waits_apart_from_what_reads_and_writes(settings: Settings, database: Database) -> None:
    folder = Path(settings.home)
    with redis_server(folder) as url:
        doorbell = Doorbell(celery_app(settings.model_copy(update={"redis_url": url})), database)
        with database.transaction() as session:
            kinds = ("ingest", "review", "sanitise", "distill", "evaluate")
            jobs = [add_job(session, kind, inputs={}, params={}, max_attempts=3).id for kind in kinds]
        assert doorbell.ring(jobs)
        assert doorbell.waiting() == {CPU: 2, GPU: 3}
        assert doorbell.ask("config_get", "maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_only_an_empty_queue_is_rung_again(settings: Settings, database: Database) -> None:
    """A message that was lost is made up for, one that waits is not doubled."""
    with redis_server(Path(settings.home)) as url:
        doorbell = Doorbell(celery_app(settings.model_copy(update={"redis_url": url})), database)
        with database.transaction() as session:
            lost = add_job(session, "sanitise", inputs={}, params={}, max_attempts=3)
            waits = add_job(session, "ingest", inputs={}, params={}, max_attempts=3)
            ids = lost.id, waits.id
        doorbell.ring(list(ids))
        doorbell.ask("delete", GPU)
        with database.transaction() as session:
            for job_id in ids:
                session.get_one(Job, job_id).rung_at = session.get_one(Job, job_id).created_at.replace(year=2020)
        reap(database, doorbell)
        assert doorbell.waiting() == {CPU: 1, GPU: 1}
