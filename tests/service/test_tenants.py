"""Tenants: what bounds them in the database and on storage, who makes them, and that none sees another's things."""

from __future__ import annotations

import base64
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import aliased
from typer.testing import CliRunner, Result

from service import auth
from service.api.inference import infer
from service.app import create_app
from service.audit import STACK
from service.cli import app as winnow
from service.client import WinnowClient
from service.datasets import repository as datasets
from service.db import Database
from service.errors import NotFound
from service.jobs import repository as jobs
from service.jobs.create import add_job
from service.registry import repository as registry
from service.scopes import Scope
from service.settings import Settings
from service.storage import LocalStorage
from service.tables import ApiKey, DatasetVersion, Job, ModelAlias
from service.tenancy import ForeignTenant, TenantStorage
from service.webhooks import repository as webhooks
from service.webhooks.outbox import TEST, add_delivery
from tests.service.conftest import MakeDataset
from tests.service.live import serving
from tests.service.tiny_model import publish_version

API = Path(__file__).parents[2] / "service/api"


def make_job(database: Database) -> str:
    with database.transaction() as session:
        return add_job(session, "sanitise", inputs={}, params={}, max_attempts=1).id


@pytest.mark.both_databases
def test_a_session_sees_and_changes_its_tenants_rows_only(database: Database) -> None:
    ours, theirs = make_job(database), make_job(database.of("acme"))
    with database.of("acme").transaction() as session:
        assert [job.id for job in session.scalars(select(Job))] == [theirs]
        assert session.get(Job, ours) is None and session.get(Job, ours, with_for_update=True) is None
        assert session.scalar(select(func.count()).select_from(Job)) == 1
        other = aliased(Job)
        assert session.scalars(select(other.id)).all() == [theirs]
        assert session.scalars(select(Job.id).where((Job.id == ours) | (Job.id == theirs))).all() == [theirs]
        session.execute(update(Job).values(state="failed"))
        session.execute(delete(Job).where(Job.id == ours))
        with pytest.raises(NotFound):
            jobs.find(session, ours)
    with database.session() as session:
        assert {job.id: (job.tenant, job.state) for job in session.scalars(select(Job))} == {
            ours: ("default", "queued"),
            theirs: ("acme", "failed"),
        }


@pytest.mark.both_databases
def test_rows_cannot_be_handed_to_another_tenant(database: Database) -> None:
    job = make_job(database.of("acme"))
    with pytest.raises(ForeignTenant), database.of("globex").transaction() as session:
        session.add(ModelAlias(tenant="acme", name="m", alias="a", version=1))
        session.flush()
    with pytest.raises(ForeignTenant), database.of("acme").transaction() as session:
        jobs.find(session, job).tenant = "globex"


@pytest.mark.both_databases
def test_names_are_the_tenants_own(database: Database, make_dataset: MakeDataset, storage: LocalStorage) -> None:
    make_dataset("signs", {"a": 2, "b": 2})
    publish_version(database, storage, "model")
    acme = database.of("acme")
    with acme.session() as session:
        for look in (lambda: datasets.find(session, "signs@1"), lambda: registry.resolve(session, "model")):
            with pytest.raises(NotFound):
                look()
        assert registry.page(session, after=None, limit=10).models == []
    publish_version(acme, TenantStorage(storage, "acme"), "model")
    with acme.transaction() as session:
        assert registry.resolve(session, "model@1").tenant == "acme"
        registry.set_alias(session, "model", "champion", version=1)
    with database.session() as session:
        assert registry.resolve(session, "model").tenant == "default"
        assert registry.aliases(session, "model") == {}


KEYS_THAT_LEAD_OUT = ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "", "a/..", "tenants/acme/../default/x"]


@pytest.mark.parametrize("tenant", ["default", "acme"])
def test_storage_of_a_tenant_reaches_its_own_keys_only(storage: LocalStorage, tenant: str) -> None:
    acme, default = TenantStorage(storage, "acme"), TenantStorage(storage, "default")
    acme.write("uploads/x", b"acme")
    default.write("uploads/x", b"default")
    own = TenantStorage(storage, tenant)
    assert own.read("uploads/x") == tenant.encode()
    assert [entry.key for entry in own.list()] == [entry.key for entry in own.list("uploads")] == ["uploads/x"]
    for key in [*KEYS_THAT_LEAD_OUT, *(["tenants/acme/uploads/x", "tenants"] if tenant == "default" else [])]:
        for act in (own.read, own.exists, own.size, own.delete_prefix, own.open, own.open_local, own.writing):
            with pytest.raises(ValueError, match="not a storage key"):
                act(key)
    own.delete_prefix("uploads")
    assert [storage.exists(key) for key in ("uploads/x", "tenants/acme/uploads/x")] == [
        tenant != "default",
        tenant != "acme",
    ]


def test_no_route_reaches_past_its_tenant() -> None:
    """`app.state` holds what sees everything; only these look there, and why is said in each."""
    allowed = {"access.py", "health.py", "tenants.py", "metrics.py"}
    reaching = {
        path.name for path in API.glob("*.py") if re.search(r"app\.state\.(database|storage)\b", path.read_text())
    }
    assert reaching - allowed == set()


@pytest.fixture
def http(settings: Settings, database: Database) -> Iterator[httpx.Client]:
    with serving(create_app(settings), key=auth.ensure_admin_key(settings)) as client:
        yield client


def admin_of(http: httpx.Client, tenant: str) -> dict[str, str]:
    assert http.post("/v1/tenants", json={"name": tenant}).status_code == 201
    made = http.post(f"/v1/tenants/{tenant}/keys", json={"name": "first", "scopes": ["admin"]})
    assert made.status_code == 201 and made.json()["tenant"] == tenant
    return {"Authorization": f"Bearer {made.json()['secret']}"}


def test_an_operator_makes_tenants_and_their_first_keys(http: httpx.Client, database: Database) -> None:
    acme = admin_of(http, "acme")
    assert http.post("/v1/tenants", json={"name": "acme"}).json()["code"] == "tenant_exists"
    for name in ("", "a/b", "../x", "A", "a" * 33, "-a"):
        assert http.post("/v1/tenants", json={"name": name}).json()["code"] == "bad_tenant_name"
    assert http.post("/v1/tenants/nobody/keys", json={"name": "k", "scopes": ["admin"]}).status_code == 404
    assert [each["name"] for each in http.get("/v1/tenants").json()["items"]] == ["acme", "default"]

    assert http.get("/v1/tenants", headers=acme).json()["code"] == "missing_scope"
    assert http.get("/v1/audit/verify", headers=acme).status_code == 403
    asked = {"name": "k", "scopes": ["operator"]}
    assert http.post("/v1/keys", json=asked, headers=acme).json()["code"] == "operator_elsewhere"
    operator = {"Authorization": f"Bearer {http.post('/v1/keys', json=asked).json()['secret']}"}
    assert http.get("/v1/tenants", headers=operator).status_code == 200
    assert http.get("/v1/datasets", headers=operator).status_code == 403
    with database.of("acme").transaction() as session:  # even where such a key came to be
        session.scalars(select(ApiKey)).one().scopes = ["operator"]
    assert http.get("/v1/tenants", headers=acme).status_code == 403


def test_each_tenant_has_keys_and_audit_entries_of_its_own(http: httpx.Client) -> None:
    acme = admin_of(http, "acme")
    http.post("/v1/keys", json={"name": "camera", "scopes": ["upload"]}, headers=acme)
    theirs = http.get("/v1/keys", headers=acme).json()["items"]
    ours = http.get("/v1/keys").json()["items"]
    assert ([key["name"] for key in theirs], [key["name"] for key in ours]) == (["first", "camera"], ["admin"])
    assert http.delete(f"/v1/keys/{ours[0]['id']}", headers=acme).json()["code"] == "key_not_found"
    assert http.post(f"/v1/keys/{theirs[0]['id']}/rotate").json()["code"] == "key_not_found"
    told = [entry["action"] for entry in http.get("/v1/audit", headers=acme).json()["items"]]
    assert told == ["key.created", "key.created"]
    assert [e["action"] for e in http.get("/v1/audit").json()["items"]] == ["tenant.created", "key.created"]
    assert http.get("/v1/audit/verify").json()["intact"] is True


@pytest.mark.both_databases
def test_idempotency_keys_are_per_tenant(http: httpx.Client, database: Database, make_dataset: MakeDataset) -> None:
    acme = admin_of(http, "acme")
    make_dataset("signs", {"a": 600, "b": 600})
    with database.session() as session:
        row = session.scalars(select(DatasetVersion)).one()
        values = {c.name: getattr(row, c.name) for c in DatasetVersion.__table__.columns}
    with database.of("acme").transaction() as session:
        job = add_job(session, "ingest", inputs={}, params={}, max_attempts=1)
        session.add(DatasetVersion(**{**values, "tenant": "acme", "job_id": job.id}))
    body = {"type": "sanitise", "dataset": "signs@1", "params": {"panel": {"detectors": ["label_loss"]}}}
    headers = {"Idempotency-Key": "once"}
    made = [http.post("/v1/jobs", json=body, headers={**headers, **who}) for who in ({}, {}, acme, acme)]
    assert [answer.status_code for answer in made] == [202] * 4, made[-1].text
    ids = [answer.json()["id"] for answer in made]
    assert ids[0] == ids[1] and ids[2] == ids[3] and ids[0] != ids[2]


OF_THE_CALLERS_OWN = {  # whatever others have by that name
    ("post", "/v1/models/{name}/versions"),
    ("post", "/v1/datasets/{name}/versions"),
    ("delete", "/v1/models/{name}/captures"),
}


def test_nothing_of_another_tenant_is_found(
    http: httpx.Client, database: Database, storage: LocalStorage, make_dataset: MakeDataset
) -> None:
    acme = admin_of(http, "acme")
    reference = make_dataset("signs", {"a": 2, "b": 2})
    publish_version(database, storage, "model")
    upload = begin(http)
    with database.transaction() as session:
        webhook = webhooks.create(session, "https://hooks.example/", [], "")
        delivery = add_delivery(session, webhook, TEST, {})
    job, key = make_job(database), http.get("/v1/keys").json()["items"][0]["id"]
    places = {"name": "signs", "reference": reference, "job_id": job, "key_id": key, "index": "0", "tenant": "default"}
    places |= {"alias": "champion", "model": "model", "upload_id": upload, "version": "1"}
    places |= {"webhook_id": webhook.id, "delivery_id": delivery.id}
    paths = http.get("/openapi.json").json()["paths"] | {path: {"post": {}} for path in infer.PATHS}
    tried = 0
    for path, calls in paths.items():
        named = re.findall(r"{(\w+)}", path)
        if not named:
            continue
        models = path.startswith("/v1/models")
        filled = {**places, "reference": "model@1", "name": "model"} if models else places
        url = path.format_map(defaultdict(lambda: "x", filled))
        for method in calls:
            if (method, path) in OF_THE_CALLERS_OWN:
                continue
            answer = http.request(method, url, headers=acme, **body_for(method, path))
            nothing = answer.status_code in (403, 404) or answer.json() == {"items": [], "next_cursor": None}
            assert nothing, (method, url, answer.status_code, answer.text)
            tried += 1
    assert tried > 50
    assert http.get("/v2/models/stats", headers=acme).json() == {"model_stats": []}
    assert http.post("/v2/repository/index", headers=acme).json() == []
    for listing in (
        "/v1/datasets",
        "/v1/jobs",
        "/v1/models",
        "/v1/uploads",
        "/v1/webhooks",
        f"/v1/jobs?dataset={reference}",
    ):
        assert http.get(listing, headers=acme).json()["items"] == [], listing
    assert "signs" not in json.dumps(http.get("/v1/usage", headers=acme).json())


def begin(http: httpx.Client) -> str:
    name = base64.b64encode(b"signs").decode()
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "10", "Upload-Metadata": f"name {name}"}
    return http.post("/v1/uploads", headers=headers).headers["location"].rsplit("/", 1)[1]


def body_for(method: str, path: str) -> dict[str, Any]:
    """What a call takes, so that it is not its body that is refused."""
    if path.endswith("/verdicts"):
        return {"json": {"where": {"indices": [0]}, "verdict": "keep"}}
    if "/verdicts/" in path and method == "put":
        return {"json": {"verdict": "keep"}}
    if "/aliases/" in path:
        return {"json": {"version": 1}}
    if path.endswith("/rotate") or path == "/v1/webhooks/{webhook_id}":
        return {"json": {}}
    if path.endswith("/quotas"):
        return {"json": {"bytes": 1}}
    if path.endswith("/infer"):
        image = {"name": "images", "shape": [1, 8, 8, 1], "datatype": "UINT8", "data": [0] * 64}
        return {"json": {"inputs": [image]}}
    if path.endswith("/keys"):
        return {"json": {"name": "k", "scopes": [Scope.ADMIN.value]}}
    return {"content": b""} if method in ("post", "patch", "put") else {}


def test_the_stack_makes_no_key_of_another_tenant(database: Database) -> None:
    with database.transaction() as session:
        assert auth.create(session, "k", [Scope.OPERATOR], expires_at=None, actor=STACK).key.tenant == "default"


def test_the_command_line_makes_tenants(http: httpx.Client, settings: Settings) -> None:
    key = http.headers["authorization"].removeprefix("Bearer ")
    env = {"COLUMNS": "200", "WINNOW_URL": str(http.base_url), "WINNOW_KEY": key, "WINNOW_HOME": str(settings.home)}

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(winnow, ["tenants", *arguments], env=env)

    made = run("create", "acme", "--quota", "bytes=1000", "-q", "images=none")
    secret = made.stdout.split()[-1]  # the gateway in this process logs to the same place
    assert made.exit_code == 0 and secret.startswith("wk_") and secret not in made.stderr
    with WinnowClient(str(http.base_url), secret) as acme:
        assert acme.tenants.usage().limits["bytes"] == 1000
        assert [each.name for each in acme.keys.list()] == ["admin"]
    assert "bytes=1000, images=none" in run("list").stdout
    assert "77" in run("quotas", "acme", "-q", "queued_jobs=77").stdout
    assert "queued_jobs=77" in run("list").stdout
    assert run("create", "acme", "-q", "bytes=lots").exit_code == 2
    assert "tenant_exists" in run("create", "acme").stderr
