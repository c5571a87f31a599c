"""The gateway under uvicorn: its quicker parser with a limit to what it keeps, and an end that nothing holds up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Self, cast

import structlog
import uvicorn
from fastapi import FastAPI
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.access import ADMITTED, Admitted
from service.api.inference.admitting import admitted
from service.api.inference.infer import BODY_SECONDS
from service.api.problems import problem
from service.settings import Settings

SWITCH_SECONDS = 0.0005
"""A thread that has computed waits this long for the busy event loop to let it go on, not Python's ten times that."""

GRACE_SECONDS = 5
IDLE_SECONDS = 0.5
MOST_HEAD_BYTES = 64 * 1024


log = structlog.get_logger()


class Connection(HttpToolsProtocol):
    """One client's connection.

    It refuses more than MOST_HEAD_BYTES, give or take a read, that bring no body: a head, trailers, chunks' extensions
    have no end for the parser. Trailers are no headers, and are dropped.
    What is no HTTP never comes to the application, and is answered in its form all the same. When the server stops, a
    request that is on its way over an idle connection is still answered, if it comes within IDLE_SECONDS. Inference is
    let in or refused here.
    """

    first = b""
    """What another process had read of it."""

    _in_head = _in_message = False
    _gains = 0  # of messages and pieces of bodies
    _vain_bytes = 0  # of reads in a row that gained nothing
    _leaving = False
    _refusal: bytes | None = None  # of the request that is being read
    _patience: asyncio.TimerHandle | None = None  # with its body
    _admitted: tuple[Admitted, dict[str, Any]] | None = None  # the request under way, and the state of its scope

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.first:
            self.data_received(self.first)
            self.loop.call_soon(self._pause_again)

    def _pause_again(self) -> None:
        """Where what had been read was enough for now: uvloop begins to read only after this connection was made."""
        if self.flow.read_paused and not self.transport.is_closing():
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        gains = self._gains
        super().data_received(data)
        self._vain_bytes = self._vain_bytes + len(data) if self._in_message and self._gains == gains else 0
        if self._vain_bytes > MOST_HEAD_BYTES:
            self.send_400_response(f"The request line and headers are over {MOST_HEAD_BYTES} bytes.")

    def send_400_response(self, msg: str) -> None:
        self.refuse(problem(400, "bad_request", msg, headers={"connection": "close"}))

    def refuse(self, answer: Response) -> None:
        """The last word on this connection."""
        self.transport.write(_as_http(answer))
        self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head = self._in_message = True
        self._gains += 1
        self._unset_keepalive_if_required()  # set by the refusal of a request that came in the same read
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._idle() and self.parser.get_method() == b"POST" and not self.flow.write_paused:
            path = self.url.partition(b"?")[0].decode("ascii", "replace")
            given = admitted(self.config.app.state, path, self.headers)  # type: ignore[union-attr]
            if isinstance(given, bytes):
                self._refusal = given
                self._patience = self.loop.call_later(BODY_SECONDS, self.transport.close)
                return
            if given is not None:
                self.scope["state"][ADMITTED] = given
                self._admitted = given, self.scope["state"]
        super().on_headers_complete()
        if self._leaving and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._gains += 1
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        self._gains += 1
        if self._refusal is None:
            super().on_message_complete()
            return
        answer, self._refusal = self._refusal, None
        self._end_patience()
        if self._leaving or self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive():
            self.transport.write(answer.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            self.transport.close()
        else:
            self.transport.write(answer)
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Reads on only once what was sent ahead has been answered: else every answer lets more of it queue up."""
        self._leave()
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._end_patience()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._idle():
            self._leaving = True
            self.loop.call_later(IDLE_SECONDS, self._close_if_idle)
        else:
            super().shutdown()

    def _close_if_idle(self) -> None:
        if self._idle():
            self.transport.close()

    def _leave(self) -> None:
        """Gives back the place of a request that was refused on its way to who would have taken it."""
        if self._admitted is not None:
            admitted, state = self._admitted
            self._admitted = None
            if state.pop(ADMITTED, None) is not None:
                admitted.admission.leave()

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)


def _as_http(answer: Response) -> bytes:
    lines = [STATUS_LINE[answer.status_code], *(b"%s: %s\r\n" % header for header in answer.raw_headers), b"\r\n"]
    return b"".join(lines) + bytes(answer.body)


class Server(uvicorn.Server):
    """It waits for open connections at its end. on_stop, called on the event loop as soon as the server has been told
    to stop, ends what streams before that."""

    def __init__(
        self, config: uvicorn.Config, on_stop: Callable[[], None], on_start: Callable[[], None] | None = None
    ) -> None:
        super().__init__(config)
        self._on_stop, self._on_start = on_stop, on_start
        self._adopting: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, app: FastAPI, settings: Settings, *, http: type[Connection] | None = None) -> Self:
        """As the settings say; the feeds of `app` end, and its siblings leave, when it is told to stop."""
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=http or Connection,
            ws="none",
            loop="uvloop",
            log_config=None,
            access_log=False,
            proxy_headers=bool(settings.forwarded_allow_ips),
            forwarded_allow_ips=settings.forwarded_allow_ips or None,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )

        def stop() -> None:
            app.state.feeds.close()
            app.state.siblings.leave()

        return cls(config, on_stop=stop, on_start=app.state.siblings.start)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_start is not None:
            self._on_start()

    def adopt(self, connection: socket.socket, read: bytes) -> None:
        """Serve a connection that another process has accepted, and read this much of."""
        task = asyncio.get_running_loop().create_task(self._adopted(connection, read))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    async def _adopted(self, connection: socket.socket, read: bytes) -> None:
        made = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        protocol = cast("Connection", made)
        protocol.first = read
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, connection)
        except OSError as error:  # the client has gone meanwhile
            log.debug("a connection was gone before it was served", reason=str(error))
            connection.close()
            self.lost()
            return
        if self.should_exit:
            protocol.shutdown()

    def lost(self) -> None:
        """A connection that was handed over could not be served."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)
