"""Webhooks to a real receiver: signed as the standard has it, retried, kept apart by tenant, never led inside."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select

from service import auth
from service.app import create_app
from service.audit import STACK
from service.auth import ensure_admin_key
from service.db import Database, now
from service.errors import InvalidInput
from service.jobs.create import add_job
from service.jobs.repository import claim, finish
from service.jobs.state import JobState
from service.scopes import Scope
from service.settings import Settings
from service.webhooks import signing
from service.webhooks.addresses import Resolve, Target, is_public
from service.webhooks.deliverer import Deliverer
from service.webhooks.deliveries import due, take
from service.webhooks.sending import Outcome, send
from service.webhooks.tables import Webhook, WebhookDelivery
from tests.service.live import serving

FAST = (0.02, 0.02, 0.02)


class Receiver:
    """An HTTP server that answers with the statuses it was told, the last one again and again."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.connections = 0
        self.answers: list[int | Callable[[BaseHTTPRequestHandler], None]] = [204]
        self._arrived = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                receiver.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with receiver._arrived:
                    receiver.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
                    answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
                    receiver._arrived.notify_all()
                if callable(answer):
                    answer(self)
                    return
                self.send_response(answer)
                if answer == 302:
                    self.send_header("Location", f"{receiver.url}/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def wait(self, count: int) -> list[tuple[dict[str, str], bytes]]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.seen) >= count, 15), f"{len(self.seen)} of {count}"
            return self.seen[:count]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    opened = Receiver()
    yield opened
    opened.close()


@pytest.fixture
def app(settings: Settings, database: Database) -> FastAPI:
    app = create_app(settings.model_copy(update={"webhooks_allow_private": True}))
    app.state.deliverer = Deliverer(
        database, allow_private=True, timeout_seconds=0.5, retry_seconds=FAST, poll_seconds=0.02
    )
    return app


@pytest.fixture
def client(app: FastAPI, settings: Settings) -> Iterator[httpx.Client]:
    with serving(app, key=ensure_admin_key(settings)) as opened:
        yield opened


def succeed(database: Database, *, tenant: str = "default") -> str:
    with database.transaction() as session:
        job_id = add_job(session, "ingest", inputs={}, params={}, max_attempts=3, tenant=tenant).id
    taken = claim(database, job_id, worker="w", lease_seconds=60)
    assert taken is not None
    with database.transaction() as session:
        finish(session, taken, JobState.SUCCEEDED, "succeeded", result={"dataset": "signs@1"})
    return job_id


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """RFC 2104, written out: no code is shared with what is tested."""
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + message).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).digest()


def signed_by(secret: str, headers: dict[str, str], body: bytes) -> bool:
    told = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    wanted = "v1," + base64.b64encode(hmac_sha256(base64.b64decode(secret[len("whsec_") :]), told)).decode()
    return wanted in headers["webhook-signature"].split(" ")


def settled(client: httpx.Client, webhook_id: str, count: int = 1) -> list[dict[str, Any]]:
    until = time.monotonic() + 15
    while True:
        items: list[dict[str, Any]] = client.get(f"/v1/webhooks/{webhook_id}/deliveries").json()["items"]
        if len(items) == count and all(item["state"] != "pending" for item in items):
            return items
        assert time.monotonic() < until, items
        time.sleep(0.02)


def test_the_signature_is_that_of_the_standard() -> None:
    """The example of the Standard Webhooks libraries."""
    made = signing.headers(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signed_by("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", made, b'{"test": 2432232314}')
    assert not signed_by("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", made, b'{"test": 2432232315}')


@pytest.mark.both_databases
def test_a_finished_job_is_told_signed_and_logged(client: httpx.Client, database: Database, receiver: Receiver) -> None:
    made = client.post("/v1/webhooks", json={"url": receiver.url, "events": ["job.succeeded"]}).json()
    job_id = succeed(database)
    (headers, body), *_ = receiver.wait(1)
    assert signed_by(made["secret"], headers, body)
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    told = json.loads(body)
    assert (told["type"], told["data"]["id"], told["data"]["result"]) == (
        "job.succeeded",
        job_id,
        {"dataset": "signs@1"},
    )
    (delivery,) = settled(client, made["id"])
    assert (delivery["id"], delivery["state"], delivery["payload"]) == (
        headers["webhook-id"],
        "delivered",
        body.decode(),
    )
    assert [(tried["attempt"], tried["status"], tried["error"]) for tried in delivery["log"]] == [(1, 204, None)]
    shown = client.get("/v1/webhooks").text + client.get(f"/v1/webhooks/{made['id']}").text
    assert made["secret"] not in shown and made["id"] in shown


def test_only_what_was_asked_for_is_told(client: httpx.Client, database: Database, receiver: Receiver) -> None:
    client.post("/v1/webhooks", json={"url": receiver.url, "events": ["job.failed", "model.registered"]})
    everything = client.post("/v1/webhooks", json={"url": receiver.url}).json()
    succeed(database)
    settled(client, everything["id"])
    assert [json.loads(body)["type"] for _, body in receiver.seen] == ["job.succeeded"]


@pytest.mark.both_databases
def test_what_did_not_happen_is_not_told(client: httpx.Client, database: Database, receiver: Receiver) -> None:
    client.post("/v1/webhooks", json={"url": receiver.url})
    with database.transaction() as session:
        job_id = add_job(session, "ingest", inputs={}, params={}, max_attempts=3).id
    taken = claim(database, job_id, worker="w", lease_seconds=60)
    assert taken is not None
    with pytest.raises(RuntimeError), database.transaction() as session:
        finish(session, taken, JobState.SUCCEEDED, "succeeded", result={})
        assert len(session.scalars(select(WebhookDelivery)).all()) == 1
        raise RuntimeError("the transaction is taken back")
    with database.session() as session:
        assert session.scalars(select(WebhookDelivery)).all() == []


def test_failures_are_retried_under_the_same_id_until_one_succeeds(
    client: httpx.Client, database: Database, receiver: Receiver
) -> None:
    receiver.answers = [500, 302, lambda _handler: time.sleep(0.8), 200]
    made = client.post("/v1/webhooks", json={"url": receiver.url}).json()
    succeed(database)
    (delivery,) = settled(client, made["id"])
    assert delivery["state"] == "delivered" and delivery["attempts"] == 4
    errors = [tried["error"] for tried in delivery["log"]]
    assert errors == [
        "answered 500",
        "answered 302, and redirects are not followed",
        "no answer within 0.5 s",
        None,
    ]
    assert len({(headers["webhook-id"], body) for headers, body in receiver.seen}) == 1
    assert len(receiver.seen) == 4
    assert client.get(f"/v1/webhooks/{made['id']}").json()["failing_since"] is None


def test_what_fails_for_good_can_be_sent_again(client: httpx.Client, database: Database, receiver: Receiver) -> None:
    receiver.answers = [500]
    made = client.post("/v1/webhooks", json={"url": receiver.url}).json()
    succeed(database)
    (delivery,) = settled(client, made["id"])
    assert (delivery["state"], delivery["attempts"]) == ("failed", 1 + len(FAST))
    receiver.answers = [200]
    again = client.post(f"/v1/webhooks/{made['id']}/deliveries/{delivery['id']}/retry")
    assert again.status_code == 202
    (delivery,) = settled(client, made["id"])
    assert (delivery["state"], delivery["attempts"]) == ("delivered", 2 + len(FAST))


@pytest.mark.parametrize(("days", "status"), [(6, 500), (0, 410)])
def test_a_webhook_that_fails_for_long_or_is_gone_is_disabled(
    client: httpx.Client, database: Database, receiver: Receiver, days: int, status: int
) -> None:
    receiver.answers = [status]
    made = client.post("/v1/webhooks", json={"url": receiver.url}).json()
    with database.transaction() as session:
        session.get_one(Webhook, made["id"]).failing_since = now() - timedelta(days=days) if days else None
    succeed(database)
    settled(client, made["id"])
    shown = client.get(f"/v1/webhooks/{made['id']}").json()
    assert shown["disabled_reason"] and shown["disabled_at"]
    succeed(database)
    assert client.post(f"/v1/webhooks/{made['id']}/test").json()["code"] == "webhook_disabled"
    assert len(receiver.seen) == 1
    receiver.answers = [200]
    assert client.patch(f"/v1/webhooks/{made['id']}", json={"enabled": True}).json()["disabled_at"] is None
    client.post(f"/v1/webhooks/{made['id']}/test")
    receiver.wait(2)
    assert json.loads(receiver.seen[1][1])["type"] == "webhook.test"


def test_while_a_secret_is_rotated_both_sign(client: httpx.Client, receiver: Receiver) -> None:
    made = client.post("/v1/webhooks", json={"url": receiver.url}).json()
    path = f"/v1/webhooks/{made['id']}"
    rotated = client.post(f"{path}/rotate", json={"grace_seconds": 600}).json()
    client.post(f"{path}/test")
    both = receiver.wait(1)[0]
    assert signed_by(made["secret"], *both) and signed_by(rotated["secret"], *both)
    last = client.post(f"{path}/rotate", json={"grace_seconds": 0}).json()
    client.post(f"{path}/test")
    alone = receiver.wait(2)[1]
    assert signed_by(last["secret"], *alone) and not signed_by(rotated["secret"], *alone)


def test_tenants_neither_see_nor_hear_of_one_another(
    client: httpx.Client, database: Database, receiver: Receiver
) -> None:
    theirs = database.of("theirs")
    with theirs.transaction() as session:
        key = auth.create(session, "k", [Scope.ADMIN], expires_at=None, actor=STACK).secret
    mine = client.post("/v1/webhooks", json={"url": receiver.url}).json()
    headers = {"Authorization": f"Bearer {key}"}
    their = client.post("/v1/webhooks", json={"url": receiver.url}, headers=headers).json()
    succeed(database, tenant="theirs")
    settled_their = []
    until = time.monotonic() + 15
    while not settled_their and time.monotonic() < until:
        page = client.get(f"/v1/webhooks/{their['id']}/deliveries", params={"state": "delivered"}, headers=headers)
        settled_their = page.json()["items"]
    assert len(settled_their) == 1
    assert client.get(f"/v1/webhooks/{mine['id']}/deliveries").json()["items"] == []
    assert client.get(f"/v1/webhooks/{their['id']}").status_code == 404
    assert client.delete(f"/v1/webhooks/{their['id']}").status_code == 404
    assert [each["id"] for each in client.get("/v1/webhooks").json()["items"]] == [mine["id"]]


@pytest.mark.both_databases
def test_deleting_ends_it_with_its_log(client: httpx.Client, database: Database, receiver: Receiver) -> None:
    made = client.post("/v1/webhooks", json={"url": receiver.url}).json()
    succeed(database)
    settled(client, made["id"])
    assert client.delete(f"/v1/webhooks/{made['id']}").status_code == 204
    assert client.get(f"/v1/webhooks/{made['id']}").json()["code"] == "webhook_not_found"
    succeed(database)
    with database.session() as session:
        assert session.scalars(select(WebhookDelivery)).all() == []


@pytest.mark.both_databases
def test_a_delivery_is_taken_once(database: Database) -> None:
    with database.transaction() as session:
        session.add(Webhook(id="wh", url="http://x", events=[], description="", secret="whsec_", created_at=now()))
    succeed(database)
    with database.session() as session:
        ids = due(session, limit=10)
    assert len(take(database, ids, for_seconds=60)) == 1
    assert take(database, ids, for_seconds=60) == []
    with database.session() as session:
        assert due(session, limit=10) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "https://",
        "https://user:secret@example.com/",
        "https://example.com/#part",
        "https://exa mple.com/",
        "https://example.com:99999/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://10.1.2.3/",
        "https://0.0.0.0/",
        "https://example.com/\r\nX: y",
        "https://" + "a" * 2000,
    ],
)
def test_no_webhook_leads_inside_or_nowhere(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Target.parse(url, allow_private=False)
    assert refused.value.code == "bad_webhook_url"


def test_a_refused_url_is_a_422(settings: Settings, database: Database) -> None:
    with serving(create_app(settings), key=ensure_admin_key(settings)) as client:
        answer = client.post("/v1/webhooks", json={"url": "https://127.0.0.1/x"})
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_webhook_url")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d822", True),
        *[
            (inside, False)
            for inside in (
                *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),  # noqa: S104
                *("224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1"),
                *("fc00::1", "ff02::1", "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "2001:db8::1"),
                "2001:0:7f00:1::",
            )
        ],
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ip_address(address)) is public


def sent(target: Target, resolver: Resolve, *, allow_private: bool = False, within_seconds: float = 2.0) -> Outcome:
    return asyncio.run(
        send(target, b"{}", {}, resolver=resolver, allow_private=allow_private, within_seconds=within_seconds)
    )


@pytest.mark.parametrize("name", ["localhost", "127.1", "0x7f000001", "2130706433"])
def test_a_name_that_leads_inside_is_not_called(receiver: Receiver, name: str) -> None:
    from service.webhooks.addresses import resolve

    outcome = sent(Target("http", name, receiver.port, "/"), resolve)
    assert outcome.status is None and "not a public address" in str(outcome.error)
    assert receiver.connections == 0


def test_one_address_inside_among_public_ones_is_enough_to_refuse(receiver: Receiver) -> None:
    async def mixed(_host: str, _port: int) -> list[str]:
        return ["93.184.216.34", "127.0.0.1"]

    assert "127.0.0.1" in str(sent(Target("http", "mixed.example", receiver.port, "/"), mixed).error)
    assert receiver.connections == 0


def test_a_name_that_changes_its_address_after_the_check_gains_nothing(receiver: Receiver) -> None:
    """DNS rebinding: public when it is looked at, loopback a moment later. It is looked up once, and never again."""
    answers = iter([["93.184.216.34"], ["127.0.0.1"], ["127.0.0.1"]])
    asked: list[str] = []

    async def rebinding(host: str, _port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    outcome = sent(Target("http", "rebind.example", receiver.port, "/"), rebinding, within_seconds=0.5)
    assert not outcome.delivered and asked == ["rebind.example"]
    again = sent(Target("http", "rebind.example", receiver.port, "/"), rebinding)
    assert "not a public address" in str(again.error)
    assert receiver.connections == 0


def test_an_endless_answer_is_cut_short(receiver: Receiver) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        try:
            for number in range(100_000):
                handler.wfile.write(b"X-%d: %s\r\n" % (number, b"y" * 100))
        except OSError:  # cut short, as it should be
            return

    async def here(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    receiver.answers = [endless]
    outcome = sent(Target("http", "here", receiver.port, "/"), here, allow_private=True)
    assert outcome.status is None and "no HTTP" in str(outcome.error)


def test_a_receiver_without_tls_is_told_apart(receiver: Receiver) -> None:
    async def here(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    outcome = sent(Target("https", "here.example", receiver.port, "/"), here, allow_private=True)
    assert str(outcome.error).startswith("TLS: ")
    assert receiver.seen == []
