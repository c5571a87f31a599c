"""The gateway under uvicorn: its quicker parser with a limit to what it keeps, and an end that nothing holds up."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.problems import problem
from service.settings import Settings

GRACE_SECONDS = 5
IDLE_SECONDS = 0.5
MOST_HEAD_BYTES = 64 * 1024


class Connection(HttpToolsProtocol):
    """One client's connection.

    It refuses a request line and headers of more than MOST_HEAD_BYTES, give or take one read: the parser has no end.
    What is no HTTP never comes to the application, and is answered in its form all the same. When the server stops, a
    request that is on its way over an idle connection is still answered, if it comes within IDLE_SECONDS.
    """

    _in_head = False
    _head_bytes = 0
    _leaving = False

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.send_400_response(f"The request line and headers are over {MOST_HEAD_BYTES} bytes.")
                return
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        body = bytes(problem(400, "bad_request", msg).body)
        lines = ["HTTP/1.1 400 Bad Request", "content-type: application/problem+json", f"content-length: {len(body)}"]
        head = "\r\n".join([*lines, "connection: close", "", ""])
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()
        if self._leaving and self.cycle is not None:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        if self._idle():
            self._leaving = True
            self.loop.call_later(IDLE_SECONDS, self._close_if_idle)
        else:
            super().shutdown()

    def _close_if_idle(self) -> None:
        if self._idle():
            self.transport.close()

    def _idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)


class Server(uvicorn.Server):
    """It waits for open connections at its end. on_stop, called on the event loop as soon as the server has been told
    to stop, ends what streams before that."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @classmethod
    def of(cls, app: FastAPI, settings: Settings) -> Server:
        """As the settings say; the feeds of `app` end when it is told to stop."""
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=Connection,
            loop="uvloop",
            log_config=None,
            access_log=False,
            proxy_headers=bool(settings.forwarded_allow_ips),
            forwarded_allow_ips=settings.forwarded_allow_ips or None,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        return cls(config, on_stop=app.state.feeds.close)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)
