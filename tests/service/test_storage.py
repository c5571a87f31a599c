"""One contract, held to every storage: what is visible, when, and what is said when it cannot be had."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from service.errors import InvalidInput, NotFound
from service.settings import Settings
from service.storage import LocalStorage, Storage, StorageUnavailable, open_storage
from service.storage.s3 import PART_BYTES, Place
from tests.parts import S3Server

MORE_THAN_A_PART = random.Random(0).randbytes(PART_BYTES + 12_345)
Opened = Callable[[], Storage]


@pytest.fixture(params=["folder", "bucket"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens the same storage, again and again: as every process of a cluster does."""
    if request.param == "folder":
        return lambda: LocalStorage(tmp_path / "storage")
    server: S3Server = request.getfixturevalue("s3")
    url = f"s3://{server.make_bucket()}/some/where"
    settings = Settings(storage_url=url, s3_endpoint=server.endpoint, s3_region="eu-central-1")
    return lambda: open_storage(settings)


@pytest.fixture
def storage(opened: Opened) -> Storage:
    return opened()


@pytest.mark.parametrize("data", [b"", b"x", MORE_THAN_A_PART], ids=["empty", "byte", "parts"])
def test_what_is_written_is_read_by_whoever_asks(opened: Opened, data: bytes) -> None:
    opened().write("a/b", data)
    other = opened()
    assert other.read("a/b") == data
    assert (other.exists("a/b"), other.size("a/b")) == (True, len(data))
    with closing(other.open("a/b")) as file:
        assert file.read() == data


def test_a_write_replaces_the_whole_value(storage: Storage) -> None:
    storage.write("a", b"long and old")
    storage.write("a", b"new")
    assert storage.read("a") == b"new"


def test_a_value_is_visible_only_once_it_is_whole(opened: Opened) -> None:
    writer, reader = opened(), opened()
    with writer.writing("a/big") as file:
        for start in range(0, len(MORE_THAN_A_PART), 1 << 20):
            file.write(MORE_THAN_A_PART[start : start + (1 << 20)])
        assert not reader.exists("a/big")
        assert list(reader.list()) == []
    assert reader.read("a/big") == MORE_THAN_A_PART


@pytest.mark.parametrize("size", [10, len(MORE_THAN_A_PART)], ids=["small", "parts"])
def test_a_write_that_breaks_leaves_what_was_there(storage: Storage, size: int) -> None:
    storage.write("a", b"before")
    with pytest.raises(ZeroDivisionError), storage.writing("a") as file:
        file.write(MORE_THAN_A_PART[:size])
        raise ZeroDivisionError
    assert storage.read("a") == b"before"
    assert [entry.key for entry in storage.list()] == ["a"]
    assert list(storage.unfinished()) == []


def test_an_upload_that_breaks_is_taken_back_from_the_bucket(s3: S3Server) -> None:
    bucket = s3.make_bucket()
    storage = open_storage(Settings(storage_url=f"s3://{bucket}", s3_endpoint=s3.endpoint, s3_region="eu-central-1"))
    with pytest.raises(ZeroDivisionError), storage.writing("a") as file:
        file.write(MORE_THAN_A_PART)
        assert s3.uploads_under_way(bucket) == 1
        raise ZeroDivisionError
    assert s3.uploads_under_way(bucket) == 0


def test_parts_are_read_without_the_rest(storage: Storage) -> None:
    storage.write("a", MORE_THAN_A_PART)
    rng = random.Random(1)
    with closing(storage.open("a")) as file:
        for _ in range(5):
            start, count = rng.randrange(len(MORE_THAN_A_PART)), rng.randrange(100_000)
            file.seek(start)
            assert file.read(count) == MORE_THAN_A_PART[start : start + count]
        assert file.seek(-10, os.SEEK_END) == len(MORE_THAN_A_PART) - 10
        assert (file.read(), file.read()) == (MORE_THAN_A_PART[-10:], b"")


def test_scattered_parts_are_read_at_once_in_the_order_they_are_asked_for(storage: Storage) -> None:
    storage.write("a", MORE_THAN_A_PART)
    rng = random.Random(1)
    begins = [rng.randrange(len(MORE_THAN_A_PART) - 100) for _ in range(50)]
    ranges = [*((begin, begin + rng.randrange(1, 100)) for begin in begins), (5, 1_000_000), (5, 6)]
    assert storage.read_ranges("a", ranges) == [MORE_THAN_A_PART[start:stop] for start, stop in ranges]
    assert storage.read_ranges("a", []) == []
    with pytest.raises(NotFound):
        storage.read_ranges("b", [(0, 1)])


def test_a_local_copy_is_a_file_that_other_processes_can_read(storage: Storage) -> None:
    storage.write("a", MORE_THAN_A_PART)
    with closing(storage.open_local("a")) as file:
        assert os.pread(file.fileno(), 100, 5000) == MORE_THAN_A_PART[5000:5100]
        assert file.read() == MORE_THAN_A_PART


def test_libraries_can_write_to_it(storage: Storage) -> None:
    pixels = np.arange(1000, dtype=np.uint8).reshape(10, 100)
    table = pa.table({"n": list(range(5000))})
    with storage.writing("pixels.npy") as file:
        np.save(file, pixels)
    with storage.writing("table.arrow") as file, ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    with closing(storage.open("pixels.npy")) as file:
        assert np.array_equal(np.load(file), pixels)
    with closing(storage.open("table.arrow")) as file:
        assert ipc.open_file(pa.PythonFile(file, "r")).read_all() == table


@pytest.mark.parametrize("call", ["read", "size", "open", "open_local"])
def test_what_is_not_there_is_said_by_name(storage: Storage, call: str) -> None:
    with pytest.raises(NotFound, match="nothing at no/where"):
        getattr(storage, call)("no/where")
    assert not storage.exists("no/where")


def test_a_prefix_is_deleted_with_all_under_it_and_nothing_beside_it(storage: Storage) -> None:
    for key in ("a/b/1", "a/b/c/2", "a/bc", "a/b.txt"):
        storage.write(key, key.encode())
    storage.delete_prefix("a/b")
    storage.delete_prefix("never/was")
    assert sorted(entry.key for entry in storage.list()) == ["a/b.txt", "a/bc"]
    storage.delete_prefix("a/bc")
    assert not storage.exists("a/bc")


def test_a_listing_tells_every_value_under_a_prefix(storage: Storage) -> None:
    began = datetime.now(UTC) - timedelta(seconds=2)
    for key, size in {"a/1": 3, "a/b/2": 5, "ab": 7}.items():
        storage.write(key, bytes(size))
    assert {entry.key: entry.size for entry in storage.list("a")} == {"a/1": 3, "a/b/2": 5}
    assert [entry.key for entry in storage.list("ab")] == ["ab"]
    assert list(storage.list("nowhere")) == []
    assert {entry.key for entry in storage.list()} == {"a/1", "a/b/2", "ab"}
    assert all(began <= entry.modified <= datetime.now(UTC) for entry in storage.list())


@pytest.mark.slow
def test_more_is_listed_and_deleted_than_one_answer_holds(storage: Storage) -> None:
    keys = {f"many/{index:04}" for index in range(1005)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: storage.write(key, b""), keys))
    assert {entry.key for entry in storage.list("many")} == keys
    storage.delete_prefix("many")
    assert list(storage.list()) == []


def test_many_may_write_the_same_key_and_one_value_stands(opened: Opened) -> None:
    values = [bytes([index]) * 50_000 for index in range(8)]
    threads = [threading.Thread(target=opened().write, args=("a", value)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened().read("a") in values


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../../b", "a\\b", "a\0b"])
def test_a_key_that_leads_elsewhere_is_none(storage: Storage, key: str) -> None:
    for call in (storage.read, storage.delete_prefix, storage.exists, storage.open_local):
        with pytest.raises(ValueError, match="not a storage key"):
            call(key)
    with pytest.raises(ValueError, match="not a storage key"):
        storage.write(key, b"")


def test_check_says_nothing_where_all_is_well(storage: Storage) -> None:
    storage.check()


@pytest.mark.slow
def test_a_bucket_that_is_away_is_told_soon_and_serves_again_when_it_is_back() -> None:
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        storage = open_storage(Settings(storage_url="s3://b-1", s3_endpoint=server.endpoint, s3_region="x"))
        began = time.monotonic()
        with pytest.raises(StorageUnavailable, match="s3://b-1"):
            storage.check()
        assert time.monotonic() - began < 5


def test_a_value_that_was_replaced_is_not_read_half_old_half_new(s3: S3Server) -> None:
    settings = Settings(storage_url=f"s3://{s3.make_bucket()}", s3_endpoint=s3.endpoint, s3_region="x")
    storage = open_storage(settings)
    storage.write("a", MORE_THAN_A_PART)
    with closing(storage.open("a")) as file:
        file.read(10)
        storage.write("a", MORE_THAN_A_PART[::-1])
        with pytest.raises(StorageUnavailable):
            file.read()


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a", b"before")
    with pytest.raises(StorageUnavailable, match="full") as told, storage.writing("a") as file:
        file.write(b"new")
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")
    assert told.value.code == "storage_unavailable"
    assert storage.read("a") == b"before"


@pytest.mark.parametrize(
    ("url", "told"),
    [("s3://b", "s3://b"), ("s3://b/", "s3://b"), ("s3://b/x/y/", "s3://b/x/y")],
)
def test_a_bucket_is_named_by_its_url(url: str, told: str) -> None:
    assert str(Place.of(url, endpoint="", region="")) == told


@pytest.mark.parametrize("url", ["b", "s3://", "http://b/x", "s3:///x", "s3://b?x=1"])
def test_what_is_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"s3://bucket"):
        open_storage(Settings(storage_url=url))
