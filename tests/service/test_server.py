"""The server before the application: heads without an end are refused, and its end loses no request on its way."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.app import create_app
from service.auth import ensure_admin_key
from service.server import GRACE_SECONDS, IDLE_SECONDS, MOST_HEAD_BYTES
from service.settings import Settings
from tests.service.live import serving
from tests.service.migrated import migrated

ASKED = b"GET /healthz HTTP/1.1\r\nHost: here\r\n"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    settings: Settings = migrated(Settings(home=Path(tmp_path_factory.mktemp("home"))).resolved())
    with serving(create_app(settings), key=ensure_admin_key(settings)) as client:
        yield client.base_url.host, client.base_url.port or 0


def answers(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    got = b""
    while part := connection.recv(65_536):
        got += part
    return got


@pytest.mark.parametrize("endless", [b"GET /", b"GET /healthz HTTP/1.1\r\nX: ", b"GET /healthz HTTP/1.1\r\n"])
def test_a_head_without_an_end_is_refused_soon(address: tuple[str, int], endless: bytes) -> None:
    piece = b"y" * 1024 if endless[-2:] != b"\r\n" else b"X: " + b"y" * 1019 + b"\r\n"
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(endless)
        sent = 0
        try:
            while sent < 64 * MOST_HEAD_BYTES:
                connection.sendall(piece)
                sent += len(piece)
            got = answers(connection)
        except (BrokenPipeError, ConnectionResetError):
            got = b""
    assert sent < 64 * MOST_HEAD_BYTES or b" 400 " in got


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", ASKED + b"X: \x7f\x00\r\n\r\n"])
def test_what_is_no_http_gets_a_problem_as_an_answer(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(sent)
        head, _, body = answers(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == "bad_request"


def test_requests_one_after_the_other_are_counted_each_for_itself(address: tuple[str, int]) -> None:
    head = ASKED + b"X: " + b"y" * 20_000 + b"\r\n"
    with socket.create_connection(address, timeout=20) as connection:
        for _ in range(9):
            for start in range(0, len(head), 1000):
                connection.sendall(head[start : start + 1000])
            connection.sendall(b"\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_many_requests_at_once_and_a_body_are_no_long_head(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        padded = ASKED + b"X: " + b"y" * 400 + b"\r\n\r\n"
        connection.sendall(padded * 200 + ASKED + b"Connection: close\r\n\r\n")
        assert answers(connection).count(b"HTTP/1.1 200 ") == 201


@pytest.mark.parametrize("asked_before", [0, 1])
def test_a_request_on_its_way_while_the_server_stops_is_answered_and_the_last(
    tmp_path: Path, asked_before: int
) -> None:
    settings: Settings = migrated(Settings(home=tmp_path).resolved())
    with serving(create_app(settings), key=ensure_admin_key(settings)) as client:
        connection = socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20)
        for _ in range(asked_before):
            connection.sendall(ASKED + b"\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        ended = threading.Timer(0.2, lambda: connection.sendall(ASKED + b"\r\n"))
        ended.start()
    with connection:
        assert answers(connection).count(b"HTTP/1.1 200 ") == 1


def test_a_connection_that_asks_nothing_does_not_hold_up_the_end(tmp_path: Path) -> None:
    settings: Settings = migrated(Settings(home=tmp_path).resolved())
    with serving(create_app(settings), key=ensure_admin_key(settings)) as client:
        connection = socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20)
        begun = time.monotonic()
    with connection:
        assert answers(connection) == b""
    assert IDLE_SECONDS <= time.monotonic() - begun < GRACE_SECONDS
