"""A gateway that stops answers what it has taken: no request is lost, over real connections.

The kernel itself resets a connection that nobody had accepted when the door shut; its request was never taken.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
from fastapi import Request, Response
from starlette.middleware.base import RequestResponseEndpoint
from tiny_model import clean_images, npz_of, publish_version

from service.app import create_app
from service.auth import ensure_admin_key
from service.server import Server
from service.settings import Settings
from tests.service.migrated import migrated


def test_no_request_that_was_taken_is_lost(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, serving_threads=1).resolved()
    migrated(settings)
    app, key = create_app(settings), ensure_admin_key(settings)
    publish_version(app.state.database, app.state.storage, "signs")
    taken: list[str] = []

    @app.middleware("http")
    async def count(request: Request, call_next: RequestResponseEndpoint) -> Response:
        taken.append(request.url.path)
        return await call_next(request)

    server = Server.of(app, settings.model_copy(update={"port": 0}))
    serving = threading.Thread(target=server.run)
    serving.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1/models/signs/predict"
    body, statuses, refused = npz_of(clean_images(200, seed=1)[0]), [], []

    def ask_until_the_door_is_shut() -> None:
        while True:
            try:
                with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
                    answer = client.post(url, content=body)
                statuses.append((answer.status_code, len(answer.json()["predictions"])))
            except (httpx.ConnectError, httpx.ReadError):
                refused.append(1)
                return

    clients = [threading.Thread(target=ask_until_the_door_is_shut) for _ in range(4)]
    for client in clients:
        client.start()
    while len(statuses) < 8 and time.monotonic() < until:
        time.sleep(0.005)
    server.should_exit = True
    for thread in (*clients, serving):
        thread.join(30)
    assert len(refused) == 4, "every client met the shut door and nothing else"
    assert len(statuses) == len(taken), "each request that was taken has its answer"
    assert len(statuses) >= 8
    assert set(statuses) == {(200, 200)}
