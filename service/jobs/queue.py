"""The broker: a doorbell. It carries job ids and nothing else, and losing it loses nothing."""

from __future__ import annotations

from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from sqlalchemy import select

from service.db import Database
from service.jobs import repository
from service.settings import Settings
from service.tables import Job

EXECUTE = "winnow.execute"
HELP = "winnow.help"
CPU, GPU = "winnow.cpu", "winnow.gpu"
QUEUES = {"cpu": CPU, "gpu": GPU}
QUEUE_OF = {"ingest": CPU, "review": CPU}
"""By type of job; every other one computes."""

log = structlog.get_logger()


def celery_app(settings: Settings) -> Celery:
    """The one configuration that gateway and worker share."""
    app = Celery("winnow", broker=settings.redis_url)
    app.conf.update(
        task_default_queue=CPU,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # one that is at work leaves what waits to those that are not
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "socket_connect_timeout": 2,
            "max_retries": 1,  # of a ring, which the reaper makes up for; a worker's own connection waits for ever
            "interval_start": 0.05,
            "interval_step": 0,
        },
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        event_queue_durable=False,
        enable_utc=True,
    )
    return app


class Doorbell:
    """Tells the workers of queued jobs. A ring that fails is logged and made up for by the reaper."""

    def __init__(self, app: Celery, database: Database) -> None:
        self._app = app
        self._database = database

    def ring(self, job_ids: list[str]) -> bool:
        """Call it after the commit, never before."""
        if not job_ids:
            return True
        try:
            for job_id, kind in self._types(job_ids):
                self._app.send_task(EXECUTE, args=[job_id], queue=QUEUE_OF.get(kind, GPU), retry=False)
        except (OperationalError, OSError) as error:
            log.warning("doorbell did not ring", error=str(error), jobs=job_ids)
            return False
        repository.mark_rung(self._database, job_ids)
        return True

    def call_for_help(self, job_id: str, kind: str, phase: str, count: int) -> bool:
        """Ask for `count` workers. Call it after the commit, never before."""
        try:
            for _ in range(count):
                self._app.send_task(HELP, args=[job_id, phase], queue=QUEUE_OF.get(kind, GPU), retry=False)
        except (OperationalError, OSError) as error:
            log.warning("doorbell did not ring", error=str(error), jobs=[job_id])
            return False
        return True

    def waiting(self) -> dict[str, int]:
        """Messages in each queue. Raises OperationalError or OSError where the broker is away."""
        with self._app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1)
            channel = connection.default_channel
            return {name: int(channel.queue_declare(name, passive=False).message_count) for name in QUEUES.values()}

    def check(self) -> None:
        """Raises OperationalError or OSError where the broker is away."""
        with self._app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=2)

    def ask(self, command: str, *arguments: str) -> Any:
        """A command of Redis's own. Raises OperationalError or OSError where the broker is away or refuses."""
        with self._app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
            try:
                return getattr(connection.default_channel.client, command)(*arguments)
            except RedisError as error:
                raise OperationalError(str(error)) from error

    def _types(self, job_ids: list[str]) -> list[tuple[str, str]]:
        with self._database.session() as session:
            found = session.execute(select(Job.id, Job.type).where(Job.id.in_(job_ids)).order_by(Job.created_at))
            return [(job_id, kind) for job_id, kind in found]
