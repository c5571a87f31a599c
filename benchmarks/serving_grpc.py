"""The Open Inference Protocol over gRPC, one call at a time, as light on the machine as the benchmark's HTTP client.

Enough of HTTP/2 and of protobuf for a request that is built beforehand and fits into one frame; no headers are read,
for a call that fails has no message.
"""

from __future__ import annotations

import asyncio
import struct
from typing import cast

CALL = "/inference.GRPCInferenceService/ModelInfer"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, WINDOW = 0, 1, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
FRAME = struct.Struct(">IBI")  # length and kind, flags, stream
PREFIX = 5  # of a gRPC message: compressed or not, its length
MOST_BYTES = 2**30  # that the server may send without asking


def infer_message(model: str, image: bytes) -> bytes:
    """A ModelInferRequest with one element of type BYTES in its raw contents: MLServer makes no list of its pixels."""
    tensor = _field(1, b"images") + _field(2, b"BYTES") + _field(3, b"\x01\x01")  # of shape (1, 1)
    return _field(1, model.encode()) + _field(5, tensor) + _field(7, struct.pack("<I", len(image)) + image)


def raw_output(message: bytes) -> bytes:
    """The first element in the raw contents of a ModelInferResponse, whose fields are all bytes."""
    at = 0
    while at < len(message):
        number, (length, at) = message[at] >> 3, _varint(message, at + 1)
        if number == 6:
            return message[at + 4 : at + length]
        at += length
    raise ValueError("the answer has no raw contents")


class GrpcConnection(asyncio.Protocol):
    """A connection that answers one future after the other, with status 200 where there is a message, else 500."""

    def __init__(self) -> None:
        self._data = self._answer = b""
        self._stream = -1
        self._headers = _headers("bench")
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        opened = _frame(SETTINGS, 0, 0) + _frame(WINDOW, 0, 0, MOST_BYTES.to_bytes(4, "big"))
        self._transport.write(PREFACE + opened)

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= FRAME.size:
            head, flags, _ = FRAME.unpack_from(self._data)
            end = FRAME.size + (head >> 8)
            if len(self._data) < end:
                return
            payload, self._data = self._data[FRAME.size : end], self._data[end:]
            self._take(head & 0xFF, flags, payload)

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        assert self._transport is not None
        if kind in (SETTINGS, PING) and not flags & ACK:
            self._transport.write(_frame(kind, ACK, 0, payload if kind == PING else b""))
        if kind == DATA:
            self._answer += payload
        ends = kind == RESET or (kind in (DATA, HEADERS) and flags & END_STREAM)
        if ends and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((200 if self._answer else 500, self._answer[PREFIX:]))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self._waiting = asyncio.get_running_loop().create_future()
        self._stream, self._answer = self._stream + 2, b""
        body = struct.pack(">BI", 0, len(request)) + request
        assert self._transport is not None
        opened = _frame(HEADERS, END_HEADERS, self._stream, self._headers)
        self._transport.write(opened + _frame(DATA, END_STREAM, self._stream, body))
        return await self._waiting


async def connect_grpc(port: int) -> GrpcConnection:
    _, connection = await asyncio.get_running_loop().create_connection(GrpcConnection, "127.0.0.1", port)
    return connection


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


def _headers(authority: str) -> bytes:
    """By RFC 7541: POST and http from its table, the others as they are, and none to be remembered."""
    indexed = b"\x83\x86"
    named = b"\x04" + _text(CALL) + b"\x01" + _text(authority) + b"\x0f\x10" + _text("application/grpc")
    return indexed + named + b"\x00" + _text("te") + _text("trailers")


def _text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


def _field(number: int, value: bytes) -> bytes:
    """A field of protobuf that is bytes, text, a message or packed numbers."""
    length, tag = len(value), bytes([number << 3 | 2])
    while length > 0x7F:
        tag, length = tag + bytes([length & 0x7F | 0x80]), length >> 7
    return tag + bytes([length]) + value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number, and where what follows it begins."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 0x80:
            return value, at
