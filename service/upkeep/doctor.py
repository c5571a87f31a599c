"""Looks an installation over, part by part: what is well, what is not, and what to do about it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from kombu.exceptions import OperationalError
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from service.db import Database, now, revisions
from service.embedded.broker import answers_ping
from service.errors import WinnowError
from service.jobs.queue import Doorbell, celery_app
from service.jobs.state import JobState
from service.secrets import refuse_default_secrets
from service.settings import Settings
from service.storage import open_storage
from service.tables import Job, Worker

SILENT = timedelta(seconds=15)
CLOCK_WARNING_S = 1.0
DISK_WARNING_SHARE = 0.1
DISK_WARNING_BYTES = 2 * 1024**3
DISK_FULL_BYTES = 200 * 1024**2
PROBE = "health/doctor"


class State(StrEnum):
    WELL = "well"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """About one part. `mend` says what to do; empty where all is well."""

    part: str
    state: State
    says: str
    mend: str = ""


def look_over(settings: Settings) -> Iterator[Finding]:
    """Every part in the order in which one needs the other; a part that raises is itself a finding."""
    database = Database.open(settings.database_url)
    looks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("secrets", lambda: _secrets(settings)),
        ("database", lambda: _database(database)),
        ("schema", lambda: _schema(database)),
        ("broker", lambda: _broker(settings, database)),
        ("storage", lambda: _storage(settings)),
        ("workers", lambda: _workers(database)),
        ("jobs", lambda: _jobs(database, settings)),
        ("onnx runtime", lambda: _onnx_runtime(settings)),
        ("disk", lambda: _disk(settings)),
        ("clock", lambda: _clock(database, settings)),
    ]
    try:
        for part, look in looks:
            try:
                yield from look()
            except SQLAlchemyError as error:
                yield Finding(part, State.BROKEN, f"the database: {_first_line(error)}", "Mend the database first.")
            except WinnowError as error:
                yield Finding(part, State.BROKEN, error.message, "See above.")
    finally:
        database.close()


def _secrets(settings: Settings) -> Iterator[Finding]:
    try:
        refuse_default_secrets(settings)
        yield Finding("secrets", State.WELL, "none is one that everybody knows")
    except WinnowError as error:
        yield Finding("secrets", State.BROKEN, error.message, "Set secrets of your own, and start every part again.")


def _database(database: Database) -> Iterator[Finding]:
    began = time.perf_counter()
    try:
        with database.session() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        mend = "Is the server up, and are host, name and password in WINNOW_DATABASE_URL right?"
        yield Finding("database", State.BROKEN, _first_line(error), mend)
        return
    took_ms = (time.perf_counter() - began) * 1000
    yield Finding("database", State.WELL, f"{database.engine.dialect.name} answers in {took_ms:.1f} ms")


def _schema(database: Database) -> Iterator[Finding]:
    present, newest = revisions(database)
    if present == newest:
        yield Finding("schema", State.WELL, f"revision {present}")
    else:
        mend = "Run 'python -m service.prepare' with this version, or install the version that the database is of."
        yield Finding("schema", State.BROKEN, f"revision {present}; this version wants {newest}", mend)


def _broker(settings: Settings, database: Database) -> Iterator[Finding]:
    if not settings.redis_url:
        address = settings.home / "broker" / "broker.sock"
        if answers_ping(address):
            yield Finding("broker", State.WELL, f"the stack's own answers at {address}")
        else:
            mend = "Start the stack with 'winnow up', or set WINNOW_REDIS_URL. Waiting jobs lose nothing."
            yield Finding("broker", State.BROKEN, f"nothing answers at {address}", mend)
        return
    doorbell = Doorbell(celery_app(settings), database)
    try:
        doorbell.check()
        waiting = doorbell.waiting()
        policy = doorbell.ask("config_get", "maxmemory-policy").get("maxmemory-policy")
    except (OperationalError, OSError) as error:
        mend = "Is Redis up, and is WINNOW_REDIS_URL right? Jobs go on being accepted, and start when it is back."
        yield Finding("broker", State.BROKEN, f"does not answer: {_first_line(error)}", mend)
        return
    says = "answers; messages waiting: " + ", ".join(f"{name} {count}" for name, count in waiting.items())
    if policy not in ("noeviction", None):
        mend = "Start it with --maxmemory-policy noeviction; an evicted queue is rung again after some seconds only."
        yield Finding("broker", State.WARNING, f"{says}; maxmemory-policy is {policy}", mend)
    else:
        yield Finding("broker", State.WELL, says)


def _storage(settings: Settings) -> Iterator[Finding]:
    where = settings.storage_url or str(settings.storage)
    try:
        storage = open_storage(settings)
        storage.check()
        data = os.urandom(1024)
        storage.write(PROBE, data)
        same = storage.read(PROBE) == data
        storage.delete_prefix(PROBE)
    except WinnowError as error:
        mend = "Look at WINNOW_STORAGE_URL, WINNOW_S3_ENDPOINT and AWS_…, or at the folder's owner and space."
        yield Finding("storage", State.BROKEN, error.message, mend)
        return
    if same:
        yield Finding("storage", State.WELL, f"{where} gives back what was written")
    else:
        yield Finding("storage", State.BROKEN, f"{where} gave back other bytes than were written", "Replace it.")


def _workers(database: Database) -> Iterator[Finding]:
    with database.session() as session:
        seen = dict(session.execute(select(Worker.name, Worker.seen_at)).all())
    alive = sorted(name for name, seen_at in seen.items() if now() - seen_at < SILENT)
    silent = sorted(seen.keys() - set(alive))
    if not alive:
        mend = "Start one: 'winnow up' on one machine, 'docker compose up worker-cpu' in a cluster. Its log says more."
        yield Finding("workers", State.BROKEN, f"none is alive; silent: {', '.join(silent) or 'none'}", mend)
    else:
        gone = f"; silent: {', '.join(silent)} (killed: their jobs went to others)" if silent else ""
        yield Finding("workers", State.WELL, f"{len(alive)} alive: {', '.join(alive)}{gone}")


def _jobs(database: Database, settings: Settings) -> Iterator[Finding]:
    with database.session() as session:
        counts = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
        waiting = (Job.state == JobState.QUEUED) & (Job.type != "harden")
        oldest = session.scalar(select(func.min(Job.created_at)).where(waiting))
        late = now() - timedelta(seconds=3 * settings.lease_seconds)
        lost = session.scalar(select(func.count()).where(Job.lease_expires_at < late)) or 0
    says = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none yet"
    if lost:
        mend = "No worker looks for lost jobs: is one alive?"
        yield Finding("jobs", State.BROKEN, f"{says}; {lost} with a lease that ran out long ago", mend)
    elif oldest is not None and now() - oldest > timedelta(hours=1) and not counts.get(JobState.RUNNING):
        mend = "Does a worker take that kind of job? WINNOW_WORKER_QUEUES must name cpu and gpu between all workers."
        yield Finding("jobs", State.WARNING, f"{says}; the oldest has waited since {oldest:%F %T} UTC", mend)
    else:
        yield Finding("jobs", State.WELL, says)


def _onnx_runtime(settings: Settings) -> Iterator[Finding]:
    try:
        from service.serving.sessions import look
    except ImportError as error:
        yield Finding(
            "onnx runtime", State.WARNING, f"not installed here ({error})", "Only gateways and workers need it."
        )
        return
    facts = look()
    says = f"{', '.join(facts.offered)}; CUDA devices: {facts.cuda_devices}"
    if settings.require_cuda and not facts.cuda_devices:
        mend = "Install the NVIDIA driver and container toolkit, or unset WINNOW_REQUIRE_CUDA."
        yield Finding("onnx runtime", State.BROKEN, f"{says}; CUDA is required", mend)
    else:
        yield Finding("onnx runtime", State.WELL, says)


def _disk(settings: Settings) -> Iterator[Finding]:
    folders = {settings.home, Path(tempfile.gettempdir())} | (set() if settings.storage_url else {settings.storage})
    told: set[int] = set()
    for folder in sorted(folders):
        if not folder.exists() or (device := folder.stat().st_dev) in told:
            continue
        told.add(device)
        usage = shutil.disk_usage(folder)
        says = f"{usage.free / 1024**3:.1f} GiB free of {usage.total / 1024**3:.1f} at {folder}"
        little = usage.free < min(DISK_WARNING_BYTES, DISK_WARNING_SHARE * usage.total)
        state = State.BROKEN if usage.free < DISK_FULL_BYTES else State.WARNING if little else State.WELL
        yield Finding("disk", state, says, "" if state == State.WELL else "Make room; see 'winnow gc --dry-run'.")


def _clock(database: Database, settings: Settings) -> Iterator[Finding]:
    """Leases compare the clocks of different machines."""
    offsets: dict[str, float] = {}
    if database.engine.dialect.name == "postgresql":
        with database.session() as session:
            theirs = session.scalar(select(func.clock_timestamp()))
        offsets["database"] = (datetime.now(UTC) - theirs).total_seconds() if theirs else 0.0
    if settings.redis_url:
        try:
            seconds, micros = Doorbell(celery_app(settings), database).ask("time")
            offsets["broker"] = time.time() - seconds - micros / 1e6
        except (OperationalError, OSError):
            offsets.pop("broker", None)  # told under broker
    worst = max(map(abs, offsets.values()), default=0.0)
    says = ", ".join(f"{offset:+.2f} s from the {name}'s" for name, offset in offsets.items()) or "of one machine"
    if worst < CLOCK_WARNING_S:
        yield Finding("clock", State.WELL, says)
    else:
        state = State.BROKEN if worst > settings.lease_seconds / 2 else State.WARNING
        yield Finding("clock", state, says, "Let NTP (chrony, systemd-timesyncd) set the clock of every machine.")


def _first_line(error: Any) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
