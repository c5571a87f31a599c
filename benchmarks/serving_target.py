"""A server as the clients of the comparison see it: how it is asked, whether it answers right, and how much."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.serving_client import Connection, Tally, closed_loop
from benchmarks.serving_environments import PeerFailed

CLIENTS = 32
WARM_UP_S = 2.0
PATIENCE_S = 60.0
ATOL = 1e-5
"""Between a peer's probabilities and the bare session's: batches of other sizes may be computed by other kernels."""

Probabilities = NDArray[np.float32]
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Target:
    """`requests` ask for one image each, in order; `answer` finds the probabilities' bytes in a body."""

    name: str
    port: int
    dial: Callable[[int], Awaitable[Connection]]
    requests: list[bytes]
    answer: Callable[[bytes], bytes]


def check(target: Target, wanted: Probabilities) -> None:
    """All requests by all clients at once, so that batches are mixed: each gets its own image's answer.

    wanted: (n, classes), of the bare session. Raises PeerFailed.
    """
    found = _within(PATIENCE_S, target, _ask_all(target))
    for index, (status, body) in enumerate(found):
        if status != 200:
            raise PeerFailed(f"{target.name} answers {status}: {body[:200]!r}")
        values = np.frombuffer(target.answer(body), np.float32)
        if values.shape != wanted[index].shape or not np.allclose(values, wanted[index], rtol=0, atol=ATOL):
            raise PeerFailed(f"{target.name} answers image {index} otherwise than ONNX Runtime does")


def load(target: Target, seconds: float) -> Tally:
    """What all clients get, each with one request under way at any time. Raises PeerFailed."""
    loop = closed_loop(
        target.port, target.requests, clients=CLIENTS, seconds=seconds, warm_up_s=WARM_UP_S, dial=target.dial
    )
    return _within(WARM_UP_S + seconds + PATIENCE_S, target, loop)


def _within(limit_s: float, target: Target, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    async def limited() -> ResultT:
        async with asyncio.timeout(limit_s):
            return await work

    try:
        return uvloop.run(limited())
    except OSError as error:  # connections lost, time run out
        raise PeerFailed(f"{target.name} under load: {type(error).__name__} {error}") from error


async def ask_once(target: Target, timeout_s: float) -> tuple[int, bytes]:
    async with asyncio.timeout(timeout_s):
        connection = await target.dial(target.port)
        return await connection.ask(target.requests[0])


async def _ask_all(target: Target) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = [(0, b"")] * len(target.requests)

    async def client(number: int) -> None:
        connection = await target.dial(target.port)
        for index in range(number, len(found), CLIENTS):
            found[index] = await connection.ask(target.requests[index])

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return found
