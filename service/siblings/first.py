"""The first process's view of its siblings: it starts them, deals connections out to them, and asks all of them."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from service.serving.drift import DriftMonitor
from service.siblings.channel import Channel, ChannelFailed, Handler
from service.siblings.door import hand_over, pair, take_over
from service.siblings.looks import Look

START_SECONDS = 120.0
END_SECONDS = 10.0
LOOK_SECONDS = 5.0
AGAIN_AFTER_SECONDS = 1.0
"""A sibling that ended is started anew; one that ends again and again does not keep the machine busy with it."""

log = structlog.get_logger()
Adopt = Callable[[socket.socket, bytes], None]


@dataclass(eq=False)
class Member:
    """A sibling that serves. connections: how many it has, as far as it said."""

    number: int
    channel: Channel
    door: socket.socket
    connections: int = 0

    async def gone(self) -> None:
        self.connections -= 1


class Siblings:
    """None, unless `engage` is called before `start`. All state is the event loop's."""

    def __init__(self, drift: DriftMonitor) -> None:
        """drift: watches what they answer, too."""
        self._drift_monitor = drift
        self._count = 0
        self._adopt: Adopt | None = None
        self._members: list[Member] = []
        self._own = 0  # connections that were dealt to this process
        self._taking_in = asyncio.Lock()
        self._leaving = False
        self._keeping: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def serving(self) -> int:
        """How many serve at this moment."""
        return len(self._members)

    def engage(self, count: int, adopt: Adopt) -> None:
        """adopt: serves a connection that a sibling gives back."""
        self._count, self._adopt = count, adopt

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._keeping = [asyncio.create_task(self._keep(number)) for number in range(1, self._count + 1)]

    def leave(self) -> None:
        """Have them finish what they have, and end."""
        self._leaving = True
        for member in self._members:
            member.channel.tell("leave")

    async def close(self) -> None:
        """Until all of them have ended."""
        self.leave()
        if self._keeping:
            _, late = await asyncio.wait(self._keeping, timeout=END_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def deal(self, connection: int, read: bytes) -> bool:
        """To whoever has the fewest connections. Whether it is a sibling, and it has it now."""
        member = min(self._members, key=lambda each: each.connections, default=None)
        if member is None or member.connections > self._own or not hand_over(member.door, connection, read):
            self._own += 1
            return False
        member.connections += 1
        return True

    def end(self) -> None:
        """A connection that was dealt to this process is gone."""
        self._own -= 1

    async def load(self, tenant: str, name: str, version: int) -> None:
        """Have all of them ready to answer with it, too; one that fails loads it when it is asked."""
        await self._ask_all("load", tenant, name, version)

    async def unload(self, tenant: str, name: str) -> None:
        await self._ask_all("unload", tenant, name)

    async def changed(self, tenant: str, name: str) -> None:
        """An alias of this model has moved: all of them follow it with their next request."""
        await self._ask_all("changed", tenant, name)

    async def forget_keys(self) -> None:
        """Some key has changed."""
        await self._ask_all("forget_keys")

    async def look(self) -> list[Look]:
        """What each has counted until now. What it saw of drift has been taken in then."""
        looks: list[Look] = await self._ask_all("look", within_seconds=LOOK_SECONDS)
        async with self._taking_in:  # after what came before the looks
            return looks

    def look_now(self) -> list[Look]:
        """The same, for threads."""
        if self._loop is None or not self._members:
            return []
        return asyncio.run_coroutine_threadsafe(self.look(), self._loop).result()

    async def _ask_all(self, what: str, *given: Any, **how: Any) -> list[Any]:
        members = list(self._members)
        asked = (member.channel.ask(what, *given, **how) for member in members)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for member, answer in zip(members, answers, strict=True):
            if isinstance(answer, ChannelFailed):
                log.warning("a sibling did not answer", sibling=member.number, what=what, reason=str(answer))
            elif isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    async def _keep(self, number: int) -> None:
        while not self._leaving:
            code = await self._live(number)
            if not self._leaving:
                log.error("a sibling ended, and is started anew", sibling=number, exit_code=code)
                await asyncio.sleep(AGAIN_AFTER_SECONDS)

    async def _live(self, number: int) -> int:
        """The life of one process; its exit code."""
        (ours, theirs), (door, their_door) = socket.socketpair(), pair()
        with door, theirs, their_door:
            ends = theirs.fileno(), their_door.fileno()
            command = [sys.executable, "-P", "-m", "service.siblings", str(number), *map(str, ends)]
            process = await asyncio.create_subprocess_exec(*command, pass_fds=ends)
            theirs.close()
            their_door.close()
            try:
                await self._serve(number, ours, door)
            finally:
                code = await _ended(process)
        return code

    async def _serve(self, number: int, ours: socket.socket, door: socket.socket) -> None:
        handlers: dict[str, Handler] = {"drift": self._drift}
        channel = await Channel.over(ours, handlers)
        member = Member(number, channel, door)
        handlers["gone"] = member.gone
        running, loop = asyncio.create_task(channel.run()), asyncio.get_running_loop()
        try:
            await channel.ask("start", within_seconds=START_SECONDS)
            self._members.append(member)
            loop.add_reader(door, self._returned, door)
            if self._leaving:
                channel.tell("leave")
            await running
        except ChannelFailed as error:
            log.error("a sibling did not start", sibling=number, reason=str(error))
        finally:
            loop.remove_reader(door)
            if member in self._members:
                self._members.remove(member)
            channel.close()
            await running

    def _returned(self, door: socket.socket) -> None:
        try:
            taken = take_over(door)
        except OSError as error:
            log.error("a connection is lost", reason=str(error))
            return
        if taken is not None and self._adopt is not None:
            self._adopt(*taken)

    async def _drift(self, tenant: str, model: str, p_values: Any, skipped: int) -> None:
        async with self._taking_in:
            await asyncio.to_thread(self._drift_monitor.observe, tenant, model, p_values, skipped)


async def _ended(process: asyncio.subprocess.Process) -> int:
    """It ends when its channel does; one that does not is ended."""
    try:
        async with asyncio.timeout(END_SECONDS):
            return await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        return await process.wait()
