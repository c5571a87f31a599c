"""Clients of the serving benchmark: raw sockets, requests built beforehand, so that the server is what is measured."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast


@dataclass
class Tally:
    """What came back: seconds from sending to the last byte of the answer, by status."""

    latencies: dict[int, list[float]] = field(default_factory=dict)
    models: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    seconds: float = 0.0

    def add(self, status: int, seconds: float) -> None:
        self.latencies.setdefault(status, []).append(seconds)

    def count(self, status: int) -> int:
        return len(self.latencies.get(status, []))


def request_bytes(path: str, body: bytes, *, headers: dict[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def triton_request(path: str, image: bytes, shape: list[int], headers: dict[str, str]) -> bytes:
    """One binary inference request of the Open Inference Protocol, with all outputs binary."""
    tensor = {"name": "images", "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": len(image)}}
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}, separators=(",", ":")).encode()
    told = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return request_bytes(path, head + image, headers={**told, **headers})


class Blocking:
    """One connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> tuple[int, bytes]:
        self._socket.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._read()
        head, _, body = data.partition(b"\r\n\r\n")
        length = content_length(head)
        while len(body) < length:
            body += self._read()
        return int(head[9:12]), body

    def _read(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def close(self) -> None:
        self._socket.close()


def content_length(head: bytes) -> int:
    low = head.lower()
    start = low.index(b"\r\ncontent-length:") + 17  # not the protocol's own Inference-Header-Content-Length
    return int(low[start:].split(b"\r\n", 1)[0])


class Connection(Protocol):
    """What the loops need of one, whatever the protocol."""

    async def ask(self, request: bytes) -> tuple[int, bytes]: ...


class _Connection(asyncio.Protocol):
    """A connection that answers one future after the other."""

    def __init__(self) -> None:
        self._data = b""
        self.waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by class

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(error or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        length = end + 4 + content_length(self._data[:end])
        if len(self._data) >= length and self.waiting is not None and not self.waiting.done():
            answer, self._data = self._data[:length], self._data[length:]
            self.waiting.set_result((int(answer[9:12]), answer[end + 4 :]))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self.waiting = asyncio.get_running_loop().create_future()
        assert self.transport is not None
        self.transport.write(request)
        return await self.waiting


async def connect(port: int) -> _Connection:
    _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", port)
    return connection


async def closed_loop(
    port: int,
    requests: list[bytes],
    *,
    clients: int,
    seconds: float,
    warm_up_s: float = 1.0,
    dial: Callable[[int], Awaitable[Connection]] = connect,
) -> Tally:
    """`clients` connections, each with one request under way at any time; what is answered in `seconds` counts."""
    connections = [await dial(port) for _ in range(clients)]
    tally, begin = Tally(), time.perf_counter() + warm_up_s
    until = begin + seconds

    async def client(number: int) -> None:
        index = number
        while (sent := time.perf_counter()) < until:
            status, _ = await connections[number].ask(requests[index % len(requests)])
            index += clients
            done = time.perf_counter()
            if begin <= done <= until:
                tally.add(status, done - sent)

    await asyncio.gather(*(client(number) for number in range(clients)))
    tally.seconds = seconds
    return tally


class _Firing(asyncio.Protocol):
    """A connection whose answers are counted as they come: no task, no future, for the client shares the machine."""

    def __init__(self, tally: Tally, idle: list[_Firing]) -> None:
        self._tally, self._idle = tally, idle
        self._data = b""
        self._sent: float | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._idle.append(self)

    def connection_lost(self, _error: Exception | None) -> None:
        if self._sent is not None:
            self._tally.failures += 1
            self._sent = None
        elif self in self._idle:
            self._idle.remove(self)

    def fire(self, request: bytes) -> None:
        assert self._transport is not None
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0 or self._sent is None or len(self._data) < end + 4 + content_length(self._data[:end]):
            return
        self._tally.add(int(self._data[9:12]), time.perf_counter() - self._sent)
        self._data, self._sent = b"", None
        self._idle.append(self)

    @property
    def waits(self) -> bool:
        """For an answer."""
        return self._sent is not None


async def open_loop(port: int, requests: list[bytes], *, per_second: float, seconds: float, most: int = 400) -> Tally:
    """Requests at fixed times whatever is answered; `most` connections, beyond which a request is not sent."""
    tally, idle, loop = Tally(), list[_Firing](), asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(lambda: _Firing(tally, idle), "127.0.0.1", port))[1] for _ in range(most)
    ]
    began, number = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        due = int(elapsed * per_second)
        while number < due:
            if idle:
                idle.pop().fire(requests[number % len(requests)])
            number += 1
        await asyncio.sleep(0.001)
    while any(connection.waits for connection in connections):
        await asyncio.sleep(0.001)
    tally.seconds = time.perf_counter() - began
    return tally


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children."""
    seconds = 0.0
    for each in family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / 100
    return seconds


def resident_bytes(pid: int) -> int:
    """Of a process and its children."""
    return sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) * 4096 for each in family(pid))


def family(pid: int) -> list[int]:
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
