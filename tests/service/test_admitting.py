"""Inference is let in or refused when its head is read: who gets a place, who keeps it, what becomes of the rest."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from service.api import access
from service.api.inference.express import Gateway
from service.app import create_app
from service.auth import ensure_admin_key
from service.server import Connection
from service.serving.errors import ModelFault
from service.settings import Settings
from tests.service.live import serving
from tests.service.migrated import migrated
from tests.service.test_server import INFER, asked

PLACES = 2
TENSOR = b'{"inputs":[{"name":"images","shape":[1,1,1,1],"datatype":"UINT8","data":[0]}]}'


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made: Settings = migrated(Settings(home=tmp_path, serving_threads=1, predict_queue=PLACES - 1).resolved())
    return made


@pytest.fixture
def app(settings: Settings) -> Gateway:
    return create_app(settings)


@pytest.fixture
def key(settings: Settings) -> str:
    return ensure_admin_key(settings)


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as connection:
        yield connection


def bearing(key: str) -> bytes:
    return INFER + b"Authorization: Bearer " + key.encode() + b"\r\n"


def with_tensor(key: str, *headers: bytes) -> bytes:
    head = bearing(key).replace(b"Length: 2", b"Length: %d" % len(TENSOR))
    return head + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + TENSOR


def code(connection: socket.socket, sent: bytes) -> object:
    return asked(connection, sent)[1]["code"]


def empties(app: Gateway) -> bool:
    until = time.monotonic() + 20
    while app.state.engine.load_state().inside and time.monotonic() < until:
        time.sleep(0.01)
    return app.state.engine.load_state().inside == 0


def test_who_fails_or_goes_away_before_the_body_is_there_gives_the_place_back(app: Gateway, key: str) -> None:
    with serving(app, key=key) as client:
        with connected(client) as connection:
            for _ in range(2 * PLACES):
                assert code(connection, bearing(key) + b"\r\n{}") == "bad_inference_request"
        for _ in range(2 * PLACES):
            with connected(client) as connection:
                connection.sendall(bearing(key) + b"\r\n{")
        assert empties(app)


def test_who_goes_away_keeps_the_place_while_the_request_is_in_house(
    app: Gateway, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = [], threading.Event()

    async def infer(*_args: object, **_options: object) -> None:
        begun.append(1)
        while not gate.is_set():
            await asyncio.sleep(0.01)
        raise ModelFault("at last")

    monkeypatch.setattr(app.state.engine, "infer", infer)
    with serving(app, key=key) as client:
        for _ in range(3 * PLACES):
            with connected(client) as connection:
                connection.sendall(with_tensor(key))
                time.sleep(0.05)
        assert len(begun) == app.state.engine.load_state().inside == PLACES
        gate.set()
        assert empties(app)


def test_who_may_not_infer_takes_nobodys_place_and_is_told_why(app: Gateway, key: str) -> None:
    with serving(app, key=key) as client, ExitStack() as inside:
        wanted = {"jobs": {"scopes": ["jobs"]}, "seldom": {"scopes": ["predict"], "requests_per_second": 1}}
        keys = {
            name: client.post("/v1/keys", json={"name": name, **told}).json()["secret"] for name, told in wanted.items()
        }
        connection = inside.enter_context(connected(client))
        seldom, jobs = bearing(keys["seldom"]) + b"\r\n{}", bearing(keys["jobs"]) + b"\r\n{}"
        assert [code(connection, jobs) for _ in range(3)] == ["missing_scope"] * 3
        assert [code(connection, seldom) for _ in range(3)] == 2 * ["bad_inference_request"] + ["rate_limited"]
        for _ in range(PLACES):
            inside.enter_context(app.state.engine.admit())
        assert code(connection, bearing(key) + b"\r\n{}") == "queue_full"
        assert code(connection, jobs) == "missing_scope"
        assert code(connection, seldom) == "rate_limited"


def test_a_token_of_the_rate_is_taken_once(app: Gateway, key: str) -> None:
    with serving(app, key=key) as client, connected(client) as connection:
        told = {"name": "four", "scopes": ["predict"], "requests_per_second": 2}  # and twice that at once
        four = client.post("/v1/keys", json=told).json()["secret"]
        codes = [code(connection, bearing(four) + b"\r\n{}") for _ in range(5)]
    assert codes == 4 * ["bad_inference_request"] + ["rate_limited"]


def test_of_two_keys_the_first_counts(app: Gateway, key: str) -> None:
    wrong = b"Authorization: Bearer wk_no\r\n"
    right = b"Authorization: Bearer " + key.encode() + b"\r\n"
    with serving(app, key=key) as client, connected(client) as connection:
        for _ in range(2):
            assert code(connection, INFER + right + wrong + b"\r\n{}") == "bad_inference_request"
            assert asked(connection, INFER + wrong + right + b"\r\n{}")[0].startswith(b"http/1.1 401 ")


def test_a_refusal_does_not_end_the_request_behind_it(app: Gateway, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is idle for so long is closed; one with a request under way is not idle."""

    @app.get("/slow")
    async def slow() -> dict[str, str]:
        await asyncio.sleep(0.6)
        return {"status": "ok"}

    monkeypatch.setattr(access, "PUBLIC", access.PUBLIC | {"/slow"})
    monkeypatch.setattr(Connection, "timeout_keep_alive", property(lambda _: 0.2, lambda *_: None), raising=False)
    with serving(app, key=key) as client, ExitStack() as inside:
        with connected(client) as connection:
            assert code(connection, bearing(key) + b"\r\n{}") == "bad_inference_request"
        for _ in range(PLACES):
            inside.enter_context(app.state.engine.admit())
        again = inside.enter_context(connected(client))
        assert asked(again, bearing(key) + b"\r\n{}GET /slow HTTP/1.1\r\nHost: here\r\n\r\n")[0].startswith(
            b"http/1.1 503 "
        )
        assert asked(again, b"")[1] == {"status": "ok"}


def test_who_reads_no_refusals_gets_no_more_of_them(app: Gateway, key: str) -> None:
    """What is written and not read stays within the bounds of the connection."""
    largest = [0]

    class Watched(Connection):
        def on_message_complete(self) -> None:
            super().on_message_complete()
            largest[0] = max(largest[0], self.transport.get_write_buffer_size())

    with pytest.MonkeyPatch.context() as patch, ExitStack() as inside:
        patch.setattr("service.server.Connection", Watched)
        client = inside.enter_context(serving(app, key=key))
        with connected(client) as connection:
            assert code(connection, bearing(key) + b"\r\n{}") == "bad_inference_request"
        for _ in range(PLACES):
            inside.enter_context(app.state.engine.admit())
        deaf = inside.enter_context(connected(client))
        deaf.settimeout(1)
        with pytest.raises(TimeoutError):
            for _ in range(4000):  # the kernel takes some tens of MiB
                deaf.sendall((bearing(key) + b"\r\n{}") * 500)
    assert largest[0] < 8 * 1024 * 1024


def test_requests_sent_ahead_of_their_answers_wait_in_the_kernel(app: Gateway, key: str) -> None:
    """Of 5,000 on their way the gateway holds no more than it reads at once, however long they take to answer."""
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Filler: " + b"x" * 1000 + b"\r\n\r\n"
    most, count = [0], 5000

    class Watched(Connection):
        def on_message_complete(self) -> None:
            super().on_message_complete()
            most[0] = max(most[0], len(self.pipeline))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.server.Connection", Watched)
        with serving(app, key=key) as client, connected(client) as connection:
            sender = threading.Thread(target=connection.sendall, args=(request * count,))
            sender.start()
            answers = bytearray()
            while answers.count(b"HTTP/1.1 200") < count:
                answers += connection.recv(2**20)
            sender.join()
    assert 0 < most[0] < 1000


def test_a_refused_sender_whose_body_never_comes_is_not_waited_for(
    app: Gateway, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.server.BODY_SECONDS", 0.3)
    with serving(app, key=key) as client, ExitStack() as inside:
        connection = inside.enter_context(connected(client))
        assert code(connection, bearing(key) + b"\r\n{}") == "bad_inference_request"
        for _ in range(PLACES):
            inside.enter_context(app.state.engine.admit())
        connection.sendall(bearing(key) + b"\r\n{")
        assert connection.recv(1000) == b"", "closed"


def test_what_nobody_foresaw_is_told_in_the_protocols_form(
    app: Gateway, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.engine, "infer", None)
    with serving(app, key=key) as client:
        with connected(client) as connection:
            answer, told = asked(connection, with_tensor(key, b"X-Request-Id: mine"))
        assert answer.startswith(b"http/1.1 500 ") and answer.endswith(b"\r\nx-request-id: mine")
        assert told["code"] == "internal"
        assert 'status="500"} 1.0' in client.get("/metrics").text
