"""Set before anything imports torch: OpenMP threads that spin make tests ten times slower on a busy machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.parts import PostgresMissing, PostgresServer, S3Server, postgres_server, s3_server

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1") != "1":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores


LONGEST_FIRST = ("integration", "models", "worker")
"""Folders whose files take long: begun last, one would keep a single process busy after the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=rank)


SHARING = ("tests/integration/", "tests/worker/test_report")
"""Files that share what is made once for a process: a running stack, rendered pages."""


class Together(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """One process takes all tests of a file, and of those that share something all files."""

    def _split_scope(self, nodeid: str) -> str:
        return next((start for start in SHARING if nodeid.startswith(start)), nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Any:
    return Together(config, log)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server; its credentials are in the environment."""
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; skipped where none is installed, unless CI says that one must be."""
    try:
        with postgres_server() as server:
            yield server
    except PostgresMissing as missing:
        if os.environ.get("WINNOW_TEST_NO_SKIP"):
            raise
        pytest.skip(str(missing))
