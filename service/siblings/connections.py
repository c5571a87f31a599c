"""Connections that change the process: those that ask for inference are dealt out, all others come back."""

from __future__ import annotations

from typing import Protocol, cast

from service.api.access import INFERENCE
from service.api.inference.express import misdirected
from service.server import Connection

ENDINGS = tuple(ending.encode() for ending in INFERENCE)


def asks_for_inference(read: bytes) -> bool:
    """Whether a request that begins so is for inference, as far as its first line says it."""
    line, end, _ = read.partition(b"\r\n")
    method, _, rest = line.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    return bool(end) and method == b"POST" and path.endswith(ENDINGS) and b"#" not in path


class Dealer(Protocol):
    """Who gets a connection."""

    def deal(self, connection: int, read: bytes, *, mine: bool) -> bool:
        """Whether another process has it now. mine: it was dealt to this one before."""
        ...

    def end(self) -> None:
        """A connection that was dealt to this very process is gone."""
        ...


class Shared(Connection):
    """One that can be given away between two requests."""

    def at_rest(self) -> bool:
        """Nothing of a request is here, and nothing of an answer is still to be sent."""
        waits = self._in_message or self.pipeline or self.transport.is_closing()
        return not waits and self._idle() and not self.transport.get_write_buffer_size()

    def descriptor(self) -> int:
        return int(self.transport.get_extra_info("socket").fileno())

    def let_go(self) -> None:
        """Without a word to the client: another process has the connection."""
        self.transport.pause_reading()
        self.transport.abort()


class Dealt(Shared):
    """In the first process, which accepts all of them."""

    _own = False

    def data_received(self, data: bytes) -> None:
        if self.at_rest() and asks_for_inference(data):
            dealt = self._dealer().deal(self.descriptor(), data, mine=self._own)
            self._own = not dealt
            if dealt:
                self.let_go()
                return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._own:
            self._own = False
            self._dealer().end()
        super().connection_lost(exc)

    def _dealer(self) -> Dealer:
        return cast("Dealer", self.config.app.state.siblings)  # type: ignore[union-attr]


class Adopted(Shared):
    """In a sibling, which knows nothing but inference."""

    def data_received(self, data: bytes) -> None:
        if self.at_rest() and not self._leaving and not asks_for_inference(data):
            if self.config.app.state.first.give_back(self.descriptor(), data):  # type: ignore[union-attr]
                self.let_go()
            else:
                self.refuse(misdirected())
            return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.config.app.state.first.end()  # type: ignore[union-attr]
        super().connection_lost(exc)
