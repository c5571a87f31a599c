"""The Celery app of the worker: two tasks, one child, and the reaper beside it. Torch is imported in the child only."""

from __future__ import annotations

import multiprocessing
from typing import Any

import structlog
from celery import bootsteps, signals
from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from service.allocator import keep_pages
from service.db import Database, now
from service.jobs.queue import EXECUTE, HELP, Doorbell, celery_app
from service.jobs.reaper import reap
from service.logs import configure_logs
from service.settings import Settings
from service.tables import Worker
from worker.lifeline import die_with_parent
from worker.runtime import Runtime

settings = Settings.from_env()
app = celery_app(settings)
app.conf.worker_proc_alive_timeout = 60  # a child imports torch before it reports for work
shutting_down = multiprocessing.get_context("fork").Event()  # shared with the child
log = structlog.get_logger()

_runtime: list[Runtime] = []  # of this child; filled after the fork, since no connection survives one


@app.task(name=EXECUTE, ignore_result=True)
def execute_job(job_id: str) -> None:
    from worker.execute import execute

    execute(_runtime[0], job_id, shutting_down)
    _leave_if_doubted()


@app.task(name=HELP, ignore_result=True)
def help_with_job(job_id: str, phase: str) -> None:
    from worker.helping import help_with

    help_with(_runtime[0], job_id, phase, shutting_down)
    _leave_if_doubted()


def _leave_if_doubted() -> None:
    """The pool starts another child in this one's place; the job's end is in the database already."""
    if _runtime[0].doubted.is_set():
        log.warning("the child leaves after a failure that nobody foresaw")
        raise SystemExit(0)


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    configure_logs(settings.log_level, part="worker")


@signals.worker_process_init.connect
def _open_child(**_: Any) -> None:
    import worker.execute  # noqa: F401 (so that the first job need not wait for it)

    die_with_parent()
    keep_pages()
    runtime = Runtime.open(settings, app)
    if settings.worker_metrics_port:
        runtime.metrics.serve(settings.host, settings.worker_metrics_port)
    _runtime.append(runtime)


@signals.worker_shutting_down.connect
def _tell_child(**_: Any) -> None:
    shutting_down.set()


class Reaper(bootsteps.StartStopStep):
    """Reaps and shows a sign of life every few seconds, on the worker's own timer: a thread would not survive forks."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, worker: Any, **_: Any) -> None:
        self._name = worker.hostname
        self._database = Database.open(settings.database_url, pooled=False)
        self._doorbell = Doorbell(app, self._database)
        self._timer: Any = None

    def start(self, worker: Any) -> None:
        self._timer = worker.timer.call_repeatedly(settings.reap_seconds, self._round)

    def stop(self, _worker: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._say_goodbye()
        except SQLAlchemyError as error:  # readiness will notice the silence a little later
            log.warning("could not sign off", error=str(error))

    def _round(self) -> None:
        try:
            self._show_life()
            reap(self._database, self._doorbell)
        except SQLAlchemyError as error:
            log.warning("reaper could not reach the database", error=str(error))

    def _say_goodbye(self) -> None:
        with self._database.transaction() as session:
            session.execute(delete(Worker).where(Worker.name == self._name))

    def _show_life(self) -> None:
        with self._database.transaction() as session:
            row = session.scalar(select(Worker).where(Worker.name == self._name))
            if row is None:
                session.add(Worker(name=self._name, seen_at=now()))
            else:
                row.seen_at = now()
        if settings.alive_file is not None:
            settings.alive_file.touch()


app.steps["worker"].add(Reaper)
