"""What only several writers show, on SQLite and on PostgreSQL: no number is given twice, none left out."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from service.audit import STACK, Action, append, verify
from service.auth import authenticate, ensure_admin_key
from service.datasets import repository as datasets
from service.datasets.shard_writing import Written
from service.db import Database, migrate
from service.jobs.create import add_job
from service.registry import repository as registry
from service.settings import Settings
from service.tables import DatasetVersion, ModelAlias
from tests.parts import PostgresServer

AT_ONCE = 8


def at_once(work: Callable[[int], object]) -> None:
    """Eight threads that begin together; what any of them raises is raised."""
    barrier = threading.Barrier(AT_ONCE)

    def begin(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(begin, range(AT_ONCE)))


@pytest.mark.slow
def test_gateways_that_start_at_once_prepare_one_database(settings: Settings) -> None:
    env = {**os.environ, "WINNOW_HOME": str(settings.home), "WINNOW_DATABASE_URL": settings.database_url}
    command = [sys.executable, "-m", "service.prepare"]
    started = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE) for _ in range(3)]
    complaints = [process.communicate()[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], complaints
    database = Database.open(settings.database_url)
    assert "admin" in authenticate(database, (settings.home / "admin.key").read_text()).scopes
    database.close()


def test_a_gateway_that_starts_again_keeps_the_key(settings: Settings) -> None:
    migrate(settings)
    assert ensure_admin_key(settings) == ensure_admin_key(settings)


def test_versions_published_at_once_are_counted_without_gap(database: Database) -> None:
    def publish(number: int) -> None:
        with database.transaction() as session:
            job = add_job(session, "ingest", inputs={}, params={}, max_attempts=1)
            datasets.publish(
                session,
                "signs",
                job_id=job.id,
                prefix=f"p{number}",
                written=Written("d", 1, [1]),
                classes=["a"],
                image_shape=(8, 8, 1),
                source_format="npz",
            )

    at_once(publish)
    with database.session() as session:
        assert sorted(row.version for row in session.query(DatasetVersion)) == list(range(1, AT_ONCE + 1))


def test_an_alias_moved_by_many_at_once_points_at_one_of_theirs(database: Database) -> None:
    with database.transaction() as session:
        for _ in range(AT_ONCE):
            job = add_job(session, "distill", inputs={}, params={}, max_attempts=1)
            registry.register(session, "m", job_id=job.id, prefix="p", files={}, card={})

    def move(number: int) -> None:
        with database.transaction() as session:
            registry.set_alias(session, "m", "champion", version=number + 1)

    at_once(move)
    with database.session() as session:
        assert session.query(ModelAlias).one().version in range(1, AT_ONCE + 1)


def test_entries_told_at_once_make_one_chain(database: Database) -> None:
    def tell(number: int) -> None:
        for _ in range(3):
            with database.transaction() as session:
                append(session, STACK, Action.KEY_CREATED, f"key {number}")

    at_once(tell)
    with database.session() as session:
        verified = verify(session)
    assert (verified.entries, verified.fault) == (3 * AT_ONCE, None)


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log"])
def test_the_database_refuses_to_change_what_was_told(database: Database, statement: str) -> None:
    with database.transaction() as session:
        append(session, STACK, Action.KEY_CREATED, "key")
    with pytest.raises(DatabaseError, match="append-only"), database.transaction() as session:
        session.execute(text(statement))


@pytest.mark.parametrize("url", ["postgres://u:p@h/d", "postgresql://u:p@h/d", "postgresql+psycopg://u:p@h/d"])
def test_postgresqls_own_urls_are_understood(url: str) -> None:
    assert Settings(database_url=url).resolved().database_url == "postgresql+psycopg://u:p@h/d"


def test_a_database_without_an_encoding_speaks_utf8_with_us(postgres: PostgresServer) -> None:
    postgres.run("CREATE DATABASE bare ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    opened = Database.open(postgres.url("bare"))
    with opened.session() as session:
        assert session.scalar(text("SELECT 'é'")) == "é"
    opened.close()
    postgres.drop_database("bare")
