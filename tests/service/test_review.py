"""People's decisions about verdicts: recorded, looked up, taken back, many at once; and what a review may be of."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from httpx import Client
from hypothesis import given
from hypothesis import settings as deadlines
from hypothesis import strategies as st
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from service.app import create_app
from service.auth import ensure_admin_key
from service.cli import app
from service.client import WinnowClient
from service.db import Database
from service.errors import InvalidInput
from service.jobs import overrides
from service.jobs.create import add_job
from service.jobs.overrides import Standings, packed, unpacked
from service.jobs.selection import Where, selected
from service.jobs.verdict_pages import Orders, VerdictPages
from service.jobs.verdicts import Verdict, VerdictTable
from service.settings import Settings
from service.storage import LocalStorage
from service.tables import Job, Override
from tests.service.conftest import MakeDataset
from tests.service.live import serving

NAMES = ("residual_energy", "label_loss")
ROWS = 2500  # more than two pages of the file


def table(count: int = ROWS) -> VerdictTable:
    rng = np.random.default_rng(0)
    own = rng.integers(1, 21, (count, len(NAMES))) / 20
    spoke = own <= 0.1
    return VerdictTable.of(
        sample_ids=[f"{i:064x}" for i in range(count)],
        paths=[f"{i}.png" for i in range(count)],
        labels=[f"class {i % 7}" for i in range(count)],
        verdicts=np.where(spoke.any(axis=1), np.where(np.arange(count) % 5 == 0, "reform", "quarantine"), "keep"),
        p_values=own.min(axis=1),
        names=NAMES,
        scores=rng.random((count, len(NAMES)), np.float32),
        own_p=own,
        spoke=spoke,
    )


def succeeded(database: Database, kind: str = "sanitise", parent: str | None = None) -> Job:
    with database.transaction() as session:
        inputs = {"dataset": "signs@1"}
        job = add_job(session, kind, inputs=inputs, params={}, max_attempts=3, parent_id=parent)
        job.state, job.attempt = "succeeded", 1
        return job


@pytest.fixture
def job(database: Database, storage: LocalStorage) -> Job:
    job = succeeded(database)
    table().write(storage, f"jobs/{job.id}/1/verdicts.parquet")
    return job


@pytest.fixture
def client(settings: Settings, job: Job, make_dataset: MakeDataset) -> Iterator[Client]:
    make_dataset("signs", {"a": 5, "b": 5})
    with serving(create_app(settings), key=ensure_admin_key(settings)) as opened:
        yield opened


def every_row(client: Client, job: Job, **query: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    params = {"limit": 500, **query}
    while True:
        page = client.get(f"/v1/jobs/{job.id}/verdicts", params=params).json()
        rows += page["items"]
        if page["next_cursor"] is None:
            return rows
        params["cursor"] = page["next_cursor"]


# What is kept


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50, unique=True))
def test_packed_indices_come_back(indices: list[int]) -> None:
    assert unpacked(packed(np.sort(np.array(indices)))).tolist() == sorted(indices)


Act = tuple[Verdict | None, list[int]]
ACTS = st.lists(
    st.tuples(st.sampled_from([None, Verdict.KEEP, Verdict.QUARANTINE]), st.lists(st.integers(0, 9), min_size=1)),
    max_size=6,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database.open(f"sqlite:///{tmp_path_factory.mktemp('review') / 'w.db'}")
    database.create_all()
    yield database
    database.close()


@deadlines(deadline=None, max_examples=30)
@given(ACTS)
def test_the_latest_decision_about_an_image_stands(shared: Database, acts: list[Act]) -> None:
    job, plain, cache = succeeded(shared), dict[int, Verdict](), Standings()
    for verdict, indices in acts:
        with shared.transaction() as session:
            overrides.decide(session, job, np.array(indices), verdict, note=None, by="ada")
        for index in indices:
            plain.pop(index, None)
            plain |= {index: verdict} if verdict else {}
        with shared.session() as session:
            kept, read = cache.get(session, job.id), overrides.standing(session, job.id)
            made = overrides.decisions(session, job.id)
        assert np.array_equal(kept.over(12), read.over(12))
        numbers = read.over(10).tolist()
        assert {index: made[number].verdict for index, number in enumerate(numbers) if number} == plain
    with shared.session() as session:
        for index in range(10):
            told = [each.verdict for each in overrides.history(session, job.id, index)]
            assert told == [verdict for verdict, indices in acts if index in indices]


def test_the_digest_can_be_told_from_the_verdicts(database: Database, job: Job) -> None:
    with database.transaction() as session:
        overrides.decide(session, job, np.array([3, 1]), Verdict.KEEP, note=None, by="ada")
        overrides.decide(session, job, np.array([2]), Verdict.QUARANTINE, note=None, by="ada")
    with database.session() as session:
        stands, made = overrides.standing(session, job.id), overrides.decisions(session, job.id)
    assert overrides.digest(stands.numbers, made) == hashlib.sha256(b"1 keep\n2 quarantine\n3 keep\n").hexdigest()


def test_standings_forget_the_oldest(database: Database) -> None:
    cache = Standings(most_bytes=1000)
    for _ in range(3):
        job = succeeded(database)
        with database.transaction() as session:
            overrides.decide(session, job, np.array([99]), Verdict.KEEP, note=None, by="ada")
        with database.session() as session:
            assert cache.get(session, job.id).numbers[99] == 1
    assert cache.nbytes == 800


def test_decisions_of_one_job_at_once_are_numbered_one_by_one(database: Database, job: Job) -> None:
    def decide(index: int) -> None:
        with database.transaction() as session:
            overrides.decide_one(session, job, index, Verdict.KEEP, note=None, by="ada")

    threads = [threading.Thread(target=decide, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.session() as session:
        assert sorted(overrides.standing(session, job.id).over(12).tolist()) == list(range(1, 13))


# Selections


@pytest.mark.parametrize(
    ("where", "means"),
    [
        (Where(verdict=Verdict.REFORM), lambda row: row["verdict"] == "reform"),
        (Where(label="class 3"), lambda row: row["label"] == "class 3"),
        (Where(label="nonesuch"), lambda _: False),
        (Where(reason="label_loss"), lambda row: "label_loss" in row["reasons"]),
        (Where(p_value_below=0.1), lambda row: row["p_value"] < 0.1),
        (Where(indices=[7, 2499, 7]), lambda row: row["index"] in (7, 2499)),
        (Where(indices=[]), lambda _: False),
        (
            Where(verdict=Verdict.QUARANTINE, reason="label_loss", label="class 1", p_value_below=0.08),
            lambda row: (
                row["verdict"] == "quarantine"
                and "label_loss" in row["reasons"]
                and row["label"] == "class 1"
                and row["p_value"] < 0.08
            ),
        ),
    ],
)
def test_a_selection_means_what_holds_of_all_that_is_given(storage: LocalStorage, where: Where, means: Any) -> None:
    table().write(storage, "t.parquet")
    told = selected(VerdictPages(storage, "t.parquet", Orders()), where)
    assert told.tolist() == [row["index"] for row in table().table.to_pylist() if means(row)]


@pytest.mark.parametrize("where", [Where(), Where(indices=[ROWS]), Where(indices=[-1]), Where(reason="beauty")])
def test_a_selection_that_cannot_be_told_is_refused(storage: LocalStorage, where: Where) -> None:
    table().write(storage, "t.parquet")
    with pytest.raises(InvalidInput) as told:
        selected(VerdictPages(storage, "t.parquet", Orders()), where)
    assert told.value.code == "bad_selection"


def test_a_million_images_are_decided_on_at_once(database: Database, storage: LocalStorage) -> None:
    job, count = succeeded(database), 1_000_000
    began = time.process_time()
    scattered = np.flatnonzero(np.random.default_rng(0).random(2 * count) < 0.5)[:count]
    with database.transaction() as session:
        overrides.decide(session, job, scattered, Verdict.KEEP, note=None, by="ada")
    with database.session() as session:
        assert int((overrides.standing(session, job.id).numbers == 1).sum()) == len(scattered)
        row = session.get(Override, (job.id, 1))
    assert time.process_time() - began < 2.0
    assert row is not None and (row.count, len(row.indices) < 1_500_000) == (len(scattered), True)


# Over HTTP


def test_a_decision_is_recorded_with_who_when_and_why_and_can_be_taken_back(client: Client, job: Job) -> None:
    url = f"/v1/jobs/{job.id}/verdicts/1030"
    assert client.get(url).json()["override"] is None
    answer = client.put(url, json={"verdict": "keep", "note": "a real sign"})
    assert answer.status_code == 200
    row = answer.json()
    assert row["index"] == 1030 and row["verdict"] == table().table["verdict"][1030].as_py()
    assert (row["override"]["verdict"], row["override"]["note"], row["override"]["by"]) == (
        "keep",
        "a real sign",
        "admin",
    )
    assert abs((datetime.now(UTC) - datetime.fromisoformat(row["override"]["at"])).total_seconds()) < 60
    assert client.put(url, json={"verdict": "quarantine"}).json()["override"]["verdict"] == "quarantine"
    shown = next(row for row in every_row(client, job) if row["index"] == 1030)
    assert shown["override"] == client.get(url).json()["override"] and shown["override"]["note"] is None
    assert client.delete(url).json()["override"] is None
    assert client.delete(url).status_code == 200  # nothing stands: nothing more to record
    told = client.get(url).json()
    assert told["override"] is None
    assert [(each["verdict"], each["by"]) for each in told["history"]] == [
        ("keep", "admin"),
        ("quarantine", "admin"),
        (None, "admin"),
    ]
    assert all(row["override"] is None for row in every_row(client, job))


def test_a_decision_bears_the_name_of_the_key_that_made_it(client: Client, job: Job) -> None:
    made = client.post("/v1/keys", json={"name": "ada", "scopes": ["review"]}).json()
    url, ada = f"/v1/jobs/{job.id}/verdicts/3", {"Authorization": f"Bearer {made['secret']}"}
    assert client.put(url, json={"verdict": "keep"}, headers=ada).json()["override"]["by"] == "ada"
    client.delete(url)
    assert [each["by"] for each in client.get(url, headers=ada).json()["history"]] == ["ada", "admin"]


def test_a_selection_is_decided_on_and_found_again_in_any_order(client: Client, job: Job) -> None:
    url = f"/v1/jobs/{job.id}/verdicts"
    body = {"where": {"reason": "label_loss", "verdict": "quarantine"}, "verdict": "keep", "note": "all fine"}
    meant = [
        row["index"]
        for row in table().table.to_pylist()
        if "label_loss" in row["reasons"] and row["verdict"] == "quarantine"
    ]
    answer = client.put(url, json=body)
    assert answer.json() == {"decided": len(meant), "job": job.id}
    assert client.put(url, json={"where": {"indices": meant[:2]}, "verdict": None}).json()["decided"] == 2
    rows = every_row(client, job, overridden="true", sort="-p_value")
    assert sorted(row["index"] for row in rows) == meant[2:]
    assert [row["p_value"] for row in rows] == sorted((row["p_value"] for row in rows), reverse=True)
    assert {row["override"]["note"] for row in rows} == {"all fine"}
    others = every_row(client, job, overridden="false")
    assert sorted([row["index"] for row in [*rows, *others]]) == list(range(ROWS))
    assert every_row(client, job, overridden="true", verdict="keep") == []


def test_the_files_have_the_decisions_too(client: Client, job: Job) -> None:
    url = f"/v1/jobs/{job.id}/verdicts"
    client.put(f"{url}/5", json={"verdict": "keep", "note": "=1+1"})
    told = client.get(url, headers={"Accept": "text/csv"}, params={"overridden": "true"}).text
    (row,) = csv.DictReader(io.StringIO(told))
    assert (row["index"], row["override"], row["override_note"], row["override_by"]) == ("5", "keep", "'=1+1", "admin")
    whole = pq.read_table(
        pa.BufferReader(client.get(url, headers={"Accept": "application/vnd.apache.parquet"}).content)
    )
    assert whole.select(table().table.column_names).equals(table().table)
    assert whole["override"].to_pylist() == [None] * 5 + ["keep"] + [None] * (ROWS - 6)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/2500", {"verdict": "keep"}, 404, "verdict_not_found"),
        ("/0", {"verdict": "reform"}, 422, "invalid_request"),
        ("/0", {"verdict": None}, 422, "invalid_request"),
        ("/0", {"verdict": "keep", "note": "x" * 1001}, 422, "invalid_request"),
        ("/0", {"verdict": "keep", "note": "a\0b"}, 422, "invalid_request"),
        ("/0", {"verdict": "keep", "by": "somebody else"}, 422, "invalid_request"),
        ("/-1", {"verdict": "keep"}, 422, "invalid_request"),
        ("/99999999999", {"verdict": "keep"}, 422, "invalid_request"),
        ("", {"where": {}, "verdict": "keep"}, 422, "bad_selection"),
        ("", {"where": {"indices": [0]}}, 422, "invalid_request"),
        ("", {"where": {"indices": [ROWS]}, "verdict": "keep"}, 422, "bad_selection"),
        ("", {"where": {"reason": "beauty"}, "verdict": "keep"}, 422, "bad_selection"),
        ("", {"where": {"colour": "red"}, "verdict": "keep"}, 422, "invalid_request"),
    ],
)
def test_what_cannot_be_decided_says_so(
    client: Client, job: Job, database: Database, path: str, body: Any, status: int, code: str
) -> None:
    answer = client.put(f"/v1/jobs/{job.id}/verdicts{path}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    with database.session() as session:
        assert overrides.standing(session, job.id).last == 0


def test_only_verdicts_that_are_there_can_be_decided_on(client: Client, database: Database) -> None:
    distill, sanitise = succeeded(database, "distill"), succeeded(database)
    with database.transaction() as session:
        found = session.get(Job, sanitise.id)
        assert found is not None
        found.state = "running"
    wanted = {
        distill.id: (422, "no_verdicts"),
        sanitise.id: (409, "job_not_finished"),
        "nonesuch": (404, "job_not_found"),
    }
    for job_id, (status, code) in wanted.items():
        url = f"/v1/jobs/{job_id}/verdicts"
        for answer in (
            client.put(f"{url}/0", json={"verdict": "keep"}),
            client.put(url, json={"where": {"label": "a"}, "verdict": "keep"}),
            client.delete(f"{url}/0"),
            client.get(f"{url}/0"),
            client.post("/v1/jobs", json={"type": "review", "job": job_id}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_harden_job_means_its_sanitise_step(client: Client, database: Database, storage: LocalStorage) -> None:
    harden = succeeded(database, "harden")
    step = succeeded(database, parent=harden.id)
    table(10).write(storage, f"jobs/{step.id}/1/verdicts.parquet")
    assert client.put(f"/v1/jobs/{harden.id}/verdicts/3", json={"verdict": "keep"}).status_code == 200
    rows = client.get(f"/v1/jobs/{step.id}/verdicts").json()["items"]
    assert [row["index"] for row in rows if row["override"]] == [3]


def test_a_review_wants_decisions_and_nothing_else(client: Client, job: Job) -> None:
    asked = {"type": "review", "job": job.id}
    refused = client.post("/v1/jobs", json=asked)
    assert (refused.status_code, refused.json()["code"]) == (409, "no_overrides")
    client.put(f"/v1/jobs/{job.id}/verdicts/0", json={"verdict": "keep"})
    answer = client.post("/v1/jobs", json=asked)
    assert answer.status_code == 202
    assert (answer.json()["type"], answer.json()["inputs"], answer.json()["params"]) == ("review", {"job": job.id}, {})
    listed = client.get("/v1/jobs", params={"type": "review"}).json()["items"]
    assert [each["id"] for each in listed] == [answer.json()["id"]]
    for extra, code in (({"dataset": "signs@1"}, "unknown_input"), ({"params": {"x": 1}}, "invalid_params")):
        assert client.post("/v1/jobs", json={**asked, **extra}).json()["code"] == code
    assert client.post("/v1/jobs", json={"type": "review"}).json()["code"] == "missing_input"


# The client and the command line


def test_the_client_decides_by_index_and_by_what_images_share(client: Client, settings: Settings, job: Job) -> None:
    with WinnowClient(str(client.base_url), ensure_admin_key(settings)) as winnow:
        assert winnow.decide(job.id, "keep", [4, 2], note="looked") == 2
        fifth = winnow.decide(job.id, "quarantine", {"label": "class 5", "p_value_below": 0.5})
        rows = list(winnow.verdicts(job.id, overridden=True))
        assert len(rows) == 2 + fifth > 100
        assert [(row.index, (row.override or {})["note"]) for row in rows[:2]] == [(2, "looked"), (4, "looked")]
        assert winnow.decide(job.id, None, {"label": "class 5"}) >= fifth
        assert [row.index for row in winnow.verdicts(job.id, overridden=True)] == [2, 4]
        assert winnow.review(job.id).type == "review"


def test_the_command_decides_lists_and_applies(client: Client, settings: Settings, job: Job) -> None:
    def winnow(*arguments: str) -> Result:
        target = ["--url", str(client.base_url), "--key", ensure_admin_key(settings)]
        with capture_logs():  # the gateway's, which shares this process's stdout
            return CliRunner().invoke(app, ["review", job.id, *arguments, *target], env={"COLUMNS": "200"})

    assert "Nobody has decided" in winnow().stdout
    told = winnow("--where", "label=class 1", "--then", "keep", "--quarantine", "1,20-22", "--note", "as [b]agreed")
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines() == ["keep: 357 images", "quarantine: 4 images"]
    rows = json.loads(winnow("--json").stdout)
    assert {row["index"] for row in rows if row["override"]["verdict"] == "quarantine"} == {1, 20, 21, 22}
    assert winnow("--where", "label=class 1", "--then", "take-back", "--take-back", "20").exit_code == 0
    listed = winnow().stdout
    assert "21.png" in listed and "20.png" not in listed and "as [b]agreed" in listed and "admin" in listed
    applied = winnow("--keep", "0", "--apply", "--no-wait", "--json")
    assert applied.exit_code == 0 and "keep: 1 images" in applied.stderr
    assert json.loads(applied.stdout)["inputs"] == {"job": job.id}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--keep", "three"),
        ("--keep", "3-"),
        ("--keep", "3,,4"),
        ("--keep", "0-99999999999"),
        ("--where", "reason=label_loss"),
        ("--then", "keep"),
        ("--where", "colour=red", "--then", "keep"),
        ("--where", "p_value_below=small", "--then", "keep"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(arguments: tuple[str, ...]) -> None:
    ran = CliRunner().invoke(app, ["review", "j", *arguments, "--url", "http://127.0.0.1:9", "--key", "k"])
    assert ran.exit_code == 2, ran.output


def test_decisions_are_told_in_the_audit_log(client: Client, settings: Settings, job: Job) -> None:
    with WinnowClient(str(client.base_url), ensure_admin_key(settings)) as winnow:
        winnow.decide(job.id, "keep", [2, 1])
        latest = next(iter(winnow.audit.entries(action="verdicts.decided")))
        assert winnow.audit.verify().intact
    assert latest.subject == f"job {job.id}"
    which = hashlib.sha256(np.array([1, 2], "<i8").tobytes()).hexdigest()
    assert json.loads(latest.details) == {"verdict": "keep", "images": 2, "sha256": which}
