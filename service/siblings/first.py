"""The first process's view of its siblings: it starts them, deals connections out to them, and asks all of them."""

from __future__ import annotations

import asyncio
import pickle
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from service.errors import Unavailable
from service.serving.drift import DriftMonitor
from service.serving.statistics import Version
from service.siblings.channel import Channel, ChannelFailed, Handler
from service.siblings.door import hand_over, pair, take_over
from service.siblings.looks import Look
from service.siblings.members import Member, Members

START_SECONDS = 120.0
LOAD_SECONDS = 60.0
SOON_SECONDS = 2.0
"""For what a sibling only has to note: one that takes longer finds out by itself within a second, or hangs."""

PING_SECONDS, HUNG_SECONDS = 2.0, 30.0
"""How often each is asked whether it is well; one that does not say so for so long is ended, and started anew."""

NOW_SECONDS = 15.0
"""A thread of a request waits no longer: what the siblings saw of drift is taken in with a look at the database."""

END_SECONDS = 6.5
"""From when they are told to leave: the server's own patience with open requests, and a little more."""

AGAIN_AFTER_SECONDS, AGAIN_AT_MOST_SECONDS = 1.0, 60.0
"""Until one that ended is started anew: twice as long after each time that it ended without having served for long."""

log = structlog.get_logger()
Adopt = Callable[[socket.socket, bytes], None]
ResultT = TypeVar("ResultT")


class Siblings:
    """None, unless `engage` is called before `start`. All state is the event loop's."""

    def __init__(self, drift: DriftMonitor) -> None:
        """drift: watches what they answer, too."""
        self._drift_monitor = drift
        self._count = 0
        self._adopt: Adopt | None = None
        self._members = Members()
        self._processes: set[asyncio.subprocess.Process] = set()
        self._taking_in = asyncio.Lock()
        self._left = asyncio.Event()
        self._leaving_since: float | None = None
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
        """Once the port is this process's."""
        self._loop = asyncio.get_running_loop()
        self._keeping = [asyncio.create_task(self._keep(number)) for number in range(1, self._count + 1)]

    def leave(self) -> None:
        """Have them finish what they have, and end."""
        if self._leaving_since is None:
            self._leaving_since = time.monotonic()
            self._left.set()
            for member in self._members:
                member.channel.tell("leave")
            self._members.close()

    async def close(self) -> None:
        """Until all of them have ended."""
        self.leave()
        if self._keeping and self._leaving_since is not None:
            left = self._leaving_since + END_SECONDS - time.monotonic()
            await asyncio.wait(self._keeping, timeout=max(left, 0.1))
            for process in self._processes:
                log.warning("a sibling did not end, and is ended", pid=process.pid)
                _kill(process)
            await asyncio.gather(*self._keeping, return_exceptions=True)

    def deal(self, connection: int, read: bytes, *, mine: bool) -> bool:
        """To whoever has the fewest connections. Whether it is a sibling, and it has it now.

        mine: it was dealt to this process before, which has more than others by now.
        """
        member = self._members.chosen(mine=mine)
        taken = member is not None and hand_over(member.door, connection, read)
        self._members.dealt(member if taken else None, mine=mine)
        return taken

    def end(self) -> None:
        """A connection that was dealt to this process is gone."""
        self._members.own -= 1

    async def load(self, tenant: str, name: str, version: int) -> None:
        """Have all of them ready to answer with it, too; one that fails loads it when it is asked."""
        await self._ask_all("load", tenant, name, version, within_seconds=LOAD_SECONDS)

    async def unload(self, tenant: str, name: str) -> None:
        await self._ask_all("unload", tenant, name)

    async def changed(self, tenant: str, name: str) -> None:
        """An alias of this model has moved: all of them follow it with their next request."""
        await self._ask_all("changed", tenant, name)

    async def forget_keys(self) -> None:
        """Some key has changed."""
        await self._ask_all("forget_keys")

    async def flush_captures(self) -> None:
        """What they chose until now is written."""
        await self._ask_all("flush_captures")

    async def loaded(self) -> set[Version]:
        """In the memory of any of them."""
        found = await self._ask_all("loaded")
        return {version for versions in found.values() for version in versions}

    async def look(self) -> list[Look]:
        """What each has counted until now, and all that have ended. What they saw of drift has been taken in then."""
        found = await self._ask_all("look")
        for member, packed in found.items():
            member.looked = await asyncio.to_thread(pickle.loads, packed)
        async with self._taking_in:  # after what came before the looks
            return self._members.looks()

    def now(self, asked: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT | None:
        """What one of the above gives, for threads; None where there are no siblings. Raises Unavailable."""
        if self._loop is None or not self._count:
            return None
        asking = asyncio.run_coroutine_threadsafe(asked(), self._loop)
        try:
            return asking.result(NOW_SECONDS)
        except FutureTimeout as error:
            asking.cancel()
            raise Unavailable("The gateway's processes do not say what they know. Is the database well?") from error

    def look_now(self) -> list[Look]:
        return self.now(self.look) or []

    async def _ask_all(self, what: str, *given: Any, within_seconds: float = SOON_SECONDS) -> dict[Member, Any]:
        """What those answer that answer in time."""
        members = list(self._members)
        asked = (member.channel.ask(what, *given, within_seconds=within_seconds) for member in members)
        answers = dict(zip(members, await asyncio.gather(*asked, return_exceptions=True), strict=True))
        for member, answer in answers.items():
            if isinstance(answer, ChannelFailed):
                log.warning("a sibling did not answer", sibling=member.number, what=what, reason=str(answer))
            elif isinstance(answer, BaseException):
                raise answer
        return {member: answer for member, answer in answers.items() if not isinstance(answer, BaseException)}

    async def _keep(self, number: int) -> None:
        again = AGAIN_AFTER_SECONDS
        while self._leaving_since is None:
            began, told = time.monotonic(), ""
            try:
                told = f"exit code {await self._live(number)}"
            except Exception as error:  # noqa: BLE001 - it is tried again, whatever was in its way
                told = f"{type(error).__name__}: {error}"
            if self._leaving_since is None:
                again = AGAIN_AFTER_SECONDS if time.monotonic() - began > AGAIN_AT_MOST_SECONDS else again
                log.error("a sibling ended, and is started anew", sibling=number, reason=told, in_seconds=again)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._left.wait(), again)
                again = min(2 * again, AGAIN_AT_MOST_SECONDS)

    async def _live(self, number: int) -> int:
        """The life of one process; its exit code."""
        (ours, theirs), (door, their_door) = socket.socketpair(), pair()
        with ours, theirs, door, their_door:
            ends = theirs.fileno(), their_door.fileno()
            safely = ["-P"] if sys.flags.safe_path else []
            command = [sys.executable, *safely, "-m", "service.siblings", str(number), *map(str, ends)]
            process = await asyncio.create_subprocess_exec(*command, pass_fds=ends)
            self._processes.add(process)
            theirs.close()
            their_door.close()
            try:
                await self._serve(number, process, ours, door)
            finally:
                code = await _ended(process)
                self._processes.discard(process)
        return code

    async def _serve(
        self, number: int, process: asyncio.subprocess.Process, ours: socket.socket, door: socket.socket
    ) -> None:
        """Until its channel ends."""
        handlers: dict[str, Handler] = {"drift": self._drift}
        channel = await Channel.over(ours, handlers)
        member = Member(number, channel, door)
        handlers |= {"gone": member.gone, "leaving": lambda: self._members.left(member)}
        running, loop = asyncio.create_task(channel.run()), asyncio.get_running_loop()
        watching: asyncio.Task[None] | None = None
        try:
            await channel.ask("well", within_seconds=START_SECONDS)
            self._members.add(member)
            watching = asyncio.create_task(_watch(member, process))
            loop.add_reader(door, self._returned, door)
            if self._leaving_since is not None:
                channel.tell("leave")
            await running
        except ChannelFailed as error:
            log.error("a sibling did not start", sibling=number, reason=str(error))
        finally:
            if watching is not None:
                watching.cancel()
            loop.remove_reader(door)
            self._members.remove(member)
            channel.close()
            await running

    def _returned(self, door: socket.socket) -> None:
        try:
            taken = take_over(door)
        except ConnectionError:
            asyncio.get_running_loop().remove_reader(door)
        except OSError as error:
            log.error("a connection is lost", reason=str(error))
        else:
            if taken is not None and self._adopt is not None:
                self._adopt(*taken)

    async def _drift(self, tenant: str, model: str, p_values: Any, skipped: int) -> None:
        async with self._taking_in:
            await asyncio.to_thread(self._drift_monitor.observe, tenant, model, p_values, skipped)


async def _watch(member: Member, process: asyncio.subprocess.Process) -> None:
    """One that is late gets no connections; one that hangs is ended."""
    while True:
        await asyncio.sleep(PING_SECONDS)
        asked = asyncio.create_task(member.channel.ask("well", within_seconds=HUNG_SECONDS))
        done, _ = await asyncio.wait([asked], timeout=SOON_SECONDS)
        member.late = not done
        try:
            await asked
        except ChannelFailed as error:
            log.error("a sibling hangs, and is ended", sibling=member.number, reason=str(error))
            _kill(process)
            return
        member.late = False


async def _ended(process: asyncio.subprocess.Process) -> int:
    """It ends when its channel does; one that does not is ended."""
    try:
        async with asyncio.timeout(END_SECONDS):
            return await process.wait()
    except TimeoutError:
        _kill(process)
        return await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
