"""The server before the application: heads without an end are refused, all others go on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.app import create_app
from service.auth import ensure_admin_key
from service.server import MOST_HEAD_BYTES
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
        connection.sendall((ASKED + b"\r\n") * 2000 + ASKED + b"Connection: close\r\n\r\n")
        assert answers(connection).count(b"HTTP/1.1 200 ") == 2001
