"""Clearing away, what the doctor finds, and the commands that do it, on real databases and storages."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import orjson
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from service.cli import app
from service.datasets import repository as datasets
from service.datasets.shard_writing import PartWriter, unite
from service.datasets.shards import Row
from service.db import Database, migrate, now
from service.jobs import artifacts, repository
from service.jobs.create import add_job
from service.jobs.state import JobState
from service.jobs.tables import Phase
from service.settings import Settings
from service.storage import LocalStorage, Storage
from service.tables import Worker
from service.tenancy import TenantStorage
from service.upkeep.doctor import State, look_over
from service.upkeep.garbage import collect
from tests.service.conftest import MakeDataset
from tests.service.installations import lived_in as lived_in

LONG_AGO = timedelta(days=40)


def age(settings: Settings, key: str, by: timedelta = timedelta(days=2)) -> None:
    moment = (now() - by).timestamp()
    os.utime(settings.storage / key, (moment, moment))


def put(settings: Settings, storage: Storage, key: str) -> str:
    storage.write(key, key.encode())
    age(settings, key)
    return key


def job_of(database: Database, state: JobState, *, attempt: int = 1, kind: str = "ingest", **inputs: str) -> str:
    with database.transaction() as session:
        job = add_job(session, kind, inputs=dict(inputs), params={}, max_attempts=3)
        job.state, job.attempt, job.finished_at = state, attempt, now()
        return job.id


def removed(database: Database, storage: Storage, settings: Settings) -> list[str]:
    """What is gone, which is what a dry run said before."""
    before = {entry.key for entry in storage.list()}
    told = [unit.prefix for unit in collect(database, storage, settings, dry_run=True)]
    assert {entry.key for entry in storage.list()} == before
    assert [unit.prefix for unit in collect(database, storage, settings, dry_run=False)] == told
    gone = before - {entry.key for entry in storage.list()}
    assert all(any(key == prefix or key.startswith(f"{prefix}/") for prefix in told) for key in gone)
    return sorted(gone)


def test_what_a_version_is_made_of_stays_and_what_none_refers_to_goes(
    database: Database, storage: LocalStorage, settings: Settings, make_dataset: MakeDataset
) -> None:
    make_dataset("signs", {"a": 3, "b": 3})
    for entry in storage.list():
        age(settings, entry.key)
    orphan = put(settings, storage, "datasets/signs/gone-1/shard-00000.npy")
    foreign = put(settings, storage, "tenants/acme/models/m/gone-1/student.onnx")
    put(settings, storage, "elsewhere/not/ours")
    assert removed(database, storage, settings) == [orphan, foreign]


def test_a_running_job_keeps_what_it_writes_and_a_later_attempt_drops_what_an_earlier_one_wrote(
    database: Database, storage: LocalStorage, settings: Settings
) -> None:
    running = job_of(database, JobState.RUNNING, attempt=2, kind="sanitise")
    for attempt in (1, 2):
        put(settings, storage, f"datasets/signs/{running}-{attempt}/shard-00000.npy")
        put(settings, storage, f"jobs/{running}/{attempt}/report.json")
    put(settings, storage, f"jobs/{running}/checkpoints/fit")
    put(settings, storage, f"{artifacts.steps_prefix(running, 'scoring')}/000000-1")
    done = job_of(database, JobState.SUCCEEDED, kind="sanitise")
    put(settings, storage, f"jobs/{done}/1/report.json")
    left = put(settings, storage, f"jobs/{done}/checkpoints/fit")
    of_step = put(settings, storage, f"{artifacts.steps_prefix(done, 'scoring')}/000000-1")  # of one that woke late
    gone = [f"datasets/signs/{running}-1/shard-00000.npy", f"jobs/{running}/1/report.json", left, of_step]
    assert removed(database, storage, settings) == sorted(gone)


def test_what_attempts_share_stays_as_long_as_there_may_be_another(
    database: Database, storage: LocalStorage, settings: Settings
) -> None:
    gone = []
    for state in (JobState.RUNNING, JobState.FAILED, JobState.SUCCEEDED):
        job_id = job_of(database, state, attempt=2)
        key = put(settings, storage, f"{artifacts.shared_prefix('datasets', 'signs', job_id, 'd' * 64)}/000000-1.npy")
        gone += [key] if state == JobState.SUCCEEDED else []  # of a resolution that was not the right one
    assert removed(database, storage, settings) == gone


@pytest.mark.parametrize("tenant", ["default", "acme"])
def test_shards_that_a_published_version_does_not_name_go(
    database: Database, storage: LocalStorage, settings: Settings, tenant: str
) -> None:
    """Those of an attempt at a step that was taken for lost: the version is made of what the other attempt wrote."""
    ours, seen = TenantStorage(storage, tenant), database.of(tenant)
    with seen.transaction() as session:
        job = add_job(session, "ingest", inputs={}, params={}, max_attempts=3)
        job.state, job.attempt, job.finished_at = JobState.SUCCEEDED, 1, now()
    prefix = artifacts.shared_prefix("datasets", "signs", job.id, "d" * 64)
    for attempt in (1, 2):
        writer = PartWriter(ours, prefix, f"000000-{attempt}", (8, 8, 1))
        writer.add(np.zeros((8, 8, 1), np.uint8), Row("1", "a/1.png", 0, 8, 8))
        part = writer.close()
    about = {"job_id": job.id, "prefix": prefix, "written": unite(ours, prefix, [part], 2), "source_format": "npz"}
    with seen.transaction() as session:
        row = datasets.publish(session, "signs", classes=["a", "b"], image_shape=(8, 8, 1), **about)
    for entry in storage.list():
        age(settings, entry.key)
    ours.write(f"{prefix}/000000-3-00000.npy", b"of one that woke a moment ago")
    (gone,) = removed(database, storage, settings)
    assert gone.endswith(f"{prefix}/000000-1-00000.npy")
    assert datasets.reader(ours, row).shard(0).shape == (1, 8, 8, 1)
    assert ours.exists(f"{prefix}/000000-3-00000.npy")


def test_steps_of_a_job_that_nobody_retries_are_forgotten(
    database: Database, storage: LocalStorage, settings: Settings
) -> None:
    old, fresh = (job_of(database, JobState.FAILED) for _ in range(2))
    with database.transaction() as session:
        repository.find(session, old).finished_at = now() - LONG_AGO
        session.add_all(Phase(job_id=job_id, name="scoring", state="open", given={}) for job_id in (old, fresh))
    collect(database, storage, settings, dry_run=True)
    collect(database, storage, settings, dry_run=False)
    with database.session() as session:
        assert session.scalars(select(Phase.job_id)).all() == [fresh]


def test_an_upload_stays_as_long_as_its_job_may_be_retried(
    database: Database, storage: LocalStorage, settings: Settings
) -> None:
    for name, state in {"made": JobState.SUCCEEDED, "failed": JobState.FAILED, "old": JobState.FAILED}.items():
        job_id = job_of(database, state, upload=f"uploads/{name}")
        put(settings, storage, f"uploads/{name}")
        if name == "old":
            with database.transaction() as session:
                repository.find(session, job_id).finished_at = now() - LONG_AGO
    put(settings, storage, "uploads/nobody")
    assert removed(database, storage, settings) == ["uploads/nobody", "uploads/old"]


def test_a_write_that_may_still_go_on_stays_however_little_is_kept(
    database: Database, storage: LocalStorage, settings: Settings
) -> None:
    hasty = settings.model_copy(update={"keep_unreferenced_hours": 1.0})
    manifest = settings.storage / "datasets" / ".partial-manifest"
    manifest.parent.mkdir(parents=True)
    manifest.write_bytes(b"")
    for hours, left in ((5, True), (25, False)):
        age(settings, "datasets/.partial-manifest", timedelta(hours=hours))
        collect(database, storage, hasty, dry_run=False)
        assert manifest.exists() is left


def test_what_is_young_stays_whatever_it_is(database: Database, storage: LocalStorage, settings: Settings) -> None:
    storage.write("uploads/just-arriving", b"x")
    (settings.storage / "uploads" / ".partial-young").write_bytes(b"x")
    (settings.storage / "uploads" / ".partial-old").write_bytes(b"x")
    age(settings, "uploads/.partial-old")
    assert [unit.prefix for unit in collect(database, storage, settings, dry_run=False)] == ["uploads/.partial-old"]
    assert sorted(path.name for path in (settings.storage / "uploads").iterdir()) == [".partial-young", "just-arriving"]


def states(settings: Settings) -> dict[str, State]:
    return {finding.part: finding.state for finding in look_over(settings)}


@pytest.mark.slow
def test_the_doctor_says_what_is_broken_and_what_to_do(settings: Settings, database: Database) -> None:
    found = states(settings)
    assert [part for part, state in found.items() if state == State.BROKEN] == ["broker", "workers"]
    with database.transaction() as session:
        session.add(Worker(name="w", seen_at=now()))
    assert states(settings)["workers"] == State.WELL
    assert all(finding.mend for finding in look_over(settings) if finding.state != State.WELL)


def test_the_doctor_knows_an_old_schema_and_a_database_that_is_away(settings: Settings, tmp_path: Path) -> None:
    migrate(settings, revision="0002")
    assert states(settings)["schema"] == State.BROKEN
    away = settings.model_copy(update={"database_url": f"postgresql+psycopg://w@/w?host={tmp_path}"})
    found = states(away)
    assert {found[part] for part in ("database", "schema", "workers", "jobs")} == {State.BROKEN}
    assert found["storage"] == State.WELL


def test_the_commands_do_it_all(
    settings: Settings, database: Database, storage: LocalStorage, lived_in: str, tmp_path: Path
) -> None:
    put(settings, storage, "uploads/nobody")
    run, home = CliRunner(), f"--home={settings.home}"
    said = run.invoke(app, ["gc", home, "--dry-run"])
    assert "uploads/nobody" in said.output and storage.exists("uploads/nobody")
    assert run.invoke(app, ["gc", home]).exit_code == 0 and not storage.exists("uploads/nobody")
    assert run.invoke(app, ["backup", str(tmp_path / "b"), home]).exit_code == 0
    said = run.invoke(app, ["restore", str(tmp_path / "b"), f"--home={tmp_path / 'new'}"])
    assert said.exit_code == 0 and "3 values" in said.output
    said = run.invoke(app, ["restore", str(tmp_path / "b"), home])
    assert said.exit_code == 1 and "empty" in said.output
    said = run.invoke(app, ["doctor", home, "--json"])
    assert said.exit_code == 1
    assert {finding["part"] for finding in orjson.loads(said.stdout)} >= {"database", "broker", "clock", "disk"}
