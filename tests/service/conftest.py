"""A migrated database, a storage folder, and rows to work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.datasets import repository as datasets
from service.datasets.shard_writing import ShardWriter
from service.datasets.shards import Row
from service.db import Database, migrate
from service.jobs.create import add_job
from service.settings import Settings
from service.storage import LocalStorage
from tests.parts import PostgresServer
from tests.service.migrated import migrated

ON_BOTH = {"test_backup", "test_databases", "test_jobs", "test_migrations", "test_steps"}
"""Modules whose tests run on SQLite and on PostgreSQL, for what they are about is what the database does. Of other
modules, the tests do that are marked `both_databases`: those whose statements a database might answer otherwise."""

ON_BOTH_SLOWLY = {"test_bundle", "test_review", "test_submit"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database_url" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        kinds: list[Any] = ["sqlite"]
        if module in ON_BOTH or metafunc.definition.get_closest_marker("both_databases"):
            kinds.append("postgresql")
        if module in ON_BOTH_SLOWLY:
            kinds.append(pytest.param("postgresql", marks=pytest.mark.slow))
        metafunc.parametrize("database_url", kinds, indirect=True)


@pytest.fixture(scope="session")
def migrated_template(postgres: PostgresServer) -> str:
    """The name of a database that is made once, to be copied."""
    name = postgres.make_database()
    migrate(Settings(database_url=postgres.url(name)).resolved())
    return name


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of an empty database, on PostgreSQL of a migrated one where `database` is wanted; "" for SQLite in the home."""
    if request.param == "sqlite":
        yield ""
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    wants_tables = "database" in request.fixturenames
    name = server.make_database(*([request.getfixturevalue("migrated_template")] if wants_tables else []))
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    home = tmp_path / "home"
    return Settings(home=home, database_url=database_url, redis_url="redis://127.0.0.1:1/0").resolved()


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    opened = Database.open(migrated(settings).database_url)
    yield opened
    opened.close()


@pytest.fixture
def storage(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.storage)


MakeDataset = Callable[..., str]


@pytest.fixture
def make_dataset(database: Database, storage: LocalStorage) -> MakeDataset:
    """make_dataset(name, counts={"a": 5, "b": 5}, shape=(8, 8, 1)) writes a version and returns its reference."""

    def make(
        name: str, counts: dict[str, int], shape: tuple[int, int, int] = (8, 8, 1), group: int | None = None
    ) -> str:
        """group: so many images of a class show one object; None where nobody says."""
        rng = np.random.default_rng(0)
        prefix = f"datasets/{name}/{rng.integers(1 << 30)}-{len(counts)}-{sum(counts.values())}"
        with ShardWriter(storage, prefix, shape, len(counts)) as writer:
            for label, count in enumerate(counts.values()):
                for index in range(count):
                    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                    of = None if group is None else f"{label}-{index // group}"
                    path = f"{label}/{index}.png"
                    writer.add(pixels, Row(f"{label}-{index}", path, label, shape[1], shape[0], of))
            written = writer.close()
        with database.transaction() as session:
            job = add_job(session, "ingest", inputs={}, params={}, max_attempts=3)
            job.state = "succeeded"
            row = datasets.publish(
                session,
                name,
                job_id=job.id,
                prefix=prefix,
                written=written,
                classes=list(counts),
                image_shape=shape,
                source_format="npz",
            )
            return datasets.reference_of(row)

    return make
