"""How often a key may call, how much a tenant may have, how long a JSON body may be."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from service import auth, quotas
from service.app import create_app
from service.db import Database, now
from service.errors import TooManyRequests
from service.jobs import repository
from service.jobs.create import add_job
from service.jobs.state import JobState
from service.limits import MOST_BUCKETS, Buckets, RateLimited
from service.quotas import Quota
from service.settings import Settings
from service.tables import Job, Tenant
from tests.service.conftest import MakeDataset
from tests.service.live import serving


def test_a_bucket_holds_two_seconds_and_fills_at_its_rate() -> None:
    seconds = [100.0]
    buckets = Buckets(clock=lambda: seconds[0])
    for _ in range(10):
        buckets.take("k", 5)
    with pytest.raises(RateLimited) as refused:
        buckets.take("k", 5)
    assert refused.value.retry_after_seconds == 1
    buckets.take("another", 5)
    seconds[0] += 0.4
    buckets.take("k", 5)
    buckets.take("k", 5)
    with pytest.raises(RateLimited):
        buckets.take("k", 5)
    seconds[0] += 1000
    for _ in range(10):
        buckets.take("k", 5)
    with pytest.raises(RateLimited):
        buckets.take("k", 5)


def test_buckets_do_not_grow_without_end() -> None:
    buckets = Buckets(clock=lambda: 0.0)
    for number in range(MOST_BUCKETS + 10):
        buckets.take(str(number), 1)
    assert len(buckets._buckets) == MOST_BUCKETS


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_json_bytes": 2000, "quota_queued_jobs": 2})


@pytest.fixture
def http(settings: Settings, database: Database) -> Iterator[httpx.Client]:
    with serving(create_app(settings), key=auth.ensure_admin_key(settings)) as client:
        yield client


def test_a_key_that_calls_too_often_is_told_when_to_come_back(http: httpx.Client) -> None:
    made = http.post("/v1/keys", json={"name": "k", "scopes": ["jobs"], "requests_per_second": 1}).json()
    headers = {"Authorization": f"Bearer {made['secret']}"}
    answers = [http.get("/v1/jobs", headers=headers) for _ in range(5)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 2 <= len(refused) <= 3 and answers[0].status_code == 200
    assert refused[0].json()["code"] == "rate_limited" and int(refused[0].headers["retry-after"]) >= 1
    assert http.get("/v1/jobs").status_code == 200


def test_a_long_json_body_is_refused_before_it_is_read(http: httpx.Client) -> None:
    long = b'{"name": "' + b"x" * 3000 + b'"}'
    headers = {"Content-Type": "application/json"}
    paths = http.get("/openapi.json").json()["paths"]
    tried = 0
    for path, calls in paths.items():
        for method, call in calls.items():
            takes = call.get("requestBody", {}).get("content", {})
            if list(takes) == ["application/json"]:
                for content in (long, iter([long[:1500], long[1500:]])):
                    answer = http.request(method, path, content=content, headers=headers)
                    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large"), (method, path)
                tried += 1
    assert tried >= 8


def test_jobs_that_wait_are_counted(http: httpx.Client, make_dataset: MakeDataset, database: Database) -> None:
    make_dataset("signs", {"a": 600, "b": 600})
    body = {"type": "sanitise", "dataset": "signs@1", "params": {"panel": {"detectors": ["label_loss"]}}}
    codes = [http.post("/v1/jobs", json=body).status_code for _ in range(3)]
    assert codes == [202, 202, 429]
    refused = http.post("/v1/jobs", json=body)
    told = refused.json()
    assert (told["code"], told["limit"], told["used"]) == ("quota_queued_jobs", 2, 2)
    assert int(refused.headers["retry-after"]) > 0
    assert http.put("/v1/tenants/default/quotas", json={"queued_jobs": 3, "images": 3000}).status_code == 200
    assert http.post("/v1/jobs", json=body).status_code == 202
    assert http.put("/v1/tenants/default/quotas", json={"queued_jobs": None, "images": 2399}).status_code == 200
    assert http.post("/v1/jobs", json=body).json()["code"] == "quota_images"
    assert http.put("/v1/tenants/default/quotas", json={"queued_jobs": None, "bytes": 2 * 1200 * 64 - 1}).is_success
    assert http.post("/v1/jobs", json=body).json()["code"] == "quota_bytes"
    usage = http.get("/v1/usage").json()
    assert usage["used"] == {"bytes": 1200 * 64, "images": 1200, "queued_jobs": 3, "running_jobs": 0}
    assert usage["limits"] == {"bytes": 2 * 1200 * 64 - 1, "images": None, "queued_jobs": None, "running_jobs": None}


def test_a_tenant_has_no_more_at_work_than_it_may(database: Database, settings: Settings) -> None:
    with database.transaction() as session:
        session.add(Tenant(name="acme", created_at=now(), quotas={"running_jobs": 1}))
        first, second, other = (
            add_job(session, "ingest", inputs={}, params={}, max_attempts=1, tenant=tenant).id
            for tenant in ("acme", "acme", "globex")
        )

    def claim(job_id: str) -> repository.Claim | None:
        return repository.claim(database, job_id, worker="w", lease_seconds=60, settings=settings)

    held = claim(first)
    assert held is not None and claim(second) is None and claim(other) is not None
    with database.transaction() as session:
        repository.finish(session, held, JobState.SUCCEEDED, "done")
    assert claim(second) is not None


def test_a_step_of_a_job_at_work_is_not_one_more(database: Database, settings: Settings) -> None:
    one_at_a_time = settings.model_copy(update={"quota_running_jobs": 1})
    with database.transaction() as session:
        parent = add_job(session, "harden", inputs={}, params={}, max_attempts=1)
        steps = [
            add_job(session, kind, inputs={}, params={}, max_attempts=1, parent_id=parent.id).id
            for kind in ("sanitise", "distill")
        ]
        other = add_job(session, "ingest", inputs={}, params={}, max_attempts=1).id
    for step in steps:
        assert repository.claim(database, step, worker="w", lease_seconds=60, settings=one_at_a_time) is not None
    assert repository.claim(database, other, worker="w", lease_seconds=60, settings=one_at_a_time) is None
    with database.session() as session:
        counted = session.get(Job, parent.id)
        assert counted is not None and counted.state == JobState.RUNNING
        assert quotas.used(session, Quota.RUNNING_JOBS) == 1


def test_what_would_be_too_much_is_refused(database: Database, settings: Settings) -> None:
    with database.transaction() as session:
        quotas.check(session, settings, Quota.BYTES, 2**60)
        limited = settings.model_copy(update={"quota_bytes": 10})
        quotas.check(session, limited, Quota.BYTES, 10)
        with pytest.raises(TooManyRequests, match="may have 10 bytes"):
            quotas.check(session, limited, Quota.BYTES, 11)
        assert quotas.left(session, limited, Quota.BYTES) == 10
