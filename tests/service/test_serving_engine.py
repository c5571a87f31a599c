"""The engine: models in memory, the gate, versions on demand, requests at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_model import (
    ALPHA,
    bundle_files,
    clean_images,
    grey_images,
    probabilities_by_hand,
    publish_version,
    striped_images,
)

from service.db import Database
from service.registry.bundle import SERVED
from service.registry.errors import BundleCorrupt
from service.registry.repository import resolve, set_alias
from service.serving.admission import Gate
from service.serving.answers import Answers, Observed, Options
from service.serving.calling import Calling
from service.serving.engine import Engine
from service.serving.errors import (
    BadImages,
    EngineClosed,
    ModelFault,
    QueueFull,
    TenantQueueFull,
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


@dataclass
class Sized:
    name: str
    bytes: int = 1


def test_memory_is_bounded_and_the_newest_stays_even_where_it_alone_is_larger() -> None:
    loaded = Loaded(10, 100, lambda key: Sized(key[1], bytes=key[2]))
    for name, size in (("a", 40), ("b", 40), ("c", 40)):
        loaded.get(("default", name, size))
    assert [key[1] for key, _ in loaded.items()] == ["b", "c"]
    loaded.get(("default", "huge", 500))
    assert [key[1] for key, _ in loaded.items()] == ["huge"]


def test_the_least_recently_used_is_let_go() -> None:
    loads: list[str] = []

    def load_one(key: tuple[str, str, int]) -> Sized:
        loads.append(key[1])
        return Sized(key[1].upper())

    loaded = Loaded(2, 1000, load_one)
    for name in ("a", "b", "a", "c", "a", "b"):
        assert loaded.get(("default", name, 1)).name == name.upper()
    assert loads == ["a", "b", "c", "b"]
    assert (len(loaded), loaded.peek(("default", "c", 1))) == (2, None)


def test_a_model_is_loaded_once_however_many_ask() -> None:
    started = threading.Barrier(8)
    loads: list[object] = []

    def load_slowly(key: tuple[str, str, int]) -> Sized:
        time.sleep(0.05)
        loads.append(key)
        return Sized("a")

    loaded = Loaded(2, 100, load_slowly)

    def ask(_: int) -> Sized:
        started.wait(10)
        return loaded.get(("default", "a", 1))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert len(loads) == 1
    assert all(value is found[0] for value in found)


def test_a_load_that_fails_is_tried_again() -> None:
    attempts: list[int] = []

    def load_at_second_try(_key: tuple[str, str, int]) -> Sized:
        attempts.append(1)
        if len(attempts) == 1:
            raise BundleCorrupt("damaged")
        return Sized("restored")

    loaded = Loaded(2, 100, load_at_second_try)
    with pytest.raises(BundleCorrupt):
        loaded.get(("default", "a", 1))
    assert loaded.get(("default", "a", 1)).name == "restored"


# The gate


def test_the_gate_refuses_who_is_too_many_and_lets_in_who_comes_after() -> None:
    times = iter([0.0, 0.0, 0.0, 7.2, 100.0, 100.0, 100.0, 100.0])
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


def test_nobody_holds_more_than_a_share_while_others_come() -> None:
    gate, refused = Gate(8), []
    gate.refusals.append(lambda tenant, error: refused.append((tenant, error.code)))
    with ExitStack() as inside:
        for _ in range(8):
            inside.enter_context(gate.enter("greedy"))
        with pytest.raises(QueueFull), gate.enter("shy"):
            pass
    with ExitStack() as inside:
        for _ in range(4):
            inside.enter_context(gate.enter("greedy"))
        with pytest.raises(TenantQueueFull) as refusal, gate.enter("greedy"):
            pass
        assert refusal.value.retry_after_seconds >= 1
        for _ in range(4):
            inside.enter_context(gate.enter("shy"))
    assert refused == [("shy", "queue_full"), ("greedy", "tenant_queue_full")]
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
    answer = asyncio.run(engine.predict("tiny", lambda _shape: source))
    assert (answer.model, answer.alpha, len(answer.predictions)) == ("tiny@1", ALPHA, 150)
    assert answer.bundle.startswith("sha256:")
    assert source.sizes == [150], "a large request is read and answered batch by batch"


def test_requests_at_once_get_each_its_own_answer(engine: Engine, database: Database, storage: LocalStorage) -> None:
    names = ["a", "b", "c"]  # more than are kept in memory
    for name in names:
        publish_version(database, storage, name)
    asked = [(names[index % 3], clean_images(1 + 7 * index % 90, seed=index)[0]) for index in range(24)]

    async def ask_all() -> list[Any]:
        return await asyncio.gather(
            *(engine.predict(name, opened(images), Options(alpha=0.1)) for name, images in asked)
        )

    for (name, images), answer in zip(asked, asyncio.run(ask_all()), strict=True):
        assert answer.model == f"{name}@1"
        wanted = probabilities_by_hand(images).mean(axis=0)
        np.testing.assert_allclose([p.probabilities for p in answer.predictions], wanted, atol=1e-5)


@pytest.mark.parametrize(("inside", "on_loop"), [(0, False), (1, True), (2, False)])
def test_who_is_alone_in_house_is_answered_on_the_event_loop(
    engine: Engine,
    database: Database,
    storage: LocalStorage,
    monkeypatch: pytest.MonkeyPatch,
    inside: int,
    on_loop: bool,
) -> None:
    publish_version(database, storage, "tiny")
    threads: list[int] = []
    judge = Calling.judge

    def noted(calling: Calling, images: Any) -> Any:
        threads.append(threading.get_ident())
        return judge(calling, images)

    async def ask() -> None:
        await engine.model("tiny")
        monkeypatch.setattr(Calling, "judge", noted)
        with ExitStack() as places:
            for _ in range(inside):
                places.enter_context(engine.admit())
            await engine.infer("tiny", clean_images(1, seed=0)[0])

    asyncio.run(ask())
    assert [thread == threading.get_ident() for thread in threads] == [on_loop]


def test_a_damaged_bundle_is_refused_every_time_and_others_go_on(
    engine: Engine, database: Database, storage: LocalStorage
) -> None:
    publish_version(database, storage, "good")
    publish_version(database, storage, "bad")
    with database.session() as session:
        prefix = resolve(session, "bad").prefix
    whole = storage.read(f"{prefix}/{SERVED}")
    storage.write(f"{prefix}/{SERVED}", whole[:-1] + bytes([whole[-1] ^ 1]))

    def ask(name: str) -> Any:
        return asyncio.run(engine.predict(name, opened(grey_images(1))))

    for _ in range(2):
        with pytest.raises(BundleCorrupt, match=r"served\.onnx"):
            ask("bad")
        assert ask("good").predictions[0].reason == "uncertain"
    storage.write(f"{prefix}/{SERVED}", whole)
    assert ask("bad").model == "bad@1"


def test_a_closed_engine_takes_nothing(engine: Engine, database: Database, storage: LocalStorage) -> None:
    publish_version(database, storage, "tiny")
    engine.close()
    with pytest.raises(EngineClosed):
        engine.admit()
    with pytest.raises(EngineClosed):
        asyncio.run(engine.predict("tiny", opened(grey_images(1))))


# Hot swap


def corrupt(database: Database, storage: LocalStorage, reference: str) -> None:
    with database.session() as session:
        prefix = resolve(session, reference).prefix
    whole = storage.read(f"{prefix}/{SERVED}")
    storage.write(f"{prefix}/{SERVED}", whole[:-1] + bytes([whole[-1] ^ 1]))


def point(database: Database, version: int) -> None:
    with database.transaction() as session:
        set_alias(session, "tiny", "champion", version=version)


def test_an_alias_moved_elsewhere_is_followed_and_no_answer_mixes_versions(
    engine: Engine, database: Database, storage: LocalStorage
) -> None:
    """Version 2 has no detector, so its p-values differ: an answer's numbers must be those of the version it names."""
    publish_version(database, storage, "tiny")
    publish_version(database, storage, "tiny", bundle_files(detector=False))
    point(database, 1)
    images = striped_images(20, seed=6)

    async def ask_while_it_moves() -> list[Answers]:
        found = [await engine.infer("tiny:champion", images)]
        point(database, 2)
        until = time.monotonic() + 20
        while found[-1].model != "tiny@2" and time.monotonic() < until:
            found += await asyncio.gather(*(engine.infer("tiny:champion", images) for _ in range(8)))
        return found

    found = asyncio.run(ask_while_it_moves())
    assert [found[0].model, found[-1].model] == ["tiny@1", "tiny@2"]
    alone = {model: asyncio.run(engine.infer(model, images)) for model in ("tiny@1", "tiny@2")}
    assert (alone["tiny@1"].p_value != alone["tiny@2"].p_value).any()
    for answers in found:
        np.testing.assert_array_equal(answers.p_value, alone[answers.model].p_value)
        assert answers.bundle == alone[answers.model].bundle


def test_a_version_that_cannot_be_loaded_does_not_take_over(
    engine: Engine, database: Database, storage: LocalStorage
) -> None:
    publish_version(database, storage, "tiny")

    async def ask() -> None:
        assert (await engine.infer("tiny", grey_images(1))).model == "tiny@1"
        publish_version(database, storage, "tiny")
        corrupt(database, storage, "tiny@2")
        with pytest.raises(BundleCorrupt):
            await engine.load("tiny@2")
        for _ in range(3):
            engine.changed("tiny")
            for _ in range(20):
                assert (await engine.infer("tiny", grey_images(1))).model == "tiny@1"
                await asyncio.sleep(0.002)

    asyncio.run(ask())


def test_what_is_unloaded_is_loaded_again_on_demand(engine: Engine, database: Database, storage: LocalStorage) -> None:
    publish_version(database, storage, "tiny")

    async def ask() -> None:
        assert not engine.is_ready("tiny")
        await engine.infer("tiny", grey_images(1))
        assert engine.is_ready("tiny")
        assert [served.reference for served in engine.loaded()] == ["tiny@1"]
        assert await engine.unload("tiny") == ["tiny@1"]
        assert not engine.is_ready("tiny")
        assert engine.loaded() == []
        assert (await engine.infer("tiny", grey_images(1))).model == "tiny@1"

    asyncio.run(ask())


def test_those_who_watch_see_every_answer(engine: Engine, database: Database, storage: LocalStorage) -> None:
    publish_version(database, storage, "tiny")
    seen: list[Observed] = []
    engine.watchers.append(seen.append)
    asyncio.run(engine.infer("tiny", grey_images(3), Options(alpha=0.2)))
    assert [(len(one.images), one.options.alpha, one.answers.model) for one in seen] == [(3, 0.2, "tiny@1")]


@pytest.mark.parametrize("images", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((1, 9, 8, 3), np.uint8)])
def test_images_of_another_shape_are_refused(
    engine: Engine, database: Database, storage: LocalStorage, images: NDArray[np.uint8]
) -> None:
    publish_version(database, storage, "tiny")
    with pytest.raises(BadImages, match="takes uint8"):
        asyncio.run(engine.infer("tiny", images))
