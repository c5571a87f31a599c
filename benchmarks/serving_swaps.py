"""An alias that moves to and fro under load, and a damaged bundle that must never take over."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import numpy as np

from benchmarks.harness import ClaimRow, row
from benchmarks.serving_client import Blocking, connect
from benchmarks.serving_gateway import infer_request
from benchmarks.serving_model import NAME, Home
from service.db import Database
from service.registry.bundle import SERVED
from service.registry.repository import resolve
from service.storage import LocalStorage

CLIENTS = 8
PROBABILITIES = 43 * 4


def swaps_under_load(home: Home, port: int, swaps: int) -> list[ClaimRow]:
    """Each answer must be a version's own, to the bit: the one that it names."""
    request = infer_request(home, 0)
    api = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {home.key}"}, timeout=60)
    own = {str(version): _answer(home, port, version) for version in (1, 2)}
    assert own["1"] != own["2"]
    stop, found = threading.Event(), Found()
    load = threading.Thread(target=lambda: asyncio.run(_load(port, request, own, stop, found)))
    load.start()
    failed, refused = 0, 0
    for number in range(swaps):
        answer = api.put(f"/v1/models/{NAME}/aliases/champion", json={"version": 2 - number % 2})
        failed += answer.status_code != 200
    _damage(home)
    for _ in range(5):
        api.post(f"/v2/repository/models/{NAME}/unload")
        refused += api.put(f"/v1/models/{NAME}/aliases/champion", json={"version": 2}).status_code != 200
    stop.set()
    load.join()
    return [
        row("serving/swaps/failed-swaps", "0", failed, failed == 0, n=swaps),
        row("serving/swaps/failed-requests", "0", found.failed, found.failed == 0, n=found.total),
        row("serving/swaps/mixed-answers", "0", found.mixed, found.mixed == 0, n=found.total),
        row("serving/swaps/versions-seen", "2", len(found.versions), len(found.versions) == 2, n=found.total),
        row("serving/swaps/damaged-bundles-refused", "5 of 5", refused, refused == 5, n=5),
    ]


class Found:
    """What the load saw."""

    def __init__(self) -> None:
        self.total = self.failed = self.mixed = 0
        self.versions: set[str] = set()


async def _load(port: int, request: bytes, own: dict[str, bytes], stop: threading.Event, found: Found) -> None:
    async def client() -> None:
        connection = await connect(port)
        while not stop.is_set():
            status, body = await connection.ask(request)
            found.total += 1
            if status != 200:
                found.failed += 1
                continue
            version = _version(body)
            found.versions.add(version)
            found.mixed += own.get(version) != body[-PROBABILITIES:]

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def _answer(home: Home, port: int, version: int) -> bytes:
    client = Blocking(port)
    status, body = client.ask(infer_request(home, 0, reference=f"{NAME}@{version}"))
    client.close()
    assert status == 200, body
    values = np.frombuffer(body[-PROBABILITIES:], np.float32)
    assert abs(values.sum() - 1) < 1e-3
    return body[-PROBABILITIES:]


def _version(body: bytes) -> str:
    head = json.loads(body[:-PROBABILITIES])
    return str(head["model_version"])


def _damage(home: Home) -> None:
    """One bit of version 2's graph."""
    database, storage = Database.open(home.settings.database_url), LocalStorage(home.settings.storage)
    with database.session() as session:
        prefix = resolve(session, f"{NAME}@2").prefix
    database.close()
    whole = storage.read(f"{prefix}/{SERVED}")
    storage.write(f"{prefix}/{SERVED}", whole[:-1] + bytes([whole[-1] ^ 1]))
