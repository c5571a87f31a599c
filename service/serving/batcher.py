"""Dynamic batching: what waits while the machine computes goes into the next call together; an idle one runs at once.

All state belongs to the event loop; only `_compute` runs in threads of its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
import structlog

from service.serving.answers import Answers, Options, Timing
from service.serving.batches import Images
from service.serving.calling import Calling, Judged
from service.serving.errors import DeadlineExceeded, EngineClosed
from service.serving.lanes import Lanes, Span
from service.serving.served import Served

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Request:
    """Images of one tenant for one version, until all of them are answered."""

    model: Served
    group: Calling
    images: Images
    options: Options
    tenant: str
    deadline: float  # of the batcher's clock
    answer: asyncio.Future[Answers]
    queued_at: float
    started_at: float = 0.0
    computed_s: float = 0.0
    largest: int = 0
    taken: int = 0
    parts: list[tuple[int, Judged]] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        return 0 if self.answer.done() else len(self.images) - self.taken

    def take(self, count: int) -> slice:
        rows = slice(self.taken, self.taken + count)
        self.taken += count
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What a thread computes at once, and the loop that waits for it."""

    spans: list[Span[Request]]
    loop: asyncio.AbstractEventLoop


class Batcher:
    """`workers` calls at once. delay_s: how long the first of a call that is not full waits while others compute."""

    def __init__(self, workers: int, *, delay_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._delay_s, self._clock = delay_s, clock
        self._lanes: Lanes[Request] = Lanes()
        self._work: SimpleQueue[Call | None] = SimpleQueue()
        self._workers, self._free = workers, workers
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._threads = [
            threading.Thread(target=self._compute, name=f"predict-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def computing(self) -> int:
        return self._workers - self._free

    def waiting(self) -> tuple[int, int]:
        """Requests and images that no call has taken yet."""
        requests = [request for request in self._lanes if request.remaining]
        return len(requests), sum(request.remaining for request in requests)

    async def answer(
        self, model: Served, group: Calling, images: Images, options: Options, *, tenant: str, deadline: float
    ) -> Answers:
        """Raises DeadlineExceeded, EngineClosed, and what computing raises. Cancelled, it leaves its place."""
        if self._closed:
            raise _closed()
        loop, present = asyncio.get_running_loop(), self._clock()
        request = Request(model, group, images, options, tenant, deadline, loop.create_future(), present)
        self._lanes.add(request)
        self._dispatch(loop)
        if request.remaining == 0:
            return await request.answer
        timer = loop.call_later(max(deadline - present, 0), _give_up, request)
        try:
            return await request.answer
        finally:
            timer.cancel()

    def close(self) -> None:
        """Finish what is being computed; fail what waits."""
        self._closed = True
        for request in list(self._lanes):
            if not request.answer.done():
                request.answer.set_exception(_closed())
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._free > 0 and (head := self._lanes.first()) is not None:
            if self._clock() >= head.deadline:
                _give_up(head)
            elif (wait_s := self._worth_waiting(head)) > 0:
                if self._timer is None or self._timer.cancelled():
                    self._timer = loop.call_later(wait_s, self._end_wait, loop)
                return
            else:
                self._free -= 1
                self._start(Call(self._lanes.next_call(head.group.batch), loop))

    def _worth_waiting(self, head: Request) -> float:
        """Seconds: only while others compute, and only for a call that is not full."""
        if not self._delay_s or not self.computing or self._lanes.waiting(head.model) >= head.group.batch:
            return 0.0
        return head.queued_at + self._delay_s - self._clock()

    def _end_wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._dispatch(loop)

    def _start(self, call: Call) -> None:
        present = self._clock()
        for span in call.spans:
            if not span.request.parts and not span.request.started_at:
                span.request.started_at = present
        self._work.put(call)

    def _compute(self) -> None:
        while (call := self._work.get()) is not None:
            began = time.perf_counter()
            result: Judged | Exception
            try:
                result = call.spans[0].request.group.judge(_images_of(call.spans))
            except Exception as error:  # noqa: BLE001 - it is told to who asked
                result = error
            seconds = time.perf_counter() - began
            try:
                call.loop.call_soon_threadsafe(self._finish, call, result, seconds)
            except RuntimeError:  # the loop has ended, and with it all who waited
                self._free += 1

    def _finish(self, call: Call, result: Judged | Exception, seconds: float) -> None:
        if isinstance(result, Exception) and len(call.spans) > 1:
            middle = len(call.spans) // 2  # only who is to blame shall fail
            self._free -= 1
            for spans in (call.spans[:middle], call.spans[middle:]):
                self._start(Call(spans, call.loop))
            return
        self._free += 1
        self._dispatch(call.loop)
        if isinstance(result, Exception):
            _fail(call.spans[0].request, result)
            return
        start, images = 0, len(result.index)
        for span in call.spans:
            count = span.rows.stop - span.rows.start
            whole = len(call.spans) == 1
            part = result if whole else result.rows(slice(start, start + count))
            start += count
            _add(span.request, span.rows.start, part, images, seconds)


def _images_of(spans: Sequence[Span[Request]]) -> Images:
    if len(spans) == 1:
        return spans[0].request.images[spans[0].rows]
    return np.concatenate([span.request.images[span.rows] for span in spans])


def _add(request: Request, start: int, part: Judged, images: int, seconds: float) -> None:
    if request.answer.done():
        return
    request.parts.append((start, part))
    request.computed_s += seconds
    request.largest = max(request.largest, images)
    if sum(len(judged.index) for _, judged in request.parts) < len(request.images):
        return
    judged = Judged.joined([part for _, part in sorted(request.parts, key=lambda each: each[0])])
    timing = Timing(request.started_at - request.queued_at, request.computed_s, request.largest)
    try:
        request.answer.set_result(request.model.answers(request.group, judged, request.options.alpha, timing))
    except Exception as error:  # noqa: BLE001 - it is told to who asked
        _fail(request, error)


def _fail(request: Request, error: Exception) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)


def _give_up(request: Request) -> None:
    """Where a call has taken all of it, the answer is as good as there; else it would come too late."""
    if request.remaining:
        _fail(
            request,
            DeadlineExceeded(
                "The request waited for as long as it may. The service is busy: come back later, or send fewer images.",
                retry_after_seconds=1,
            ),
        )


def _closed() -> EngineClosed:
    return EngineClosed("The gateway is shutting down. Repeat the request in a moment.")
