"""Dynamic batching: what waits while the machine computes goes into the next call together; an idle one runs at once.

The threads that compute take their calls from the lanes themselves: a busy event loop shall not keep them waiting.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from service.errors import WinnowError
from service.serving.answers import Answers, Options, Timing
from service.serving.batches import Images
from service.serving.calling import Calling, Judged
from service.serving.errors import DeadlineExceeded, EngineClosed
from service.serving.lanes import Lanes, Span
from service.serving.served import Served


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

    def give_up(self) -> None:
        """No call takes what is left of it."""
        self.taken = len(self.images)


NICENESS = 3
"""Of the threads that compute, where each has its own: what is refused under load is refused while they compute."""

AT_ONCE_SECONDS = 0.002
"""For as long the event loop may compute itself: waking a thread, and being woken by it, costs an idle machine more."""

TOO_LONG_SECONDS, NOT_AGAIN_SECONDS = 5 * AT_ONCE_SECONDS, 10.0
"""Where it took that long after all, as beside a fit on the same GPU, threads compute for a while."""

Call = list[Span[Request]]
"""What a thread computes at once: of one group."""


class Batcher:
    """`workers` calls at once. delay_s: how long the first of a call that is not full waits while others compute.

    The lock guards the lanes and what a call takes of a request; answers are put together on the event loop, which is
    the same for all requests.
    """

    def __init__(self, workers: int, *, delay_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._delay_s, self._clock = delay_s, clock
        self._changed = threading.Condition(threading.Lock())
        self._lanes: Lanes[Request] = Lanes()
        self._halves: deque[Call] = deque()
        self._computing = 0
        self._closed = False
        self._at_once_from = -math.inf
        self._threads = [
            threading.Thread(target=self._compute, name=f"predict-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def computing(self) -> int:
        return self._computing

    def waiting(self) -> tuple[int, int]:
        """Requests and images that no call has taken yet."""
        with self._changed:
            left = [request.remaining for request in self._lanes]
        return sum(images > 0 for images in left), sum(left)

    async def answer(
        self,
        model: Served,
        group: Calling,
        images: Images,
        options: Options,
        *,
        tenant: str,
        deadline: float,
        alone: bool = False,
    ) -> Answers:
        """alone: nobody else is in house, so that the event loop may compute itself what takes it no time to speak of.

        Raises DeadlineExceeded, EngineClosed, and what computing raises. Cancelled, it leaves its place.
        """
        loop, present = asyncio.get_running_loop(), self._clock()
        quick = len(images) * group.seconds <= AT_ONCE_SECONDS and present >= self._at_once_from
        if alone and quick and present < deadline and self._idle():
            judged, seconds = self._judge_at_once(group, images)
            return model.answers(group, judged, options.alpha, Timing(0.0, seconds, len(images)))
        request = Request(model, group, images, options, tenant, deadline, loop.create_future(), present)
        with self._changed:
            if self._closed:
                raise _closed()
            self._lanes.add(request)
            self._changed.notify()
        timer = loop.call_later(max(deadline - present, 0), self._give_up, request)
        try:
            return await request.answer
        finally:
            timer.cancel()

    def close(self) -> None:
        """Finish what is being computed; fail what waits."""
        with self._changed:
            self._closed = True
            left = [request for request in self._lanes if request.remaining]
            for request in left:
                request.give_up()
            self._changed.notify_all()
        for request in left:
            _tell(request, _closed())
        for thread in self._threads:
            thread.join()

    def _judge_at_once(self, group: Calling, images: Images) -> tuple[Judged, float]:
        began = time.perf_counter()
        judged = group.judge(images)
        seconds = time.perf_counter() - began
        if seconds > TOO_LONG_SECONDS:
            self._at_once_from = self._clock() + NOT_AGAIN_SECONDS
        return judged, seconds

    def _idle(self) -> bool:
        with self._changed:
            return not (self._closed or self._computing or self._lanes or self._halves)

    def _compute(self) -> None:
        _give_way()
        while (call := self._next()) is not None:
            began = time.perf_counter()
            result: Judged | Exception
            try:
                result = call[0].request.group.judge(_images_of(call))
            except Exception as error:  # noqa: BLE001 - it is told to who asked
                result = error
            if isinstance(result, Exception) and len(call) > 1:
                self._halve(call)
                continue
            seconds = time.perf_counter() - began
            with self._changed:
                self._computing -= 1
            with suppress(RuntimeError):  # the loop has ended, and with it all who waited
                call[0].request.answer.get_loop().call_soon_threadsafe(_deliver, call, result, seconds)

    def _next(self) -> Call | None:
        """Waits for something to compute; None when that is over."""
        with self._changed:
            while True:
                if self._halves:
                    call = self._halves.popleft()
                    break
                if self._closed:
                    return None
                head = self._lanes.first()
                wait_s = None if head is None else self._worth_waiting(head)
                if head is None or wait_s:
                    self._changed.wait(wait_s)
                elif self._clock() >= head.deadline:
                    head.give_up()
                    _tell(head, _too_late())
                else:
                    call = self._lanes.next_call(head.group.batch)
                    if self._lanes.first() is not None:
                        self._changed.notify()  # a request of several calls is several threads' work
                    break
            self._computing += 1
            present = self._clock()
        for span in call:
            if not span.request.started_at:
                span.request.started_at = present
        return call

    def _worth_waiting(self, head: Request) -> float:
        """Seconds: only while others compute, and only for a call that is not full."""
        if not self._delay_s or not self._computing or self._lanes.waiting(head.model) >= head.group.batch:
            return 0.0
        return max(head.queued_at + self._delay_s - self._clock(), 0.0)

    def _halve(self, call: Call) -> None:
        """Only who is to blame shall fail."""
        middle = len(call) // 2
        with self._changed:
            self._halves += (call[:middle], call[middle:])
            self._computing -= 1
            self._changed.notify(2)

    def _give_up(self, request: Request) -> None:
        """Where a call has taken all of it, the answer is as good as there; else it would come too late."""
        with self._changed:
            waits = request.remaining > 0
            request.give_up()
        if waits:
            _fail(request, _too_late())


def _give_way() -> None:
    """To the event loop, where threads have priorities of their own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # nothing depends on it
            os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


def _images_of(call: Call) -> Images:
    if len(call) == 1:
        return call[0].request.images[call[0].rows]
    return np.concatenate([span.request.images[span.rows] for span in call])


def _deliver(call: Sequence[Span[Request]], result: Judged | Exception, seconds: float) -> None:
    if isinstance(result, Exception):
        _fail(call[0].request, result)
        return
    start, images = 0, len(result.index)
    for span in call:
        count = span.rows.stop - span.rows.start
        part = result if len(call) == 1 else result.rows(slice(start, start + count))
        start += count
        _add(span.request, span.rows.start, part, images, seconds)


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


def _tell(request: Request, error: WinnowError) -> None:
    """From any thread."""
    with suppress(RuntimeError):  # its loop has ended
        request.answer.get_loop().call_soon_threadsafe(_fail, request, error)


def _fail(request: Request, error: Exception) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The request waited for as long as it may. The service is busy: come back later, or send fewer images.",
        retry_after_seconds=1,
    )


def _closed() -> EngineClosed:
    return EngineClosed("The gateway is shutting down. Repeat the request in a moment.")
