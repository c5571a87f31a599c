"""The database: engine, the two kinds of session, migrations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from service.settings import Settings
from service.tables import Table

BUSY_TIMEOUT_MS = 15_000


def now() -> datetime:
    """The present moment in UTC; every stored time comes from here."""
    return datetime.now(UTC)


class Database:
    """A handle to the database. `session` reads; `transaction` writes and commits, or rolls back on any error."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, url: str, *, pooled: bool = True) -> Database:
        """pooled=False closes every connection after use: for a process that forks."""
        pool = {} if pooled else {"poolclass": NullPool}
        pre_ping = not url.startswith("sqlite")
        engine = create_engine(url, pool_pre_ping=pre_ping, hide_parameters=True, **pool)  # errors go into logs
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        return cls(engine)

    @contextmanager
    def session(self) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        engine = self.engine
        if engine.dialect.name == "sqlite":
            engine = engine.execution_options(winnow_write=True)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def create_all(self) -> None:
        """Make the tables without migrations; for tests of parts that need no history."""
        Table.metadata.create_all(self.engine)

    def close(self) -> None:
        self.engine.dispose()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's own BEGIN below, not the driver's late one
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        # A writer takes the lock at once: a read that turns into a write would fail where another wrote in between.
        write = connection.get_execution_options().get("winnow_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def migrate(settings: Settings) -> None:
    """Bring the database to the newest schema."""
    if settings.database_url.startswith("sqlite:///"):
        Path(settings.database_url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    database = Database.open(settings.database_url)
    try:
        with database.engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        database.close()
