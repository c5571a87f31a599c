"""A network that breaks: passes connections on to a server, and cuts them in the middle of what is sent."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class CuttingProxy:
    """Cuts `cuts` connections, each once between 1 and `most_bytes` bytes have gone to the server."""

    def __init__(self, port: int, *, cuts: int, most_bytes: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._target, self._most = port, most_bytes
        self._lock = threading.Lock()
        self._cuts, self.cut, self.bytes_sent = cuts, 0, 0
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
            with self._lock:
                budget = self._rng.randint(1, self._most) if self.cut < self._cuts else None
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._up, args=(client, server, budget), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket, budget: int | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := client.recv(16 * 1024):
                data = data if budget is None else data[: budget - passed]
                passed += len(data)
                server.sendall(data)
                with self._lock:
                    self.bytes_sent += len(data)
                if budget is not None and passed >= budget:
                    self.cut += 1
                    break
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(64 * 1024):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)


@contextmanager
def cutting(port: int, *, cuts: int, most_bytes: int, seed: int = 0) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(port, cuts=cuts, most_bytes=most_bytes, seed=seed)
    try:
        yield proxy
    finally:
        proxy.close()
