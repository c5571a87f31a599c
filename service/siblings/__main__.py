"""`python -m service.siblings NUMBER CHANNEL DOOR`: a process that answers inference beside the gateway's first one.

It is started by that one, and ends with it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import signal
import socket
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from service.allocator import share_arenas
from service.api import tracing
from service.api.inference.express import Gateway
from service.app import create_app
from service.logs import configure_logs
from service.references import ModelRef
from service.server import SWITCH_SECONDS, Server
from service.serving.statistics import Version
from service.serving.telemetry import Seen
from service.serving.thinning import Thinning
from service.settings import Settings
from service.siblings.channel import Channel
from service.siblings.connections import Adopted
from service.siblings.door import hand_over, take_over
from service.siblings.looks import Look, families_of

log = structlog.get_logger()

TOGETHER_SECONDS = 0.1
"""What is seen within this is told together."""


class First:
    """The first process, as this one sees it."""

    def __init__(self, end: socket.socket, door: socket.socket) -> None:
        self._end, self._door = end, door
        self._channel: Channel | None = None
        self._running: asyncio.Task[None] | None = None
        self._thinning = Thinning()
        self._lock = threading.Lock()
        self._seen: dict[Version, list[NDArray[np.float64]]] = {}
        self._skipped: Counter[Version] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def meet(self, app: Gateway, server: Sibling) -> None:
        """From now on this process answers what the first one asks, and serves the connections that it deals."""
        self._loop = asyncio.get_running_loop()
        self._channel = await Channel.over(self._end, Answering(app, server).handlers())
        self._running = asyncio.create_task(self._channel.run())
        self._running.add_done_callback(lambda _: server.leave())
        self._loop.add_reader(self._door, self._dealt, server)

    def give_back(self, connection: int, read: bytes) -> bool:
        """Whether the first process has the connection now."""
        return hand_over(self._door, connection, read)

    def end(self) -> None:
        """A connection is gone."""
        self.tell("gone")

    def tell(self, what: str) -> None:
        if self._channel is not None:
            self._channel.tell(what)

    def watch_drift(self, seen: Seen) -> None:
        """A taker of the telemetry, in its thread: the first process watches for all."""
        if not seen.standard or self._loop is None or self._channel is None:
            return
        version = seen.tenant, seen.answers.model
        with self._lock:
            chosen = self._thinning.of(seen.answers.p_value)
            told = bool(self._seen)
            self._seen.setdefault(version, []).append(chosen)
            self._skipped[version] += len(seen.answers) - len(chosen)
        if not told:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._loop.call_later, TOGETHER_SECONDS, self.tell_drift)

    def tell_drift(self) -> None:
        """What was seen until now: one message for many answers."""
        with self._lock:
            seen, self._seen = self._seen, {}
            skipped, self._skipped = self._skipped, Counter()
        if self._channel is not None:
            for version, p_values in seen.items():
                self._channel.tell("drift", *version, np.concatenate(p_values), skipped[version])

    def _dealt(self, server: Sibling) -> None:
        try:
            taken = take_over(self._door)
        except ConnectionError:
            asyncio.get_running_loop().remove_reader(self._door)
        except OSError as error:
            log.error("a connection is lost", reason=str(error))
            self.end()
        else:
            if taken is not None:
                server.adopt(*taken)


class Answering:
    """What the first process may ask."""

    def __init__(self, app: Gateway, server: Sibling) -> None:
        self._state, self._server = app.state, server
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="look")

    def handlers(self) -> dict[str, Any]:
        asked = (self.well, self.look, self.loaded, self.load, self.unload, self.changed, self.forget_keys)
        return {handler.__name__: handler for handler in (*asked, self.flush_captures, self.leave)}

    async def well(self) -> None:
        """Answered by an event loop that goes round."""

    async def look(self) -> bytes:
        """A Look, packed: that takes long where there are many models, and a thread of its own."""
        found = await asyncio.get_running_loop().run_in_executor(self._looking, self._looked)
        self._state.first.tell_drift()
        return found

    def _looked(self) -> bytes:
        state = self._state
        state.telemetry.flush()
        return pickle.dumps(Look(families_of(state.metrics.registry), state.statistics.counted()))

    async def loaded(self) -> list[Version]:
        found: list[Version] = self._state.engine.in_memory()
        return found

    async def flush_captures(self) -> None:
        await run_in_threadpool(self._state.sampler.flush)

    async def load(self, tenant: str, name: str, version: int) -> None:
        await self._state.engine.load(ModelRef(name, version), tenant=tenant)

    async def unload(self, tenant: str, name: str) -> None:
        await self._state.engine.unload(name, tenant=tenant)

    async def changed(self, tenant: str, name: str) -> None:
        self._state.engine.changed(name, tenant=tenant)

    async def forget_keys(self) -> None:
        self._state.known_keys.forget()

    async def leave(self) -> None:
        self._server.leave()


class Sibling(Server):
    """Without a port of its own."""

    app: Gateway
    first: First

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await self.first.meet(self.app, self)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.first.tell("leaving")
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A terminal's Ctrl-C comes to all processes: the first one says when to leave."""
        if sig != signal.SIGINT:
            super().handle_exit(sig, frame)

    def leave(self) -> None:
        self.should_exit = True

    def lost(self) -> None:
        self.first.end()


def main(number: str, channel: str, door: str) -> None:
    share_arenas()
    settings = Settings.from_env()
    configure_logs(settings.log_level, part=f"gateway-{number}")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # it tells of a port that this process does not have
    end, way = socket.socket(fileno=int(channel)), socket.socket(fileno=int(door))
    first = First(end, way)
    app = create_app(settings, first=first)
    tracing.install(app, os.environ)
    server = Sibling.of(app, settings, http=Adopted)
    server.app, server.first = app, first
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    server.run(sockets=[])


if __name__ == "__main__":
    main(*sys.argv[1:])
