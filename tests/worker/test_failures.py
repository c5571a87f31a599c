"""What a job says where a part of the installation fails under it: which one, and what to do."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from models.specs import DistillSpec
from service.datasets.sample import Limits
from service.datasets.tars import TarArchive
from service.db import Database
from service.disk import ScratchFull
from service.settings import Settings
from service.storage import LocalStorage, StorageUnavailable
from service.storage.s3 import Place, S3Storage
from tests.parts import S3Server
from tests.service.uploads import tar_of
from worker.failures import told
from worker.ranks import fitting_together

LARGEST = 256 * 1024


@contextmanager
def little_room() -> Iterator[None]:
    """No file may grow beyond `LARGEST`: what writes more finds no room, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def failing(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is told)
        return error
    raise AssertionError("it went well")


def test_a_database_that_is_away_is_named(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'nowhere' / 'winnow.db'}")

    def ask() -> None:
        with database.session() as session:
            session.execute(text("SELECT 'a secret'"))

    found = told(failing(ask), "The sanitise step")
    assert found["code"] == "database_unavailable"
    assert "unable to open database file" in found["message"] and "retry" in found["message"]
    assert "secret" not in found["message"]
    database.close()


def test_a_query_that_is_wrong_is_a_fault_of_ours(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'winnow.db'}")
    database.create_all()

    def insert() -> None:
        with database.transaction() as session:
            session.execute(text("INSERT INTO tenants (name) VALUES (NULL)"))

    assert told(failing(insert), "The sanitise step")["code"] == "internal"
    database.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(number: int) -> None:
    found = told(OSError(number, os.strerror(number)), "The ingest step")
    assert found["code"] == "scratch_full"
    assert tempfile.gettempdir() in found["message"] and "retry" in found["message"]
    assert told(OSError(errno.EIO, "Input/output error"), "The ingest step")["code"] == "internal"


def test_an_archive_that_does_not_fit_into_tmpdir_says_so(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(tar_of({"a/1.png": os.urandom(LARGEST * 2)}, "w:gz"))
    with (tmp_path / "upload").open("rb") as file, little_room(), pytest.raises(ScratchFull, match="TMPDIR"):
        TarArchive(file, Limits.of(Settings()), "gz")


def test_ranks_that_do_not_fit_into_tmpdir_say_so() -> None:
    images, labels = np.zeros((LARGEST, 2, 1, 1), np.uint8), np.zeros(LARGEST, np.int64)
    with (
        little_room(),
        pytest.raises(ScratchFull, match="TMPDIR"),
        fitting_together(2, images, labels, DistillSpec(), num_classes=2),
    ):
        raise AssertionError("it went well")


def test_a_value_of_a_bucket_that_does_not_fit_into_tmpdir_says_so(s3: S3Server) -> None:
    place = Place.of(f"s3://{s3.make_bucket()}", endpoint=s3.endpoint, region="eu-central-1")
    storage = S3Storage(place)
    storage.write("uploads/one", bytes(LARGEST * 2))
    with little_room(), pytest.raises(ScratchFull, match="TMPDIR"):
        storage.open_local("uploads/one")


def test_an_array_that_does_not_fit_into_the_storage_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "storage")

    def write() -> None:
        with storage.writing("datasets/signs/1/shard-00000.npy") as file:
            np.save(file, np.zeros(LARGEST * 2, np.uint8), allow_pickle=False)

    with little_room(), pytest.raises(StorageUnavailable, match="full"):
        write()
    assert not [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
    ],
)
def test_whatever_says_that_there_is_no_memory_it_is_called_so(error: Exception) -> None:
    assert told(error, "The step")["code"] == "out_of_memory"


def test_where_no_thread_can_be_started_the_user_is_pointed_at_both_limits() -> None:
    message = told(RuntimeError("can't start new thread"), "The step")["message"]
    assert "memory" in message
    assert "pids" in message


def test_any_other_error_is_told_with_its_type() -> None:
    failed = told(RuntimeError("no such luck"), "The step")
    assert failed == {"code": "internal", "message": "The step broke: RuntimeError: no such luck"}
