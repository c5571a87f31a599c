"""A backup is the database row by row and every stored value, in a folder or bucket; each restores into either kind.

The rows are read first, in one snapshot; values are written before the rows that refer to them and do not change, so
what is copied afterwards holds everything that the rows need. `backup.json` is written last: without it there is none.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import orjson
from alembic.migration import MigrationContext
from sqlalchemy import JSON, Connection, DateTime, LargeBinary, MetaData, func, insert, select
from sqlalchemy import Table as SqlTable
from sqlalchemy.engine import Engine

from service.db import Database, migrate, now
from service.errors import Conflict, Corrupt, NotFound
from service.settings import Settings
from service.storage import Storage
from service.tables import Table

MANIFEST = "backup.json"
ROWS_AT_ONCE = 500
COPY_BYTES = 1024 * 1024
MADE_BY_MIGRATIONS = ("audit_head", "tenants", "workers", "alembic_version")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Totals:
    """What was copied, and what was there already."""

    rows: int
    values: int
    size: int
    kept: int


def back_up(database: Database, storage: Storage, target: Storage, say: Say) -> Totals:
    """Into `target`, which may hold an older backup of the same installation: values that it has are not copied again.

    A value counts as there if it has the same size: what Winnow stores never changes under its key.
    """
    if target.exists(MANIFEST):
        target.delete_prefix(MANIFEST)
    tables, revision = _dump(database.engine, target)
    rows = sum(each["rows"] for each in tables.values())
    say(f"{rows} rows of {len(tables)} tables")
    there = {entry.key: entry.size for entry in target.list("values")}
    values, size, kept = 0, 0, 0
    for entry in storage.list():
        if not _lasting(entry.key):
            continue
        values, size = values + 1, size + entry.size
        if there.get(f"values/{entry.key}") == entry.size:
            kept += 1
            continue
        try:
            _copy(storage, entry.key, target, f"values/{entry.key}")
        except NotFound:  # removed since it was listed: nothing in the snapshot refers to it
            values, size = values - 1, size - entry.size
    told = {"made_at": now().isoformat(), "revision": revision, "tables": tables, "values": values, "bytes": size}
    target.write(MANIFEST, orjson.dumps(told, option=orjson.OPT_INDENT_2))
    return Totals(rows, values, size, kept)


def restore(settings: Settings, storage: Storage, source: Storage, say: Say) -> Totals:
    """Into an empty database and storage. Raises NotFound, Corrupt or Conflict before anything is changed."""
    if not source.exists(MANIFEST):
        raise NotFound(f"There is no complete backup there: it has no {MANIFEST}.", code="no_backup")
    told = orjson.loads(source.read(MANIFEST))
    database = Database.open(settings.database_url)
    try:
        migrate(settings, revision=told["revision"])
        _refuse_filled(database.engine)
        for name, facts in told["tables"].items():
            _check(source, name, facts["sha256"])
        values, size = 0, 0
        for entry in source.list("values"):
            _copy(source, entry.key, storage, entry.key.removeprefix("values/"))
            values, size = values + 1, size + entry.size
        if values < told["values"]:
            raise Corrupt(
                f"The backup holds {values} values; it was made with {told['values']}.", code="backup_damaged"
            )
        say(f"{values} values")
        rows = _load(database.engine, source, list(told["tables"]))
    finally:
        database.close()
    migrate(settings)
    return Totals(rows, values, size, 0)


def _dump(engine: Engine, target: Storage) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Every table as lines of JSON, all of them as they were at one moment."""
    told: dict[str, dict[str, Any]] = {}
    if engine.dialect.name == "postgresql":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        for table in Table.metadata.sorted_tables:
            digest, count = hashlib.sha256(), 0
            with target.writing(_key_of(table.name)) as file:
                for row in _rows(connection, table):
                    line = orjson.dumps(row) + b"\n"
                    digest.update(line)
                    file.write(line)
                    count += 1
            told[str(table.name)] = {"rows": count, "sha256": digest.hexdigest()}
    return told, revision


def _rows(connection: Connection, table: SqlTable) -> Iterator[dict[str, Any]]:
    query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=ROWS_AT_ONCE)
    for row in connection.execute(query):
        yield {str(name): _plain(value) for name, value in row._mapping.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _check(source: Storage, name: str, sha256: str) -> None:
    digest = hashlib.sha256()
    with closing(source.open(_key_of(name))) as file:
        while block := file.read(COPY_BYTES):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise Corrupt(f"{_key_of(name)} of the backup is not what was written.", code="backup_damaged")


def _refuse_filled(engine: Engine) -> None:
    tables = _tables(engine)
    with engine.connect() as connection:
        filled = [
            name
            for name, table in tables.items()
            if name not in MADE_BY_MIGRATIONS and connection.scalar(select(func.count()).select_from(table))
        ]
    if filled:
        raise Conflict(
            f"The database holds rows already ({', '.join(filled)}). Restore into an empty one, before its gateway "
            "has started for the first time.",
            code="not_empty",
        )


def _load(engine: Engine, source: Storage, names: list[str]) -> int:
    """All of it in one transaction: the database is restored, or as empty as before."""
    tables, rows = _tables(engine), 0
    with engine.execution_options(winnow_write=True).begin() as connection:
        for name in MADE_BY_MIGRATIONS[:-1]:
            if name in tables:
                connection.execute(tables[name].delete())
        for name in names:
            with closing(source.open_local(_key_of(name))) as lines:
                while batch := [_typed(tables[name], orjson.loads(line)) for line in islice(lines, ROWS_AT_ONCE)]:
                    connection.execute(insert(tables[name]), batch)
                    rows += len(batch)
        _count_on(connection, tables)
    return rows


def _tables(engine: Engine) -> dict[str, SqlTable]:
    """As the database has them: those of an older backup are not those of the code."""
    found = MetaData()
    found.reflect(engine)
    for table in found.tables.values():
        for column in table.columns:
            if isinstance(column.type, JSON):
                column.type.none_as_null = True
    return {str(name): table for name, table in found.tables.items()}


def _typed(table: SqlTable, row: dict[str, Any]) -> dict[str, Any]:
    return {name: _of_type(table.columns[name].type, value) for name, value in row.items()}


def _of_type(kind: Any, value: Any) -> Any:
    if value is not None and isinstance(kind, DateTime):
        return datetime.fromisoformat(value)
    return base64.b64decode(value) if value is not None and isinstance(kind, LargeBinary) else value


def _count_on(connection: Connection, tables: dict[str, SqlTable]) -> None:
    """PostgreSQL counts rows in sequences, which know nothing of rows that came with their numbers."""
    if connection.dialect.name != "postgresql":
        return
    for table in tables.values():
        for column in table.primary_key.columns:
            sequence = connection.scalar(select(func.pg_get_serial_sequence(table.name, column.name)))
            if sequence is not None and (last := connection.scalar(select(func.max(column)))) is not None:
                connection.execute(select(func.setval(sequence, last)))


def _copy(source: Storage, key: str, target: Storage, to: str) -> None:
    with closing(source.open_local(key)) as reader, target.writing(to) as writer:
        while block := reader.read(COPY_BYTES):
            writer.write(block)


def _lasting(key: str) -> bool:
    return not key.startswith("health/") and "/checkpoints/" not in key


def _key_of(table: str) -> str:
    return f"database/{table}.jsonl"
