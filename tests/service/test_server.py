"""The server before the application: heads without an end are refused, and its end loses no request on its way."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
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
            assert asked(connection, b"\r\n")[0].startswith(b"http/1.1 200 ")


def test_many_requests_at_once_and_a_body_are_no_long_head(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        padded = ASKED + b"X: " + b"y" * 400 + b"\r\n\r\n"
        connection.sendall(padded * 200 + ASKED + b"Connection: close\r\n\r\n")
        assert answers(connection).count(b"HTTP/1.1 200 ") == 201


INFER = b"POST /v2/models/signs/infer HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n"


def asked(connection: socket.socket, sent: bytes) -> tuple[bytes, dict[str, object]]:
    """Head and body of one answer, over a connection that is kept."""
    connection.sendall(sent)
    got = b""
    while b"\r\n\r\n" not in got:
        got += connection.recv(65_536)
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65_536)
    return head.lower(), json.loads(body)


def test_a_body_behind_a_head_in_two_pieces_is_no_head(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: here\r\nContent-Length: 200000\r\n")
        time.sleep(0.05)
        assert asked(connection, b"\r\n" + bytes(200_000))[0].startswith(b"http/1.1 405 ")


@pytest.mark.parametrize("line", [b"X-A: " + b"y" * 1000 + b"\r\n", b"y" * 1000])
def test_trailers_without_an_end_are_refused(address: tuple[str, int], line: bytes) -> None:
    """Many short ones, and one long one; the body before them has ended."""
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        time.sleep(0.05)
        with pytest.raises(OSError):
            for _ in range(3000):
                connection.sendall(line)
                time.sleep(0.001)


def test_a_full_house_refuses_who_is_known_before_the_application_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Settings = migrated(Settings(home=tmp_path, serving_threads=1, predict_queue=1).resolved())
    app, key = create_app(settings), ensure_admin_key(settings)
    engine = app.state.engine
    head = INFER + b"Authorization: Bearer " + key.encode() + b"\r\n"
    with serving(app, key=key) as client, ExitStack() as inside:
        connection = inside.enter_context(
            socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20)
        )
        for _ in range(2):
            inside.enter_context(engine.admit())
        slow, told_slowly = asked(connection, head + b"\r\n{}")
        with monkeypatch.context() as patch:
            patch.setattr(engine, "admit", None)  # whoever comes as far as that fails
            quick, told = asked(connection, head + b"X-Request-Id: mine\r\n\r\n{}")
            assert b"connection: close" not in asked(connection, head + b"\r\n{}")[0]
            with socket.create_connection(connection.getpeername(), timeout=20) as leaving:
                leaving.sendall(head + b"Connection: close\r\n\r\n{}")
                last, _, body = answers(leaving).partition(b"\r\n\r\n")
            assert last.startswith(b"HTTP/1.1 503 ") and b"\r\nconnection: close" in last
            assert json.loads(body)["code"] == "queue_full"
            unknown, _ = asked(connection, INFER + b"Authorization: Bearer wk_no\r\n\r\n{}")
        assert slow.startswith(b"http/1.1 503 ") and quick.startswith(b"http/1.1 503 ")
        assert told == told_slowly and told["code"] == "queue_full"
        assert b"\r\nretry-after: 1\r\n" in quick and quick.endswith(b"\r\nx-request-id: mine")
        assert unknown.startswith(b"http/1.1 401 ")
        counted = client.get("/metrics").text
        assert 'winnow_inference_refusals_total{code="queue_full"} 4.0' in counted
        assert re.search(
            r'winnow_http_requests_total\{.*route="/v2/models/\{model\}/infer".*status="503"\} 4.0', counted
        )
        inside.close()
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as again:
            assert asked(again, head + b"\r\n{}")[1]["code"] == "bad_inference_request"


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
