"""Dynamic batching on real ONNX sessions: at once when idle, together when busy, fair, in time, and failing alone."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_model import bundle_files, clean_images

from service.registry.bundle import load, publish
from service.serving.answers import Answers, Options
from service.serving.batcher import NOT_AGAIN_SECONDS, Batcher
from service.serving.calling import Calling, Judged
from service.serving.errors import DeadlineExceeded, EngineClosed, ModelFault
from service.serving.lanes import Lanes
from service.serving.served import Served
from service.serving.sessions import CPU, Plan, Runtime
from service.storage import LocalStorage


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    storage = LocalStorage(Path(tmp_path_factory.mktemp("storage")))
    digests = publish(storage, "models/tiny/job-1", bundle_files())
    runtime = Runtime(Plan(((CPU, {}),), strict=False))
    return Served(load(storage, "models/tiny/job-1", digests), runtime, name="tiny", version=1, batch=16)


@dataclass(frozen=True, eq=False)
class Slow(Calling):
    """A real calling that waits for `gate` and notes the sizes of its calls; it cannot stand `poison`."""

    gate: threading.Event = field(default_factory=threading.Event)
    sizes_seen: list[int] = field(default_factory=list)
    threads_seen: list[int] = field(default_factory=list)
    poison: int | None = None

    def judge(self, images: NDArray[np.uint8]) -> Judged:
        self.gate.wait(10)
        self.sizes_seen.append(len(images))
        self.threads_seen.append(threading.get_ident())
        if self.poison is not None and (images[:, 0, 0, 0] == self.poison).any():
            raise ModelFault("these images together are too much")
        return super().judge(images)


def slow(served: Served, poison: int | None = None, *, seconds: float = math.inf) -> Slow:
    own = served.make_calling(served.how(Options()))
    return Slow(own.network, own.masks, own.calibration, own.sizes, seconds, poison=poison)


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    batcher = Batcher(1)
    yield batcher
    batcher.close()


def asker(batcher: Batcher, served: Served, calling: Calling) -> Callable[..., Any]:
    async def ask(images: NDArray[np.uint8], tenant: str = "a", within_s: float = 10.0, alone: bool = False) -> Answers:
        deadline = time.monotonic() + within_s
        return await batcher.answer(served, calling, images, Options(), tenant=tenant, deadline=deadline, alone=alone)

    return ask


def test_an_idle_batcher_runs_at_once_and_what_waits_meanwhile_goes_together(served: Served, batcher: Batcher) -> None:
    calling = slow(served)
    ask = asker(batcher, served, calling)
    images, _ = clean_images(13, seed=1)

    async def run() -> list[Answers]:
        first = asyncio.create_task(ask(images[:1]))
        await asyncio.sleep(0.01)
        assert batcher.computing == 1, "nothing was waited for"
        others = [asyncio.create_task(ask(images[i : i + 1])) for i in range(1, 13)]
        await asyncio.sleep(0.01)
        assert batcher.waiting() == (12, 12)
        calling.gate.set()
        return [await first, *await asyncio.gather(*others)]

    found = asyncio.run(run())
    assert calling.sizes_seen == [1, 12]
    assert [answers.timing.batch_images for answers in found] == [1] + [12] * 12
    whole = served.make_calling(served.how(Options())).judge(images)
    np.testing.assert_array_equal(np.concatenate([a.p_value for a in found]), whole.whole)
    np.testing.assert_array_equal([a.index[0] for a in found], whole.index)


def test_who_is_alone_is_answered_on_the_event_loop_and_nobody_else(served: Served, batcher: Batcher) -> None:
    calling = slow(served, seconds=0.0009)
    calling.gate.set()
    ask = asker(batcher, served, calling)
    images, _ = clean_images(3, seed=11)
    loop = threading.get_ident()  # asyncio.run keeps to this thread

    async def run() -> tuple[Answers, Answers]:
        alone, queued = await ask(images[:2], alone=True), await ask(images[:2])
        await ask(images, alone=True)  # of three images the loop would hear nothing for too long
        with pytest.raises(DeadlineExceeded):
            await ask(images[:1], within_s=-1.0, alone=True)
        return alone, queued

    alone, queued = asyncio.run(run())
    assert [thread == loop for thread in calling.threads_seen] == [True, False, False]
    np.testing.assert_array_equal(alone.p_value, queued.p_value)
    np.testing.assert_array_equal(alone.probabilities, queued.probabilities)
    assert (alone.timing.queued_s, alone.timing.batch_images) == (0.0, 2)


def test_what_took_too_long_on_the_event_loop_is_left_to_the_threads_for_a_while(served: Served) -> None:
    present = [1000.0]
    batcher = Batcher(1, clock=lambda: present[0])
    calling = slow(served, seconds=0.0)
    images, _ = clean_images(1, seed=13)

    async def ask() -> None:
        deadline = present[0] + 1000
        await batcher.answer(served, calling, images, Options(), tenant="a", deadline=deadline, alone=True)

    async def run() -> None:
        threading.Timer(0.05, calling.gate.set).start()
        await ask()
        await ask()
        present[0] += NOT_AGAIN_SECONDS
        await ask()

    asyncio.run(run())
    batcher.close()
    assert [thread == threading.get_ident() for thread in calling.threads_seen] == [True, False, True]


def test_nothing_is_computed_on_the_event_loop_while_a_thread_computes(served: Served, batcher: Batcher) -> None:
    calling = slow(served, seconds=0.0)
    ask = asker(batcher, served, calling)
    images, _ = clean_images(2, seed=12)

    async def run() -> None:
        first = asyncio.create_task(ask(images[:1]))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(ask(images[1:], alone=True))
        await asyncio.sleep(0.01)
        assert batcher.waiting() == (1, 1)
        calling.gate.set()
        await asyncio.gather(first, second)

    asyncio.run(run())
    assert threading.get_ident() not in calling.threads_seen


def test_what_fails_on_the_event_loop_is_told_and_a_closed_batcher_takes_nothing(
    served: Served, batcher: Batcher
) -> None:
    images, _ = clean_images(1, seed=3)
    images[:, 0, 0, 0] = 5
    calling = slow(served, poison=5, seconds=0.0)
    calling.gate.set()
    ask = asker(batcher, served, calling)

    async def run() -> None:
        with pytest.raises(ModelFault):
            await ask(images, alone=True)
        await asyncio.to_thread(batcher.close)
        with pytest.raises(EngineClosed):
            await ask(images, alone=True)

    asyncio.run(run())
    assert len(calling.sizes_seen) == 1


def test_a_calling_that_was_tried_knows_what_one_image_takes(served: Served) -> None:
    own = served.calling(served.how(Options()))
    assert own is not None
    assert 0 < own.seconds < 1


def test_a_large_request_is_cut_into_calls_and_put_together(served: Served, batcher: Batcher) -> None:
    calling = slow(served)
    calling.gate.set()
    images, _ = clean_images(77, seed=2)
    answers = asyncio.run(asker(batcher, served, calling)(images))
    assert max(calling.sizes_seen) <= served.batch == 16
    assert sum(calling.sizes_seen) == 77
    whole = served.make_calling(served.how(Options())).judge(images)
    np.testing.assert_array_equal(answers.kl, whole.kl)


def test_a_large_request_is_the_work_of_all_threads(served: Served) -> None:
    batcher = Batcher(3)
    calling = slow(served)
    images, _ = clean_images(48, seed=9)

    async def run() -> None:
        asked = asyncio.create_task(asker(batcher, served, calling)(images))
        until = time.monotonic() + 10
        while batcher.computing < 3 and time.monotonic() < until:
            await asyncio.sleep(0.005)
        assert batcher.computing == 3
        calling.gate.set()
        await asked

    asyncio.run(run())
    batcher.close()
    assert calling.sizes_seen == [16, 16, 16]


def test_only_the_culprit_of_a_call_that_fails_fails(served: Served, batcher: Batcher) -> None:
    images, _ = clean_images(9, seed=3)
    images[:, 0, 0, 0] = np.arange(9)
    calling = slow(served, poison=5)
    ask = asker(batcher, served, calling)

    async def run() -> list[Any]:
        blocker = asyncio.create_task(ask(images[:1]))
        await asyncio.sleep(0.01)
        tasks = [asyncio.create_task(ask(images[i : i + 1])) for i in range(1, 9)]
        await asyncio.sleep(0.01)
        calling.gate.set()
        await blocker
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(run())
    assert [isinstance(one, ModelFault) for one in found] == [i == 5 for i in range(1, 9)]
    assert batcher.computing == 0, "every slot came back"


def test_calls_follow_each_other_while_the_event_loop_is_busy(served: Served, batcher: Batcher) -> None:
    calling = slow(served)
    ask = asker(batcher, served, calling)
    images, _ = clean_images(1 + 4 * 16, seed=8)

    async def run() -> list[int]:
        first = asyncio.create_task(ask(images[:1]))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(ask(images[i : i + 1])) for i in range(1, len(images))]
        await asyncio.sleep(0.01)
        calling.gate.set()
        until = time.monotonic() + 10
        while len(calling.sizes_seen) < 5 and time.monotonic() < until:
            time.sleep(0.001)
        seen = list(calling.sizes_seen)
        await asyncio.gather(first, *others)
        return seen

    assert asyncio.run(run()) == [1, 16, 16, 16, 16]


def test_who_cannot_be_answered_in_time_is_told_so_and_costs_nothing(served: Served, batcher: Batcher) -> None:
    calling = slow(served)
    ask = asker(batcher, served, calling)
    images, _ = clean_images(2, seed=4)

    async def run() -> tuple[float, Answers]:
        first = asyncio.create_task(ask(images[:1]))
        await asyncio.sleep(0.01)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded) as refusal:
            await ask(images[1:], within_s=0.05)
        assert refusal.value.retry_after_seconds >= 1
        took = time.monotonic() - began
        calling.gate.set()
        return took, await first

    took, _ = asyncio.run(run())
    assert 0.04 < took < 2
    assert calling.sizes_seen == [1]


def test_who_goes_away_leaves_the_queue(served: Served, batcher: Batcher) -> None:
    calling = slow(served)
    ask = asker(batcher, served, calling)
    images, _ = clean_images(3, seed=4)

    async def run() -> None:
        first = asyncio.create_task(ask(images[:1]))
        await asyncio.sleep(0.01)
        second, third = (asyncio.create_task(ask(images[i : i + 1])) for i in (1, 2))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.sleep(0)
        calling.gate.set()
        await asyncio.gather(first, third)

    asyncio.run(run())
    assert calling.sizes_seen == [1, 1]


def test_one_tenants_many_do_not_crowd_out_anothers_few(served: Served, batcher: Batcher) -> None:
    calling = slow(served)
    ask = asker(batcher, served, calling)
    images, _ = clean_images(1, seed=5)
    order: list[str] = []

    async def noted(tenant: str) -> None:
        await ask(images, tenant)
        order.append(tenant)

    async def run() -> None:
        tasks = [asyncio.create_task(noted("greedy"))]
        await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(noted("greedy")) for _ in range(60)]
        await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(noted("shy")) for _ in range(4)]
        await asyncio.sleep(0.01)
        calling.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert max(i for i, tenant in enumerate(order) if tenant == "shy") < 1 + 16, "the very next call takes all of them"


def test_a_call_that_is_not_full_waits_for_more_while_others_compute(served: Served) -> None:
    batcher = Batcher(2, delay_s=0.2)
    calling = slow(served)
    ask = asker(batcher, served, calling)
    images, _ = clean_images(6, seed=6)

    async def run() -> None:
        tasks = [asyncio.create_task(ask(images[:1]))]
        for i in range(1, 6):
            await asyncio.sleep(0.005)
            tasks.append(asyncio.create_task(ask(images[i : i + 1])))
        await asyncio.sleep(0.3)
        assert batcher.computing == 2
        calling.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    batcher.close()
    assert sorted(calling.sizes_seen) == [1, 5]


def test_closing_answers_what_is_computed_and_fails_what_waits(served: Served) -> None:
    batcher, calling = Batcher(1), slow(served)
    ask = asker(batcher, served, calling)
    images, _ = clean_images(2, seed=7)

    async def run() -> None:
        first = asyncio.create_task(ask(images[:1]))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(ask(images[1:]))
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        for pending in (second, asyncio.create_task(ask(images[1:]))):
            with pytest.raises(EngineClosed):
                await pending
        calling.gate.set()
        await closing
        assert (await first).model == "tiny@1"

    asyncio.run(run())


# Lanes


@dataclass(eq=False)
class Waits:
    model: str
    tenant: str
    group: str
    remaining: int
    taken: int = 0

    def take(self, count: int) -> slice:
        self.remaining -= count
        self.taken += count
        return slice(self.taken - count, self.taken)


def test_models_take_turns_and_groups_do_not_mix() -> None:
    lanes: Lanes[Waits] = Lanes()
    for model, tenant, group, count in [("m", "a", "g", 5), ("m", "b", "h", 3), ("n", "a", "g", 2), ("m", "a", "g", 4)]:
        lanes.add(Waits(model, tenant, group, count))
    seen = []
    while spans := lanes.next_call(8):
        assert len({(span.request.model, span.request.group) for span in spans}) == 1
        seen.append((spans[0].request.model, sum(span.rows.stop - span.rows.start for span in spans)))
    assert seen == [("m", 8), ("n", 2), ("m", 3), ("m", 1)]
    assert not list(lanes)
