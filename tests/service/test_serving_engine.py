"""The engine: models in memory, the gate, versions on demand, requests at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_model import (
    ALPHA,
    clean_images,
    grey_images,
    probabilities_by_hand,
    publish_version,
)

from service.db import Database
from service.registry.bundle import STUDENT
from service.registry.errors import BundleCorrupt
from service.registry.repository import resolve
from service.serving.admission import Gate
from service.serving.engine import Engine
from service.serving.errors import (
    EngineClosed,
    ModelFault,
    QueueFull,
)
from service.serving.loaded import Loaded
from service.settings import Settings
from service.storage import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(f"sqlite:///{tmp_path / 'winnow.db'}")
    database.create_all()
    yield database
    database.close()


@pytest.fixture
def engine(database: Database, storage: LocalStorage, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(database, storage, Settings(home=tmp_path, loaded_models=2, serving_threads=1))
    yield engine
    engine.close()


def test_the_least_recently_used_is_let_go() -> None:
    loads: list[str] = []

    def load_one(key: tuple[str, str, int]) -> str:
        loads.append(key[1])
        return key[1].upper()

    loaded = Loaded(2, load_one)
    for name in ("a", "b", "a", "c", "a", "b"):
        assert loaded.get(("default", name, 1)) == name.upper()
    assert loads == ["a", "b", "c", "b"]
    assert (len(loaded), loaded.peek(("default", "c", 1))) == (2, None)


def test_a_model_is_loaded_once_however_many_ask() -> None:
    started = threading.Barrier(8)
    loads: list[object] = []

    def load_slowly(key: tuple[str, str, int]) -> object:
        time.sleep(0.05)
        loads.append(key)
        return object()

    loaded = Loaded(2, load_slowly)

    def ask(_: int) -> object:
        started.wait(10)
        return loaded.get(("default", "a", 1))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert len(loads) == 1
    assert all(value is found[0] for value in found)


def test_a_load_that_fails_is_tried_again() -> None:
    attempts: list[int] = []

    def load_at_second_try(_key: tuple[str, str, int]) -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise BundleCorrupt("damaged")
        return "restored"

    loaded = Loaded(2, load_at_second_try)
    with pytest.raises(BundleCorrupt):
        loaded.get(("default", "a", 1))
    assert loaded.get(("default", "a", 1)) == "restored"


# The gate


def test_the_gate_refuses_who_is_too_many_and_lets_in_who_comes_after() -> None:
    times = iter([0.0, 0.0, 7.2, 100.0, 100.0, 100.0, 100.0])
    gate = Gate(2, clock=lambda: next(times))
    with gate.enter():
        with gate.enter():
            assert gate.inside == 2
            with pytest.raises(QueueFull) as first, gate.enter():
                pass
            assert first.value.retry_after_seconds == 1, "nothing is known yet"
        with gate.enter(), pytest.raises(QueueFull) as second, gate.enter():
            pass
        assert second.value.retry_after_seconds == 8, "the last one took 7.2 s"
    assert gate.inside == 0


def test_a_place_is_given_back_by_who_fails() -> None:
    gate = Gate(1)
    for _ in range(3):
        with pytest.raises(ModelFault), gate.enter():
            raise ModelFault("broken")
    assert gate.inside == 0


# The engine


class InMemory:
    """A source of images that are there already, and that notes how it is read."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images
        self.sizes: list[int] = []

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self.images), size):
            batch = self.images[start : start + size]
            self.sizes.append(len(batch))
            yield batch


def opened(images: NDArray[np.uint8]) -> Callable[[tuple[int, int, int]], InMemory]:
    return lambda _shape: InMemory(images)


def test_an_answer_names_the_bundle_that_gave_it(engine: Engine, database: Database, storage: LocalStorage) -> None:
    publish_version(database, storage, "tiny")
    images, _ = clean_images(150, seed=5)
    source = InMemory(images)
    answer = asyncio.run(engine.predict("tiny", lambda _shape: source, alpha=None))
    assert (answer.model, answer.alpha, len(answer.predictions)) == ("tiny@1", ALPHA, 150)
    assert answer.bundle.startswith("sha256:")
    assert source.sizes == [64, 64, 22], "a large request is read and answered batch by batch"


def test_requests_at_once_get_each_its_own_answer(engine: Engine, database: Database, storage: LocalStorage) -> None:
    names = ["a", "b", "c"]  # more than are kept in memory
    for name in names:
        publish_version(database, storage, name)
    asked = [(names[index % 3], clean_images(1 + 7 * index % 90, seed=index)[0]) for index in range(24)]

    async def ask_all() -> list[Any]:
        return await asyncio.gather(*(engine.predict(name, opened(images), alpha=0.1) for name, images in asked))

    for (name, images), answer in zip(asked, asyncio.run(ask_all()), strict=True):
        assert answer.model == f"{name}@1"
        wanted = probabilities_by_hand(images).mean(axis=0)
        np.testing.assert_allclose([p.probabilities for p in answer.predictions], wanted, atol=1e-5)


def test_a_damaged_bundle_is_refused_every_time_and_others_go_on(
    engine: Engine, database: Database, storage: LocalStorage
) -> None:
    publish_version(database, storage, "good")
    publish_version(database, storage, "bad")
    with database.session() as session:
        prefix = resolve(session, "bad").prefix
    whole = storage.read(f"{prefix}/{STUDENT}")
    storage.write(f"{prefix}/{STUDENT}", whole[:-1] + bytes([whole[-1] ^ 1]))

    def ask(name: str) -> Any:
        return asyncio.run(engine.predict(name, opened(grey_images(1)), alpha=None))

    for _ in range(2):
        with pytest.raises(BundleCorrupt, match=r"student\.onnx"):
            ask("bad")
        assert ask("good").predictions[0].reason == "uncertain"
    storage.write(f"{prefix}/{STUDENT}", whole)
    assert ask("bad").model == "bad@1"


def test_a_closed_engine_takes_nothing(engine: Engine, database: Database, storage: LocalStorage) -> None:
    publish_version(database, storage, "tiny")
    engine.close()
    with pytest.raises(EngineClosed):
        engine.admit()
    with pytest.raises(EngineClosed):
        asyncio.run(engine.predict("tiny", opened(grey_images(1)), alpha=None))
