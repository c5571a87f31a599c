"""Two tenants with sets of the same names at one real worker: each is told of its own images alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from service.client import Job, ProblemError, WinnowClient
from service.embedded.running import RunningStack
from service.storage import Storage
from tests.integration.conftest import FAST_FILTER, Digits, finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2000)]

PARTS = {
    "acme": {"trusted": slice(0, 240), "signs": slice(240, 560)},
    "globex": {"trusted": slice(800, 1040), "signs": slice(1040, 1440)},
}


@pytest.fixture(scope="module")
def tenants(stack: RunningStack, client: WinnowClient) -> Iterator[dict[str, WinnowClient]]:
    with ExitStack() as opened:
        made = {}
        for name in PARTS:
            client.tenants.create(name)
            key = client.tenants.create_key(name, "first", ["admin"]).secret
            made[name] = opened.enter_context(WinnowClient(stack.url, key))
        yield made


@pytest.fixture(scope="module")
def sanitised(tenants: dict[str, WinnowClient], digits: Digits) -> dict[str, Job]:
    """Both at once, so that the worker has jobs of both waiting."""
    uploads = {
        name: [tenants[name].upload_dataset(part, digits.npz(rows)) for part, rows in parts.items()]
        for name, parts in PARTS.items()
    }
    for name, jobs in uploads.items():
        told = [(finished(tenants[name], job).result or {})["dataset"] for job in jobs]
        assert told == ["trusted@1", "signs@1"]
    begun = {
        name: mine.submit("sanitise", dataset="signs@1", reference="trusted@1", params=FAST_FILTER)
        for name, mine in tenants.items()
    }
    return {name: finished(tenants[name], job) for name, job in begun.items()}


def test_each_gets_verdicts_on_its_own_images(tenants: dict[str, WinnowClient], sanitised: dict[str, Job]) -> None:
    seen = {}
    for name, mine in tenants.items():
        verdicts = list(mine.verdicts(sanitised[name].id))
        assert [row.sample_id for row in verdicts] == [sample.sample_id for sample in mine.samples("signs@1")]
        seen[name] = {row.sample_id for row in verdicts}
        made = mine.dataset((sanitised[name].result or {})["dataset"])
        assert (made.reference, made.parent) == ("signs@2", "signs@1")
        assert {sample.sample_id for sample in mine.samples("signs@2")} <= seen[name]
        rows = PARTS[name]["signs"]
        assert len(verdicts) == rows.stop - rows.start
    assert not seen["acme"] & seen["globex"]


def test_neither_finds_the_others_jobs_images_or_events(
    stack: RunningStack, tenants: dict[str, WinnowClient], sanitised: dict[str, Job]
) -> None:
    for name, mine in tenants.items():
        other = next(each for each in PARTS if each != name)
        theirs = sanitised[other].id
        assert {job.id for job in mine.jobs()}.isdisjoint(job.id for job in tenants[other].jobs())
        assert {each.reference for each in mine.datasets()} == {"trusted@1", "signs@1", "signs@2"}
        for ask in (mine.job, mine.report, mine.cancel, mine.retry, mine.verdict_table, mine.review):
            with pytest.raises(ProblemError) as refused:
                ask(theirs)
            assert (refused.value.status, refused.value.code) == (404, "job_not_found")
        for listed in (mine.events(theirs), mine.verdicts(theirs)):
            with pytest.raises(ProblemError, match="There is no job"):
                next(listed)
        told = {entry.details + entry.subject for entry in mine.audit.entries()}
        assert told and not any(theirs in each for each in told)
        used = mine.tenants.usage().used
        assert used["images"] == sum(each.num_samples for each in mine.datasets())


def test_nothing_of_one_lies_among_the_others_values(storage: Storage, sanitised: dict[str, Job]) -> None:
    keys = [entry.key for entry in storage.list()]
    for name, job in sanitised.items():
        found = [key for key in keys if job.id in key]
        assert found and all(key.startswith(f"tenants/{name}/") for key in found)
