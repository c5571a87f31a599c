"""Every call of the OpenAPI document is made by a method of the client, against the application itself."""
# ruff: noqa: ARG005 - each call takes both, and needs what it needs

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from service.api.openapi import operations
from service.app import create_app
from service.auth import ensure_admin_key
from service.cli import app
from service.client import Captured, NotWinnow, ProblemError, WinnowClient
from service.db import Database
from service.settings import Settings
from tests.service.conftest import MakeDataset
from tests.service.live import serving


@dataclass(frozen=True)
class Places:
    """What is there to be called about."""

    file: Path
    dataset: str
    job: str
    key: str
    webhook: str
    delivery: str
    upload: str
    captured: Captured


Call = Callable[[WinnowClient, Places], object]


def npz() -> io.BytesIO:
    return io.BytesIO(b"PK\x03\x04 and so on")


CALLS: dict[str, Call] = {
    "POST /v1/datasets/{name}/versions": lambda c, p: c.upload_dataset("signs", npz(), resumable=False),
    "GET /v1/datasets": lambda c, p: list(c.datasets()),
    "GET /v1/datasets/{reference}": lambda c, p: c.dataset(p.dataset),
    "DELETE /v1/datasets/{reference}": lambda c, p: c.delete_dataset(p.dataset),
    "GET /v1/datasets/{reference}/samples": lambda c, p: list(c.samples(p.dataset)),
    "GET /v1/datasets/{reference}/samples/{index}/image": lambda c, p: c.sample_image(p.dataset, 0),
    "GET /v1/datasets/{reference}/export": lambda c, p: c.export(p.dataset, p.file, "npz"),
    "OPTIONS /v1/uploads": lambda c, p: c.uploads.largest(),
    "POST /v1/uploads": lambda c, p: c.upload_dataset("new", npz(), resumable=True),
    "GET /v1/uploads": lambda c, p: list(c.uploads.list(state="open")),
    "GET /v1/uploads/{upload_id}": lambda c, p: c.uploads.get(p.upload),
    "PATCH /v1/uploads/{upload_id}": lambda c, p: c.upload_dataset("new", npz(), resumable=True),
    "DELETE /v1/uploads/{upload_id}": lambda c, p: c.uploads.end(p.upload),
    "POST /v1/jobs": lambda c, p: c.submit("sanitise", dataset=p.dataset, reference=p.dataset, idempotency_key="x"),
    "GET /v1/jobs": lambda c, p: list(c.jobs()),
    "GET /v1/jobs/{job_id}": lambda c, p: c.job(p.job),
    "GET /v1/jobs/{job_id}/events": lambda c, p: next(c.events(p.job)),
    "POST /v1/jobs/{job_id}/cancel": lambda c, p: c.cancel(p.job),
    "POST /v1/jobs/{job_id}/retry": lambda c, p: c.retry(p.job),
    "GET /v1/jobs/{job_id}/verdicts": lambda c, p: list(c.verdicts(p.job)),
    "PUT /v1/jobs/{job_id}/verdicts": lambda c, p: c.decide(p.job, "keep", [0]),
    "GET /v1/jobs/{job_id}/report": lambda c, p: c.report(p.job),
    "GET /v1/jobs/{job_id}/verdicts/{index}": lambda c, p: c.verdict(p.job, 0),
    "PUT /v1/jobs/{job_id}/verdicts/{index}": lambda c, p: c.decide_one(p.job, 0, "keep"),
    "DELETE /v1/jobs/{job_id}/verdicts/{index}": lambda c, p: c.decide_one(p.job, 0, None),
    "GET /v1/models": lambda c, p: list(c.models()),
    "GET /v1/models/{reference}": lambda c, p: c.model("signs@1"),
    "PUT /v1/models/{name}/aliases/{alias}": lambda c, p: c.set_alias("signs", "champion", 1),
    "POST /v1/models/{reference}/predict": lambda c, p: c.predict("signs", npz().getvalue()),
    "GET /v1/models/{reference}/export": lambda c, p: c.bundles.export("signs@1", p.file),
    "POST /v1/models/{name}/versions": lambda c, p: c.bundles.bring("signs", __file__),
    "GET /v1/models/{reference}/drift": lambda c, p: c.drift.get("signs@1"),
    "DELETE /v1/models/{reference}/drift": lambda c, p: c.drift.reset("signs@1"),
    "GET /v1/models/{name}/captures": lambda c, p: list(c.captures.list("signs")),
    "DELETE /v1/models/{name}/captures": lambda c, p: c.captures.clear("signs"),
    "GET /v1/models/{name}/captures/export": lambda c, p: c.captures.export("signs", p.file, most=10),
    "GET /v1/models/{name}/captures/{version}/{segment}/{index}/image": lambda c, p: c.captures.image(
        "signs", p.captured
    ),
    "POST /v1/keys": lambda c, p: c.keys.create("ci", ["upload"]),
    "GET /v1/keys": lambda c, p: list(c.keys.list()),
    "DELETE /v1/keys/{key_id}": lambda c, p: c.keys.revoke(p.key),
    "POST /v1/keys/{key_id}/rotate": lambda c, p: c.keys.rotate(p.key),
    "POST /v1/tenants": lambda c, p: c.tenants.create("acme"),
    "GET /v1/tenants": lambda c, p: list(c.tenants.list()),
    "GET /v1/tenants/{tenant}": lambda c, p: c.tenants.usage("default"),
    "PUT /v1/tenants/{tenant}/quotas": lambda c, p: c.tenants.set_quotas("default", {"images": None}),
    "POST /v1/tenants/{tenant}/keys": lambda c, p: c.tenants.create_key("default", "more", ["jobs"]),
    "GET /v1/usage": lambda c, p: c.tenants.usage(),
    "GET /v1/audit": lambda c, p: list(c.audit.entries()),
    "GET /v1/audit/verify": lambda c, p: c.audit.verify(),
    "POST /v1/webhooks": lambda c, p: c.webhooks.create("https://hooks.example/other"),
    "GET /v1/webhooks": lambda c, p: list(c.webhooks.list()),
    "GET /v1/webhooks/{webhook_id}": lambda c, p: c.webhooks.get(p.webhook),
    "PATCH /v1/webhooks/{webhook_id}": lambda c, p: c.webhooks.change(p.webhook, description="new"),
    "DELETE /v1/webhooks/{webhook_id}": lambda c, p: c.webhooks.delete(p.webhook),
    "POST /v1/webhooks/{webhook_id}/rotate": lambda c, p: c.webhooks.rotate(p.webhook),
    "POST /v1/webhooks/{webhook_id}/test": lambda c, p: c.webhooks.test(p.webhook),
    "GET /v1/webhooks/{webhook_id}/deliveries": lambda c, p: list(c.webhooks.deliveries(p.webhook)),
    "POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/retry": lambda c, p: c.webhooks.send_again(
        p.webhook, p.delivery
    ),
    "GET /healthz": lambda c, p: c.health(),
    "GET /readyz": lambda c, p: c.ready().missing["worker"],
    "GET /metrics": lambda c, p: c.metrics(),
    "GET /v2": lambda c, p: c.inference.server(),
    "GET /v2/health/live": lambda c, p: c.inference.live(),
    "GET /v2/health/ready": lambda c, p: c.inference.ready(),
    "GET /v2/models/stats": lambda c, p: c.inference.statistics(),
    "GET /v2/models/{model}": lambda c, p: c.inference.metadata("signs"),
    "GET /v2/models/{model}/versions/{version}": lambda c, p: c.inference.metadata("signs", 1),
    "GET /v2/models/{model}/ready": lambda c, p: c.inference.in_memory("signs"),
    "GET /v2/models/{model}/versions/{version}/ready": lambda c, p: c.inference.in_memory("signs", 1),
    "GET /v2/models/{model}/config": lambda c, p: c.inference.config("signs"),
    "GET /v2/models/{model}/versions/{version}/config": lambda c, p: c.inference.config("signs", 1),
    "GET /v2/models/{model}/stats": lambda c, p: c.inference.statistics("signs"),
    "GET /v2/models/{model}/versions/{version}/stats": lambda c, p: c.inference.statistics("signs", 1),
    "POST /v2/repository/index": lambda c, p: c.inference.index(),
    "POST /v2/repository/models/{model}/load": lambda c, p: c.inference.load("signs"),
    "POST /v2/repository/models/{model}/unload": lambda c, p: c.inference.unload("signs"),
}
REFUSED = {
    "model_not_found",
    "capture_not_found",
    "no_verdicts",
    "job_not_finished",
    "bundle_unreadable",
    "dataset_in_use",
}
"""What the calls about models and results are told where there are none, and what cannot be done just now."""


@pytest.fixture
def client(settings: Settings, database: Database) -> Iterator[WinnowClient]:
    key = ensure_admin_key(settings)
    with serving(create_app(settings), key=key) as http, WinnowClient(str(http.base_url), key) as opened:
        yield opened


@pytest.fixture
def places(client: WinnowClient, make_dataset: MakeDataset, tmp_path: Path) -> Places:
    dataset, webhook = make_dataset("signs", {"a": 80, "b": 80}), client.webhooks.create("https://hooks.example/").id
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "9", "Upload-Metadata": "name c2lnbnM="}
    return Places(
        file=tmp_path / "file",
        dataset=dataset,
        job=client.upload_dataset("queued", npz(), resumable=False).id,
        key=client.keys.create("target", ["upload"]).id,
        webhook=webhook,
        delivery=client.webhooks.test(webhook).id,
        upload=client._send("POST", "/v1/uploads", headers=headers).headers["Location"].rpartition("/")[2],
        captured=Captured(
            segment="1/0", index=0, model="signs@1", at="2026-03-01T12:00:00Z", label="a", reason="uncertain", p_value=0
        ),
    )


def test_every_call_of_the_document_has_a_method(client: WinnowClient, places: Places) -> None:
    document = client._send("GET", "/openapi.json").json()
    known = [f"{method.upper()} {path}" for method, path, _ in operations(document)]
    assert set(CALLS) == set(known), "give the client a method, and say here how it is called"
    made: list[str] = []
    client._http.event_hooks["request"].append(lambda request: made.append(called(request, known)))
    refused = {}
    for call in sorted(CALLS, key=lambda call: call.startswith("DELETE")):
        made.clear()
        try:
            CALLS[call](client, places)
        except (ProblemError, NotWinnow) as error:
            refused[call] = error
        assert call in made, (call, made)
    wrong = [
        f"{call}: {getattr(error, 'code', '')} {error}"
        for call, error in refused.items()
        if not isinstance(error, ProblemError) or error.code not in REFUSED
    ]
    assert wrong == [], "\n".join(wrong)
    assert len(refused) < len(CALLS) / 2


def called(request: httpx.Request, known: list[str]) -> str:
    """The first call, in the order of the routes, that the request is."""
    told = f"{request.method} {request.url.path}"
    return next((call for call in known if re.fullmatch(re.sub(r"{\w+}", "[^/]+", call), told)), told)


def test_the_commands_speak_to_the_application(client: WinnowClient, places: Places, tmp_path: Path) -> None:
    key = client._http.headers["authorization"].removeprefix("Bearer ")
    env = {"WINNOW_URL": client.url, "WINNOW_KEY": key, "COLUMNS": "200"}

    def winnow(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*arguments, "--home", str(tmp_path)], env=env)
        assert done.exit_code == code, (arguments, done.output)
        return "".join(line for line in done.output.splitlines(True) if "[info" not in line)  # the gateway's own

    assert places.dataset in winnow("datasets", "list", "signs")
    assert "class_counts" in winnow("datasets", "show", places.dataset)
    assert len(winnow("datasets", "samples", places.dataset, "--limit", "3").splitlines()) == 4
    winnow("datasets", "image", places.dataset, "0", "--to", str(tmp_path / "first.png"))
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")
    assert places.upload in winnow("uploads", "list", "--state", "open")
    winnow("uploads", "end", places.upload)
    assert places.upload not in winnow("uploads", "list", "--state", "open")
    assert places.job in winnow("jobs", "--json")
    assert "no_verdicts" in winnow("verdicts", places.job, code=1)
    assert "not ready" in winnow("status", code=1)
    assert "winnow_" in winnow("status", "--metrics")
    assert "capture_not_found" in winnow("captures", "export", "signs", "--to", str(places.file), code=1)
    assert winnow("captures", "list", "signs", "--images", str(tmp_path / "captured")).startswith("segment")
    winnow("captures", "clear", "signs")
    for command in ("show", "drift", "load", "unload"):
        assert "model_not_found" in winnow("models", command, "signs", code=1)
    winnow("datasets", "delete", places.dataset, "--yes")
    with pytest.raises(ProblemError, match="were deleted"):
        client.dataset(places.dataset)
