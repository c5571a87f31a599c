"""A gateway of several processes behaves as one: real processes, real connections that change between them."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp, Receive, Scope, Send
from tiny_model import clean_images, npz_of, publish_version

from service.app import create_app
from service.auth import ensure_admin_key
from service.db import Database
from service.server import Server
from service.serving.statistics import Counted
from service.settings import Settings
from service.siblings.channel import Channel, ChannelFailed
from service.siblings.connections import asks_for_inference
from service.siblings.door import hand_over, pair, take_over
from service.siblings.first import PING_SECONDS, SOON_SECONDS
from service.siblings.looks import Look, Together, added, families_of
from service.storage import open_storage
from tests.service.live import NO_AUTHORITIES
from tests.service.migrated import migrated

PROCESSES = 3
CLIENTS = 9
BODY = npz_of(clean_images(4, seed=1)[0])


@dataclass
class Stack:
    """A gateway of `PROCESSES`, as one finds it."""

    url: str
    key: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, verify=NO_AUTHORITIES, timeout=30)

    def sample(self, name: str) -> float:
        """Of all processes, over all labels."""
        with self.client() as client:
            families = text_string_to_metric_families(client.get("/metrics").text)
        return sum(each.value for family in families for each in family.samples if each.name == name)

    def siblings(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children]


@contextmanager
def gateway(home: Path, *, wait: bool = True) -> Iterator[Stack]:
    settings = migrated(Settings(home=home).resolved())
    database, storage = Database.open(settings.database_url), open_storage(settings)
    for _ in range(2):
        publish_version(database, storage, "signs")
    key = ensure_admin_key(settings)
    database.close()
    wanted: dict[str, Any] = {"HOME": home, "PORT": 0, "GATEWAY_PROCESSES": PROCESSES, "SERVING_THREADS": 1}
    env = {**os.environ, **{f"WINNOW_{name}": str(value) for name, value in wanted.items()}}
    log = home / "gateway.log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "service"], env=env, stderr=file)
    try:
        found = until(lambda: re.search(r"running on (http://[\d.:]+)", log.read_text()), log)
        stack = Stack(found[1], key, process, log)
        if wait:
            until(lambda: stack.sample("winnow_gateway_processes") == PROCESSES, log)
        yield stack
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def until(found: Callable[[], Any], log: Path, *, within: float = 40.0) -> Any:
    deadline = time.monotonic() + within
    while not (it := found()):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return it


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gateway(tmp_path_factory.mktemp("several")) as stack:
        yield stack


@pytest.fixture
def clients(stack: Stack) -> Iterator[list[httpx.Client]]:
    """Each with a connection of its own, dealt out already."""
    clients = [stack.client() for _ in range(CLIENTS)]
    for client in clients:
        predicted(client)
    yield clients
    for client in clients:
        client.close()


def predicted(client: httpx.Client, reference: str = "signs") -> dict[str, Any]:
    answer = client.post(f"/v1/models/{reference}/predict", content=BODY)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_all_processes_answer_and_what_they_counted_is_told_as_one(stack: Stack, clients: list[httpx.Client]) -> None:
    images, before = "winnow_inference_images_total", stack.sample("winnow_inference_images_total")
    drift = clients[0].get("/v1/models/signs@1/drift").json()
    processes = (stack.process.pid, *stack.siblings())
    at_work = [cpu_ticks(pid) for pid in processes]
    answers = [predicted(client, "signs@1")["predictions"] for client in clients for _ in range(3)]
    assert all(answer == answers[0] for answer in answers)
    assert stack.sample(images) - before == 4 * 3 * CLIENTS
    stats = clients[0].get("/v2/models/signs/versions/1/stats").json()["model_stats"][0]
    everyone = clients[0].get("/v2/models/stats").json()["model_stats"]
    assert stats in everyone and stats["inference_count"] >= 4 * 3 * CLIENTS
    watched = clients[0].get("/v1/models/signs@1/drift").json()
    counted = watched["images"] + watched["skipped"] - drift["images"] - drift["skipped"]
    assert counted == 4 * 3 * CLIENTS
    for client in clients:
        for _ in range(30):
            predicted(client, "signs@1")
    assert all(cpu_ticks(pid) > before for pid, before in zip(processes, at_work, strict=True))


def cpu_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_connections_are_dealt_evenly(stack: Stack, clients: list[httpx.Client]) -> None:
    held = held_by(stack)
    assert sum(held) >= CLIENTS
    assert max(held) - min(held) <= 1, held


def held_by(stack: Stack) -> list[int]:
    port = int(stack.url.rpartition(":")[2])
    return [connections_of(pid, port) for pid in (stack.process.pid, *stack.siblings())]


def connections_of(pid: int, port: int) -> int:
    """Established ones from clients that the process has open."""
    inodes = {
        line.split()[9]
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01"
    }
    links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    return sum(link == f"socket:[{inode}]" for link in links for inode in inodes)


def test_a_connection_may_ask_for_anything_in_turn(stack: Stack, clients: list[httpx.Client]) -> None:
    large = np.random.default_rng(0).bytes(3 * 1024 * 1024)
    images = np.frombuffer(large, np.uint8).reshape(1024, 32, 32, 3)
    np.savez(file := io.BytesIO(), images=images, labels=np.arange(1024) % 3)
    for client in clients[:4]:
        for _ in range(3):
            assert predicted(client)["model"].startswith("signs@")
            assert client.get("/v1/models/signs").json()["versions"] == [1, 2]
            assert client.get("/v1/jobs").status_code == 200
            taken = client.post("/v1/datasets/noise/versions", content=file.getvalue())
            assert taken.status_code == 202, taken.text
            assert client.post("/v1/models/signs/predict", content=large).status_code == 415
            assert client.get("/v1/models/nobody/drift").status_code == 404


def test_a_promotion_holds_for_every_connection_at_once(clients: list[httpx.Client]) -> None:
    for version in (1, 2, 1, 2, 1):
        put = clients[0].put("/v1/models/signs/aliases/champion", json={"version": version})
        assert put.status_code == 200, put.text
        assert {predicted(client)["model"] for client in clients} == {f"signs@{version}"}
    assert clients[0].get("/v1/models/signs@1/drift").json()["images"] <= 4 * CLIENTS, "the watch began anew"


def test_load_and_unload_reach_all_processes(stack: Stack, clients: list[httpx.Client]) -> None:
    client = clients[0]
    assert client.post("/v2/repository/models/signs/unload").status_code == 200
    assert client.get("/v2/models/signs/ready").status_code == 400
    assert stack.sample("winnow_models_loaded") == 0
    assert client.post("/v2/repository/models/signs/load").status_code == 200
    assert stack.sample("winnow_models_loaded") == PROCESSES
    states = client.post("/v2/repository/index").json()
    assert sorted(row["state"] for row in states) == ["READY", "UNAVAILABLE"]


def test_a_key_that_is_revoked_ends_everywhere(stack: Stack, clients: list[httpx.Client]) -> None:
    made = clients[0].post("/v1/keys", json={"name": "short", "scopes": ["predict"]}).json()
    own = [httpx.Client(base_url=stack.url, verify=NO_AUTHORITIES) for _ in range(PROCESSES)]
    headers = {"Authorization": f"Bearer {made['secret']}"}
    for client in own:
        assert client.post("/v1/models/signs/predict", content=BODY, headers=headers).status_code == 200
    assert clients[0].delete(f"/v1/keys/{made['id']}").status_code in (200, 204)
    for client in own:
        assert client.post("/v1/models/signs/predict", content=BODY, headers=headers).status_code == 401
        client.close()


def test_a_sibling_that_is_killed_is_started_anew(stack: Stack) -> None:
    killed = stack.siblings()[0]
    counted = stack.sample("winnow_inference_images_total")
    assert counted > 0
    os.kill(killed, signal.SIGKILL)
    until(lambda: stack.sample("winnow_gateway_processes") == PROCESSES - 1, stack.log)
    with stack.client() as client:
        predicted(client)
    assert stack.sample("winnow_inference_images_total") == counted + 4, "what it counted is not forgotten"
    until(lambda: stack.sample("winnow_gateway_processes") == PROCESSES, stack.log)
    assert killed not in stack.siblings()
    with stack.client() as client:
        predicted(client)
    assert '"a sibling ended, and is started anew"' in stack.log.read_text()


def test_connections_from_before_the_siblings_were_there_are_dealt_out_in_the_end(tmp_path: Path) -> None:
    with gateway(tmp_path, wait=False) as stack, ExitStack() as open_clients:
        clients = [open_clients.enter_context(stack.client()) for _ in range(CLIENTS)]
        for client in clients:
            predicted(client)
        while stack.sample("winnow_gateway_processes") < PROCESSES:
            for client in clients:
                predicted(client)
        for client in clients:
            predicted(client)
        held = held_by(stack)
    assert sum(held) >= CLIENTS and max(held) - min(held) <= 2, held


def test_a_sibling_that_hangs_gets_no_connections_and_holds_nobody_up(stack: Stack) -> None:
    hung = stack.siblings()[0]
    os.kill(hung, signal.SIGSTOP)
    try:
        time.sleep(PING_SECONDS + SOON_SECONDS + 1)
        for _ in range(2 * PROCESSES):
            with stack.client() as client:
                predicted(client)
        with stack.client() as client:
            began = time.monotonic()
            assert client.put("/v1/keys/none", json={}).status_code in (404, 405)
            assert client.get("/metrics").status_code == 200
            assert time.monotonic() - began < 3 * SOON_SECONDS
    finally:
        os.kill(hung, signal.SIGCONT)


def test_what_comes_behind_a_request_that_was_refused_unread_is_sent_to_another_connection(stack: Stack) -> None:
    """The sibling has not seen the end of the first request, so it cannot give the connection back."""
    host, port = stack.url.removeprefix("http://").split(":")
    body = b"x" * (2 * 1024 * 1024)
    head = b"POST /v1/models/signs/predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer none\r\n"
    asked = f"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {stack.key}\r\n\r\n".encode()
    told = []
    for _ in range(PROCESSES):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
            assert answered(connection)[0] == 401
            connection.sendall(body + asked)
            told.append(answered(connection))
    assert {status for status, _, _ in told} <= {200, 503}
    refused = [answer for answer in told if answer[0] == 503]
    assert refused, "one of them was dealt to a sibling"
    assert all(closes and json.loads(content)["code"] == "misdirected" for _, closes, content in refused)


def answered(connection: socket.socket) -> tuple[int, bool, bytes]:
    """Status, whether the connection ends with it, and content of the next answer."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.will_close, answer.read()


def test_a_sum_never_falls_and_holds_no_gauge_of_who_has_ended() -> None:
    registry = CollectorRegistry()
    counter = Counter("winnow_things", "Things.", ("kind",), registry=registry)
    counter.labels("a").inc(2)
    gauge = Gauge("winnow_now", "Now.", registry=registry)
    gauge.set(5)
    version = ("default", "signs@1")
    look = Look(families_of(registry), {version: Counted(requests=1, images=4)})
    past = added(added(Look([], {}), look), look)
    assert past.counted[version] == Counted(requests=2, images=8)
    text = generate_latest(Together(registry, [past.families])).decode()
    assert 'winnow_things_total{kind="a"} 6.0' in text
    assert "winnow_now 5.0" in text


def test_no_request_is_lost_at_the_end_and_nothing_is_left(tmp_path: Path) -> None:
    statuses, refused = [], []

    def ask_until_the_door_is_shut(stack: Stack) -> None:
        with stack.client() as client:
            while True:
                try:
                    statuses.append(client.post("/v1/models/signs/predict", content=BODY).status_code)
                except httpx.ConnectError:
                    refused.append(1)
                    return

    with gateway(tmp_path) as stack:
        processes = stack.siblings()
        asking = [threading.Thread(target=ask_until_the_door_is_shut, args=(stack,)) for _ in range(6)]
        for thread in asking:
            thread.start()
        until(lambda: len(statuses) > 100, stack.log)
        stack.process.send_signal(signal.SIGTERM)
        for thread in asking:
            thread.join(30)
        stack.process.wait(30)
    assert set(statuses) == {200} and len(refused) == 6
    assert not any(map(runs, processes))


def test_siblings_end_with_the_first_process_however_it_ends(tmp_path: Path) -> None:
    with gateway(tmp_path) as stack:
        processes = stack.siblings()
        stack.process.kill()
        until(lambda: not any(map(runs, processes)), stack.log)
        assert not any(map(runs, processes))


def runs(pid: int) -> bool:
    """Nobody may have asked yet how it ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("read", "wanted"),
    [
        (b"POST /v2/models/signs/infer HTTP/1.1\r\n", True),
        (b"POST /v1/models/signs/predict?alpha=0.1 HTTP/1.1\r\nHost: here\r\n", True),
        (b"GET /v2/models/signs/infer HTTP/1.1\r\n", False),
        (b"POST /v2/repository/models/infer/load HTTP/1.1\r\n", False),
        (b"POST /v1/datasets?name=/infer HTTP/1.1\r\n", False),
        (b"POST /v2/models/signs/inf", False),
        (b"POST /v1/keys#/infer HTTP/1.1\r\n", False),
        (b"", False),
    ],
)
def test_only_what_is_surely_inference_is_dealt_out(read: bytes, wanted: bool) -> None:
    assert asks_for_inference(read) is wanted


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_a_connection_goes_over_with_all_that_was_read_of_it(size: int) -> None:
    (ours, theirs), (client, server) = pair(), socket.socketpair()
    read = np.random.default_rng(0).bytes(size)
    with ours, theirs, client:
        assert take_over(theirs) is None, "nothing there"
        with server:
            assert hand_over(ours, server.fileno(), read)
        taken = take_over(theirs)
        assert taken is not None and taken[1] == read
        with taken[0] as connection:
            client.sendall(b"still here")
            assert connection.recv(100) == b"still here"
            assert not connection.get_inheritable(), "a process that is started later would keep it open"
        ours.close()
        with pytest.raises(ConnectionError):
            take_over(theirs)


def test_a_process_that_takes_no_more_connections_leaves_them_to_who_has_them() -> None:
    (ours, theirs), (client, server) = pair(), socket.socketpair()
    with ours, client, server:
        with theirs:
            handed = 0
            while hand_over(ours, server.fileno(), b"x") and handed < 10_000:
                handed += 1
            assert 0 < handed < 10_000
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
        try:
            assert not hand_over(ours, server.fileno(), b"x"), "no descriptor is left"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, most)
        assert not hand_over(ours, server.fileno(), b"x"), "the other side has ended"


def over_a_channel(scene: Callable[[Channel, Channel], Awaitable[None]]) -> None:
    async def played() -> None:
        one, other = socket.socketpair()
        asked, answering = await Channel.over(one, {}), await Channel.over(other, {"double": double, "fail": fail})
        running = [asyncio.create_task(each.run()) for each in (asked, answering)]
        await scene(asked, answering)
        asked.close()
        await asyncio.gather(*running)

    asyncio.run(asyncio.wait_for(played(), 20))


async def double(value: Any) -> Any:
    return 2 * value


async def fail() -> None:
    raise ValueError("it is broken")


def test_a_channel_carries_questions_and_failures() -> None:
    async def scene(asked: Channel, _answering: Channel) -> None:
        assert await asyncio.gather(*(asked.ask("double", value) for value in range(50))) == list(range(0, 100, 2))
        np.testing.assert_array_equal(await asked.ask("double", np.ones(100_000)), np.full(100_000, 2.0))
        with pytest.raises(ChannelFailed, match="ValueError: it is broken"):
            await asked.ask("fail")
        asked.tell("fail")
        assert await asked.ask("double", "still ") == "still still "

    over_a_channel(scene)


def test_who_waits_for_a_process_that_ends_is_told() -> None:
    async def scene(asked: Channel, answering: Channel) -> None:
        waiting = asyncio.create_task(answering.ask("anything"))
        await asyncio.sleep(0)
        asked.close()
        with pytest.raises(ChannelFailed):
            await waiting
        with pytest.raises(ChannelFailed, match="ended"):
            await asked.ask("double", 1)
        asked.tell("double", 1)

    over_a_channel(scene)


def test_no_answer_in_time_is_a_failure() -> None:
    async def scene(asked: Channel, answering: Channel) -> None:
        answering._handlers = {"slow": lambda: asyncio.sleep(5)}
        with pytest.raises(ChannelFailed, match=r"within 0\.05 s"):
            await asked.ask("slow", within_seconds=0.05)

    over_a_channel(scene)


def test_several_processes_are_refused_where_connections_cannot_be_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert Settings(gateway_processes=1).gateway_processes == 1
    with pytest.raises(ValueError, match="need Linux"):
        Settings(gateway_processes=2)


def test_a_body_that_nobody_reads_waits_in_the_kernel_on_a_connection_that_came_from_elsewhere(tmp_path: Path) -> None:
    settings = migrated(Settings(home=tmp_path).resolved())
    app, released = create_app(settings), threading.Event()

    class Holding:
        """Reads nothing for as long as the test wants it."""

        def __init__(self, app: ASGIApp) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            while scope["type"] == "http" and not released.is_set():
                await asyncio.sleep(0.01)
            await self._app(scope, receive, send)

    app.add_middleware(Holding)
    server = Server.of(app, settings.model_copy(update={"port": 0}))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        read = b"POST /v1/datasets/a/versions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + bytes(200_000)
        server.servers[0].get_loop().call_soon_threadsafe(server.adopt, accepted, read)
        client.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 64 * 2**20:
                sent += client.send(bytes(2**20))
        released.set()
        client.settimeout(20)
        assert answered(client)[0] == 401
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
