"""The HTTP client against a service on a real port."""

from __future__ import annotations

import hashlib
import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_winnow import KEY, FakeWinnow, problem, serving
from fastapi.responses import JSONResponse

from service.client import CannotReach, Job, NotWinnow, ProblemError, WaitTimedOut, WinnowClient


@pytest.fixture(scope="module")
def running() -> Iterator[FakeWinnow]:
    with serving() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeWinnow) -> FakeWinnow:
    running.steps.clear()
    running.received.clear()
    running.refusals.clear()
    return running


@pytest.fixture
def client(fake: FakeWinnow) -> Iterator[WinnowClient]:
    with WinnowClient(fake.url, KEY) as client:
        yield client


def test_upload_streams_the_file_with_its_length(client: WinnowClient, fake: FakeWinnow, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096 * 3  # 3 MiB
    path = tmp_path / "set.zip"
    path.write_bytes(data)
    told: list[tuple[int, int]] = []
    job = client.upload_dataset("signs", path, {"size": 32, "channels": None}, on_sent=lambda *at: told.append(at))
    assert (job.id, job.type, job.state) == ("ingest-1", "ingest", "queued")
    got = fake.received[0]
    assert got["length"] == str(len(data)) and got["size"] == len(data)
    assert got["sha256"] == hashlib.sha256(data).hexdigest()
    assert got["query"] == {"size": "32"}
    assert len(told) == 12 and told[-1] == (len(data), len(data))  # in pieces of 256 KiB, never the whole


def test_upload_of_an_open_file_sends_what_is_left_of_it(client: WinnowClient, fake: FakeWinnow) -> None:
    file = io.BytesIO(b"skipped" + b"sent")
    file.seek(7)
    client.upload_dataset("signs", file)
    assert fake.received[0]["length"] == "4" and fake.received[0]["size"] == 4


def test_submit_sends_only_what_was_given(client: WinnowClient, fake: FakeWinnow) -> None:
    client.submit("harden", dataset="a@1", reference="t@1", model="m", evaluate_on="e@1", params={"distill": {}})
    client.submit("evaluate", model="m@1", dataset="a@1", idempotency_key="once")
    first, second = fake.received
    assert first["body"] == {
        "type": "harden",
        "dataset": "a@1",
        "reference": "t@1",
        "model": "m",
        "evaluate_on": "e@1",
        "params": {"distill": {}},
    }
    assert first["key"] is None
    assert second == {"body": {"type": "evaluate", "model": "m@1", "dataset": "a@1", "params": {}}, "key": "once"}


def test_wait_reports_progress_and_gives_the_job_as_it_ended(client: WinnowClient, fake: FakeWinnow) -> None:
    half = {"done": 1, "total": 2, "unit": "images", "phase": "scoring", "fraction": 0.5}
    fake.script(
        "j",
        {"state": "queued"},
        {"state": "running", "progress": half},
        {"state": "failed", "error": {"message": "no"}},
    )
    seen: list[Job] = []
    ended = client.wait("j", on_progress=seen.append)
    assert [job.state for job in seen] == ["queued", "running", "failed"]
    assert seen[1].progress.share == 0.5 and seen[1].progress.phase == "scoring"
    assert ended.finished and not ended.succeeded and ended.trouble == "no"


def test_wait_rides_out_a_gateway_that_is_away_for_a_moment(client: WinnowClient, fake: FakeWinnow) -> None:
    fake.script("j", {"state": "succeeded"})
    fake.refusals += [problem(503, "unavailable", "The database is away."), JSONResponse({}, 502)]
    assert client.wait("j").succeeded
    fake.refusals.append(problem(500, "internal", "A bug."))
    with pytest.raises(ProblemError, match=r"A bug\."):
        client.wait("j")


def test_wait_gives_up_in_time_and_says_that_the_job_goes_on(client: WinnowClient, fake: FakeWinnow) -> None:
    fake.script("j", {"state": "running"})
    began = time.monotonic()
    with pytest.raises(WaitTimedOut, match="goes on") as caught:
        client.wait("j", timeout_s=0.3)
    assert 0.25 < time.monotonic() - began < 3
    assert caught.value.job.state == "running"


def test_lists_follow_the_cursor_to_their_end(client: WinnowClient, fake: FakeWinnow) -> None:
    rows = list(client.verdicts("j"))
    assert [row.index for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0].scores == {"residual_energy": 1.0}
    assert [row.index for row in client.verdicts("j", verdict="quarantine")] == [1, 3]
    for name in "abc":
        fake.script(name, {"state": "queued"})
    assert [job.id for job in client.jobs(state="queued", type="sanitise")] == ["a", "b", "c"]
    assert fake.received[-1] == {"state": "queued", "type": "sanitise", "cursor": 2}


def test_pages_are_fetched_only_as_they_are_asked_for(client: WinnowClient, fake: FakeWinnow) -> None:
    for name in "abc":
        fake.script(name, {"state": "queued"})
    listed = client.jobs()
    assert (next(listed).id, next(listed).id) == ("a", "b")
    assert len(fake.received) == 1


def test_predict_sends_files_in_order_and_in_portions(client: WinnowClient, fake: FakeWinnow, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(70)]
    for path in paths:
        path.write_bytes(b"x")
    answer = client.predict("m", paths, alpha=0.05)
    assert [prediction.label for prediction in answer.predictions] == [path.name for path in paths]
    assert [len(got["names"]) for got in fake.received] == [64, 6]
    assert fake.received[0]["alpha"] == 0.05
    assert answer.model == "m@1" and answer.predictions[0].uncertainty is not None


def test_predict_sends_an_npz_as_it_is(client: WinnowClient, fake: FakeWinnow) -> None:
    assert [row.label for row in client.predict("m", b"12345").predictions] == ["npz:5"]


def test_cancel_retry_and_report(client: WinnowClient) -> None:
    assert client.cancel("j").state == "cancelling"
    assert client.retry("j").state == "queued"
    assert client.report("j") == b"<html>"
    assert client.report("j", "json") == b"{}"


def test_a_problem_keeps_its_code_status_and_details(client: WinnowClient, fake: FakeWinnow) -> None:
    fake.refusals.append(problem(422, "alpha_too_small", "Ask for 0.01.", smallest=0.01))
    with pytest.raises(ProblemError, match=r"Ask for 0\.01\.") as caught:
        client.job("j")
    assert (caught.value.code, caught.value.status, caught.value.extra) == ("alpha_too_small", 422, {"smallest": 0.01})


def test_a_wrong_key_is_a_problem_too(fake: FakeWinnow) -> None:
    with WinnowClient(fake.url, "wrong") as client, pytest.raises(ProblemError) as caught:
        client.job("j")
    assert caught.value.status == 401


def test_another_program_on_the_port_is_told_apart(client: WinnowClient, fake: FakeWinnow) -> None:
    fake.refusals += [JSONResponse({"hello": 1}, 418), JSONResponse([1]), JSONResponse({"id": 1})]
    for _ in range(3):
        with pytest.raises(NotWinnow):
            client.job("j")


def test_nobody_there_is_said_with_what_to_do() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for address in (url, "nonsense", "http://[::bad"):
        with pytest.raises(CannotReach, match=r"--url|address"), WinnowClient(address, KEY) as client:
            client.job("j")
