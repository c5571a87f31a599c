"""Finds and removes what nothing refers to: of attempts that came to nothing, of jobs that failed long ago."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.datasets.shards import INDEX, MANIFEST, read_index
from service.db import Database, now
from service.errors import NotFound
from service.jobs import steps
from service.jobs.artifacts import SHARED
from service.jobs.state import FINISHED, JobState
from service.jobs.tables import Phase
from service.settings import Settings
from service.storage import Entry, Storage
from service.tables import DEFAULT, Blob, DatasetVersion, Job, ModelVersion, Upload, UploadPart
from service.tenancy import ROOT

VERSIONS = ("datasets", "models")

LONGEST_WRITE = timedelta(days=1)
"""A manifest is open for as long as its job writes, and hardly grows while images are slow."""


@dataclass
class Unit:
    """Values that stay or go together: a version, a job's attempt, an upload."""

    prefix: str
    why: str = ""
    values: int = 0
    size: int = 0
    newest: datetime | None = None

    def add(self, entry: Entry) -> None:
        self.values += 1
        self.size += entry.size
        self.newest = entry.modified if self.newest is None else max(self.newest, entry.modified)


@dataclass(frozen=True)
class References:
    """What the database refers to, by whole keys."""

    prefixes: frozenset[str]  # of versions
    keys: frozenset[str]  # of uploads
    jobs: dict[str, Any]  # id, tenant, state, attempt, finished_at, inputs

    @classmethod
    def read(cls, session: Session, settings: Settings) -> References:
        long_ago = now() - timedelta(days=settings.keep_failed_days)
        columns = (Job.id, Job.tenant, Job.state, Job.attempt, Job.finished_at, Job.inputs)
        jobs = {job.id: job for job in session.execute(select(*columns))}
        prefixes = {
            _whole(row.tenant, row.prefix)
            for table in (DatasetVersion, ModelVersion)
            for row in session.execute(select(table.tenant, table.prefix))
        }
        keys = {
            _whole(job.tenant, job.inputs["upload"])
            for job in jobs.values()
            if "upload" in job.inputs and not _given_up(job, long_ago)
        }
        keys |= {_whole(tenant, key) for tenant, key in session.execute(select(Blob.tenant, Blob.key))}
        parts = select(Upload.tenant, UploadPart.key).join(Upload, Upload.id == UploadPart.upload_id)
        keys |= {_whole(tenant, key) for tenant, key in session.execute(parts)}
        return cls(frozenset(prefixes), frozenset(keys), jobs)


def collect(database: Database, storage: Storage, settings: Settings, *, dry_run: bool) -> list[Unit]:
    """Removes them, unless it is only to be said what would be. Safe beside running jobs: what is young stays."""
    units = _units(storage.list())
    with database.session() as session:  # after the listing: what was published meanwhile is known
        references = References.read(session, settings)
    old = now() - timedelta(hours=settings.keep_unreferenced_hours)
    long_ago = now() - timedelta(days=settings.keep_failed_days)
    found = []
    for unit in units:
        unit.why = _why_garbage(unit.prefix, references, long_ago) or ""
        if unit.why and unit.newest is not None and unit.newest < old:
            found.append(unit)
        if not unit.why and _is_shared(unit.prefix, references):
            found += [each for each in _superseded(storage, unit.prefix) if each.newest and each.newest < old]
    left = [entry for entry in storage.unfinished() if entry.modified < min(old, now() - LONGEST_WRITE)]
    found += [Unit(each.key, "a write that was never finished", 1, each.size, each.modified) for each in left]
    if not dry_run:
        for unit in found:
            storage.delete_prefix(unit.prefix)
        _forget_steps(database, references, long_ago)
    return found


def _forget_steps(database: Database, references: References, long_ago: datetime) -> None:
    """Of jobs whose checkpoints go too: without these their steps say nothing."""
    with database.transaction() as session:
        for job_id in session.scalars(select(Phase.job_id).distinct()):
            job = references.jobs.get(job_id)
            if job is not None and not _may_go_on(job, long_ago):
                steps.forget(session, job_id)


def _units(entries: Iterable[Entry]) -> list[Unit]:
    found: dict[str, Unit] = defaultdict(lambda: Unit(""))
    for entry in entries:
        prefix = _unit_of(entry.key)
        if prefix is not None:
            found[prefix].prefix = prefix
            found[prefix].add(entry)
    return sorted(found.values(), key=lambda unit: unit.prefix)


def _unit_of(key: str) -> str | None:
    """None for what is not known here, and is left alone."""
    root, parts = _split(key)
    if parts[0] in (*VERSIONS, "jobs") and len(parts) > 3:
        return root + "/".join(parts[:3])
    if parts[0] == "uploads" and len(parts) > 1:
        return key
    return None


def _why_garbage(prefix: str, references: References, long_ago: datetime) -> str | None:
    _, parts = _split(prefix)
    if parts[0] == "uploads":
        return None if prefix in references.keys else "an upload that no job or version reads"
    if parts[0] in VERSIONS:
        job_id, _, attempt = parts[2].rpartition("-")
        owner = references.jobs.get(job_id)
        if prefix in references.prefixes or _at_work(owner, attempt):
            return None
        if owner is not None and attempt.startswith(SHARED) and _may_go_on(owner, long_ago):
            return None
        return "a version that was never published"
    job = references.jobs.get(parts[1])
    if job is None:
        return "files of a job that is not there"
    if parts[2] == "checkpoints":
        return None if _may_go_on(job, long_ago) else f"checkpoints of a job that {job.state}"
    if parts[2].isdecimal() and int(parts[2]) < job.attempt:
        return "files of an attempt that came to nothing"
    return None


def _is_shared(prefix: str, references: References) -> bool:
    """Whether steps wrote the version: attempts at a step write beside each other, and the last to end counts."""
    return prefix in references.prefixes and prefix.rpartition("/")[2].partition("-")[2].startswith(SHARED)


def _superseded(storage: Storage, prefix: str) -> Iterator[Unit]:
    """What lies below a version's prefix and is no part of it."""
    try:
        named = {shard.name for shard in read_index(storage, prefix)} | {INDEX, MANIFEST}
    except NotFound:  # deleted meanwhile
        return
    for entry in storage.list(prefix):
        if entry.key.removeprefix(f"{prefix}/") not in named:
            why = "of an attempt at a step that was superseded"
            yield Unit(entry.key, why, 1, entry.size, entry.modified)


def _at_work(job: Any, attempt: str) -> bool:
    return bool(job is not None and job.state not in FINISHED and attempt == str(job.attempt))


def _may_go_on(job: Any, long_ago: datetime) -> bool:
    """With what its attempts share."""
    return job.state not in FINISHED or (job.state != JobState.SUCCEEDED and not _given_up(job, long_ago))


def _given_up(job: Any, long_ago: datetime) -> bool:
    """Failed or cancelled so long ago that nobody will retry it."""
    ended = job.state in (JobState.FAILED, JobState.CANCELLED)
    return bool(ended and job.finished_at is not None and job.finished_at < long_ago)


def _split(key: str) -> tuple[str, list[str]]:
    """(the tenant's root, the rest by its parts)."""
    parts = key.split("/")
    if parts[0] == ROOT and len(parts) > 2:
        return f"{ROOT}/{parts[1]}/", parts[2:]
    return "", parts


def _whole(tenant: str, key: str) -> str:
    return key if tenant == DEFAULT else f"{ROOT}/{tenant}/{key}"
