"""The gateway under uvicorn, which waits for open connections at its end: what streams is told to end before that."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

GRACE_SECONDS = 5


class Server(uvicorn.Server):
    """on_stop: called on the event loop as soon as the server has been told to stop."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)
