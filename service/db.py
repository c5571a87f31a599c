"""The database: engine, the two kinds of session, migrations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError, TimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from service.errors import Corrupt
from service.jobs import tables as _job_tables  # noqa: F401 (so that all tables are known here)
from service.settings import Settings
from service.tables import Table
from service.tenancy import TenantSession
from service.webhooks import tables as _webhook_tables  # noqa: F401 (the same)

BUSY_TIMEOUT_MS = 15_000
PAGES_KIB = 512
"""Of SQLite's file that each connection keeps to itself, of what the kernel has in memory anyhow: SQLite's own 2 MiB
would be 30 for a whole pool."""
PRAGMAS = (
    *("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"),
    *(f"busy_timeout={BUSY_TIMEOUT_MS}", f"cache_size=-{PAGES_KIB}"),
)


def now() -> datetime:
    """The present moment in UTC; every stored time comes from here."""
    return datetime.now(UTC)


def is_away(error: SQLAlchemyError) -> bool:
    """Whether the database could not be reached, was lost, is busy or full: what passes without a change of ours."""
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return lost or isinstance(error, OperationalError | InterfaceError | TimeoutError)


class Database:
    """A handle to the database. `session` reads; `transaction` writes and commits, or rolls back on any error.

    With a tenant, both see what is that tenant's only; without one they see everything: the stack's own upkeep.
    """

    def __init__(self, engine: Engine, tenant: str | None = None) -> None:
        self.engine = engine
        self.tenant = tenant

    def of(self, tenant: str) -> Database:
        """The same database as this tenant sees it; whoever acts for a tenant uses no other."""
        return Database(self.engine, tenant)

    @classmethod
    def open(cls, url: str, *, pooled: bool = True) -> Database:
        """pooled=False closes every connection after use: for a process that forks."""
        pool: dict[str, Any] = {} if pooled else {"poolclass": NullPool}
        if url.startswith("postgresql"):
            pool["connect_args"] = {"client_encoding": "utf8"}  # a database made as SQL_ASCII would answer in bytes
        pre_ping = not url.startswith("sqlite")
        engine = create_engine(url, pool_pre_ping=pre_ping, hide_parameters=True, **pool)  # errors go into logs
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        return cls(engine)

    @contextmanager
    def session(self) -> Iterator[Session]:
        with self._open(self.engine) as session:
            yield session

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        engine = self.engine
        if engine.dialect.name == "sqlite":
            engine = engine.execution_options(winnow_write=True)
        with self._open(engine) as session, session.begin():
            yield session

    def _open(self, engine: Engine) -> Session:
        if self.tenant is None:
            return Session(engine, expire_on_commit=False)
        return TenantSession(engine, tenant=self.tenant, expire_on_commit=False)

    def create_all(self) -> None:
        """Make the tables without migrations; for tests of parts that need no history."""
        Table.metadata.create_all(self.engine)

    def close(self) -> None:
        self.engine.dispose()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's own BEGIN below, not the driver's late one
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        # A writer takes the lock at once: a read that turns into a write would fail where another wrote in between.
        write = connection.get_execution_options().get("winnow_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def migrating(database: Database) -> Iterator[Connection]:
    """A connection to change tables on. SQLite changes a table by making it anew, which foreign keys would forbid, and
    they can be put aside outside of a transaction only: what they hold together is looked at before the end."""
    is_sqlite = database.engine.dialect.name == "sqlite"
    with database.engine.execution_options(winnow_write=True).connect() as connection:
        driver: Any = connection.connection.driver_connection
        if is_sqlite:
            driver.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                yield connection
                if is_sqlite and (broken := driver.execute("PRAGMA foreign_key_check").fetchone()):
                    raise Corrupt(f"After migrating, a row of {broken[0]} points at none of {broken[2]}.")
        finally:
            if is_sqlite:
                driver.execute("PRAGMA foreign_keys=ON")


def migrate(settings: Settings, *, revision: str = "head") -> None:
    """Bring the database to the newest schema, or to an earlier one on the way there."""
    if settings.database_url.startswith("sqlite:///"):
        Path(settings.database_url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    config = _alembic()
    database = Database.open(settings.database_url)
    try:
        with migrating(database) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    finally:
        database.close()


def revisions(database: Database) -> tuple[str | None, str | None]:
    """(the schema that the database has, the newest there is)."""
    with database.engine.connect() as connection:
        present = MigrationContext.configure(connection).get_current_revision()
    return present, ScriptDirectory.from_config(_alembic()).get_current_head()


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config
