"""A small service that answers as Winnow's contract says, on a real port, for the tests of its clients."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

KEY = "wk_test"
PAGE = 2


@dataclass
class FakeWinnow:
    """What the service holds and what it was sent. A job advances one step each time it is looked at."""

    steps: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    received: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[JSONResponse] = field(default_factory=list)  # answered first, in order
    url: str = ""

    def script(self, job_id: str, *steps: dict[str, Any]) -> None:
        self.steps[job_id] = [job(job_id, **step) for step in steps]

    def look(self, job_id: str) -> dict[str, Any]:
        steps = self.steps[job_id]
        return steps.pop(0) if len(steps) > 1 else steps[0]


def job(job_id: str, **told: Any) -> dict[str, Any]:
    progress = {"done": 0, "total": 1, "unit": "images", "phase": None, "fraction": 0.0}
    times = {"created_at": "2030-01-01T00:00:00Z", "started_at": None, "finished_at": None}
    rest = {"eta_seconds": None, "attempt": 0, "inputs": {}, "params": {}, "result": None, "error": None}
    return {"id": job_id, "type": "sanitise", "state": "queued", "progress": progress, **times, **rest, **told}


def problem(status: int, code: str, detail: str, **extra: Any) -> JSONResponse:
    body = {"type": f"urn:winnow:error:{code}", "title": "No", "status": status, "code": code, "detail": detail}
    return JSONResponse({**body, **extra}, status, media_type="application/problem+json")


def application(fake: FakeWinnow) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def gate(request: Request, call_next: Any) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return problem(401, "unauthorized", "This call needs a valid API key.")
        if fake.refusals:
            return fake.refusals.pop(0)
        answer: Response = await call_next(request)
        return answer

    @app.post("/v1/datasets/{name}/versions")
    async def upload(name: str, request: Request) -> Response:
        digest, chunks, size = hashlib.sha256(), 0, 0
        async for chunk in request.stream():
            digest.update(chunk)
            chunks, size = chunks + bool(chunk), size + len(chunk)
        fake.received.append(
            {
                "name": name,
                "query": dict(request.query_params),
                "length": request.headers.get("content-length"),
                "size": size,
                "chunks": chunks,
                "sha256": digest.hexdigest(),
            }
        )
        return JSONResponse(job("ingest-1", type="ingest"), 202, {"Location": "/v1/jobs/ingest-1"})

    @app.post("/v1/jobs")
    async def submit(request: Request) -> Response:
        fake.received.append({"body": await request.json(), "key": request.headers.get("idempotency-key")})
        return JSONResponse(job("job-1", type=fake.received[-1]["body"]["type"]), 202)

    @app.get("/v1/jobs")
    def jobs(cursor: int = 0, state: str | None = None, type: str | None = None) -> Response:
        fake.received.append({"state": state, "type": type, "cursor": cursor})
        return page([steps[-1] for steps in fake.steps.values()], cursor)

    @app.get("/v1/jobs/{job_id}")
    def one_job(job_id: str) -> Response:
        if job_id not in fake.steps:
            return problem(404, "job_not_found", f"There is no job {job_id}.")
        return JSONResponse(fake.look(job_id), headers={"Retry-After": "0"})

    @app.post("/v1/jobs/{job_id}/{action}")
    def act(job_id: str, action: str) -> Response:
        return JSONResponse(job(job_id, state={"cancel": "cancelling", "retry": "queued"}[action]), 202)

    @app.get("/v1/jobs/{job_id}/verdicts")
    def verdicts(job_id: str, cursor: int = 0, verdict: str | None = None) -> Response:
        rows = [
            {
                "index": i,
                "sample_id": f"{i:064x}",
                "path": f"a/{i}.png",
                "label": "a",
                "verdict": "quarantine" if i % 2 else "keep",
                "p_value": 0.5,
                "scores": {"residual_energy": 1.0},
                "p_values": {"residual_energy": 0.5},
                "reasons": [],
                "override": None,
            }
            for i in range(5)
        ]
        return page([row for row in rows if verdict in (None, row["verdict"])], cursor)

    @app.get("/v1/jobs/{job_id}/report")
    def report(request: Request) -> Response:
        kind = request.headers["accept"]
        return Response("<html>" if kind == "text/html" else "{}", media_type=kind)

    @app.post("/v1/models/{model}/predict")
    async def predict(model: str, request: Request, alpha: float | None = None) -> Response:
        if request.headers["content-type"].startswith("multipart/form-data"):
            async with request.form() as form:
                names = [file.filename for file in form.getlist("images") if not isinstance(file, str)]
        else:
            names = [f"npz:{len(await request.body())}"]
        fake.received.append({"alpha": alpha, "names": names})
        unsure = {"entropy": 0.1, "mutual_information": 0.0, "kl": 0.0}
        rows = [
            {"label": name, "index": 0, "abstained": False, "reason": None, "p_value": 0.5, "probabilities": [1.0]}
            for name in names
        ]
        return JSONResponse({"model": f"{model}@1", "predictions": [{**row, "uncertainty": unsure} for row in rows]})

    return app


def page(rows: list[dict[str, Any]], cursor: int) -> JSONResponse:
    following = cursor + PAGE
    return JSONResponse(
        {"items": rows[cursor:following], "next_cursor": str(following) if following < len(rows) else None}
    )


@contextmanager
def serving() -> Iterator[FakeWinnow]:
    """The fake on a free loopback port, in a thread."""
    fake = FakeWinnow()
    server = uvicorn.Server(uvicorn.Config(application(fake), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        fake.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield fake
    finally:
        server.should_exit = True
        thread.join(timeout=10)
