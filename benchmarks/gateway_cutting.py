"""A network that breaks: passes connections on to a server, and cuts them at random places of what is sent."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

RECEIVE_BYTES = 256 * 1024


class CuttingProxy:
    """Cuts whichever connection carries a byte, counted over all of them, that was drawn for a cut."""

    def __init__(self, port: int, *, cuts: int, within: int, seed: int) -> None:
        self._target, self._lock = port, threading.Lock()
        self._places = sorted(random.Random(seed).sample(range(within), cuts))
        self._passed = self.cut = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(RECEIVE_BYTES):
                passed_on = self._before_a_cut(data)
                server.sendall(passed_on)
                if len(passed_on) < len(data):
                    break
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _before_a_cut(self, data: bytes) -> bytes:
        """All of it, or what comes before the place of the next cut."""
        with self._lock:
            begin, self._passed = self._passed, self._passed + len(data)
            if self._places and self._places[0] < self._passed:
                place = self._places.pop(0)
                self.cut += 1
                return data[: max(0, place - begin)]
            return data

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(RECEIVE_BYTES):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)


@contextmanager
def cutting(port: int, *, cuts: int, within: int, seed: int = 0) -> Iterator[CuttingProxy]:
    """within: of so many bytes, each is as likely to be cut at."""
    proxy = CuttingProxy(port, cuts=cuts, within=within, seed=seed)
    try:
        yield proxy
    finally:
        proxy.close()
