"""The migrations make the tables that the code has, and keep the keys of an older home."""

from __future__ import annotations

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import text

import service.migrations
from service.auth import authenticate, digest_of, ensure_admin_key
from service.db import Database, migrate, migrating
from service.errors import Unauthorized
from service.settings import Settings
from service.tables import Table


def alembic(database: Database, action: str, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", next(iter(service.migrations.__path__)))
    with migrating(database) as connection:
        config.attributes["connection"] = connection
        getattr(command, action)(config, revision)


def test_the_migrated_tables_are_those_of_the_code(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_an_older_homes_admin_key_goes_on_working_and_back(settings: Settings) -> None:
    settings.home.mkdir()
    (settings.home / "admin.key").write_text("wk_older")
    database = Database.open(settings.database_url)
    alembic(database, "upgrade", "0002")
    row = {"digest": digest_of("wk_older")}
    with database.transaction() as session:
        session.execute(text("INSERT INTO api_keys VALUES (:digest, 'admin', '2026-01-01 00:00:00.000000')"), row)
    migrate(settings)
    assert authenticate(database, "wk_older").scopes == ["admin"]
    assert ensure_admin_key(settings) == "wk_older"
    assert authenticate(database, "wk_older").prefix == "wk_older"
    with pytest.raises(Unauthorized):
        authenticate(database, "wk_other")
    alembic(database, "downgrade", "0002")
    with database.session() as session:
        assert session.execute(text("SELECT digest, label FROM api_keys")).all() == [(row["digest"], "admin")]
    alembic(database, "downgrade", "base")
    database.close()
