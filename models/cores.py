"""The cores of a CPU as workers of their own, each computing its part of the work with its own threads.

Threads that share a layer wait for each other at the end of each layer, and inside some kernels by spinning. Beside
another busy process every one of those waits lasts until the scheduler lets the last thread run. Parts that are cut
above the layers wait for each other once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Made = TypeVar("Made")

PIXELS_WORTH_SHARING = 32_000
"""A batch of fewer is computed sooner by one thread than by two that wait for each other at every layer."""


class Cores:
    """So many threads, between which torch's are dealt out; they are there inside a `with`.

    What they compute must not depend on torch's global generator, nor on modes that are a thread's own: each part
    enters autocast and no_grad by itself.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> Cores:
        self._pool = ThreadPoolExecutor(self._count, "core")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def map(self, work: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        """What `work` makes of each, in order. Where one raises, the others end first."""
        if len(items) < 2:
            return [work(item) for item in items]
        each = max(1, torch.get_num_threads() // min(len(items), self._count))

        def one(item: Item) -> Made:
            torch.set_num_threads(each)
            return work(item)

        with threads(each):  # libraries that ask the process, not the thread
            made = [self._pool.submit(one, item) for item in items]
            wait(made)
        return [future.result() for future in made]

    def imap(self, work: Callable[[Item], Made], items: Iterator[Item]) -> Iterator[Made]:
        """The same for more items than fit in memory: as many at a time as there are cores."""
        while taken := list(islice(items, self._count)):
            yield from self.map(work, taken)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads inside."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def threads_that_pay(images: Tensor) -> int:
    """How many threads to compute a batch (n, c, h, w) with: one where it has too few pixels for others to help."""
    pixels = len(images) * images.shape[2:].numel()
    return 1 if pixels < PIXELS_WORTH_SHARING else torch.get_num_threads()
