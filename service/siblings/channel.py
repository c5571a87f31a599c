"""Messages between the first process and a sibling, over a pair of sockets that nobody else holds."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import structlog

LENGTH_BYTES = 8
ANSWERED, FAILED = "answered", "failed"

Handler = Callable[..., Awaitable[Any]]

log = structlog.get_logger()


class ChannelFailed(Exception):
    """The other side is gone, failed at what it was asked, or did not answer in time."""


class Channel:
    """Asks and answers at once, in both directions. All state belongs to the event loop.

    What comes is unpickled: both ends are processes of this gateway, and the sockets are inherited, never named.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handlers: Mapping[str, Handler]
    ) -> None:
        self._reader, self._writer, self._handlers = reader, writer, handlers
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()

    @classmethod
    async def over(cls, end: socket.socket, handlers: Mapping[str, Handler]) -> Self:
        end.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=end), handlers)

    async def run(self) -> None:
        """Until the other side has ended."""
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
                self._take(*pickle.loads(await self._reader.readexactly(length)))  # noqa: S301 - see the class
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.close()

    async def ask(self, what: str, *given: Any, within_seconds: float = 10.0) -> Any:
        """What the handler of that name returns there. Raises ChannelFailed."""
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(number, what, given)
            async with asyncio.timeout(within_seconds):
                return await answer
        except TimeoutError as error:
            raise ChannelFailed(f"no answer to {what} within {within_seconds:g} s") from error
        finally:
            del self._asked[number]

    def tell(self, what: str, *given: Any) -> None:
        """Nothing comes back; nothing is told to who has ended."""
        if not self._writer.is_closing():
            self._send(0, what, given)

    def close(self) -> None:
        self._writer.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ChannelFailed("the other process has ended"))

    def _send(self, number: int, what: str, given: Any) -> None:
        if self._writer.is_closing():
            raise ChannelFailed("the other process has ended")
        frame = pickle.dumps((number, what, given))
        self._writer.write(len(frame).to_bytes(LENGTH_BYTES, "big") + frame)

    def _take(self, number: int, what: str, given: Any) -> None:
        if what not in (ANSWERED, FAILED):
            task = asyncio.create_task(self._answer(number, what, given))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        answer = self._asked.get(number)
        if answer is None or answer.done():
            return
        if what == ANSWERED:
            answer.set_result(given)
        else:
            answer.set_exception(ChannelFailed(given))

    async def _answer(self, number: int, what: str, given: tuple[Any, ...]) -> None:
        try:
            found = await self._handlers[what](*given)
        except Exception as error:  # noqa: BLE001 - it is told to who asked, and logged here
            log.warning("a sibling's request failed", what=what, reason=f"{type(error).__name__}: {error}")
            outcome, found = FAILED, f"{type(error).__name__}: {error}"
        else:
            outcome = ANSWERED
        if number and not self._writer.is_closing():
            self._send(number, outcome, found)
