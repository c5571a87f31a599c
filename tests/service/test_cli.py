"""The `winnow` command as a user runs it: a process, its output, its exit code; against a service on a real port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_winnow import KEY, FakeWinnow, problem, serving
from typer.testing import CliRunner, Result

from service.cli import app
from service.cli.archive import opened_for_upload
from service.cli.params import parse_params
from service.embedded.state import StackState, write_state


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
def home(fake: FakeWinnow, tmp_path: Path) -> Path:
    """A home whose stack is the fake."""
    home = tmp_path / "home"
    home.mkdir()
    write_state(home, StackState(os.getpid(), 1, fake.url, "now"))
    (home / "admin.key").write_text(KEY)
    return home


def winnow(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--home", str(home)], env={"COLUMNS": "200", "WINNOW_URL": None})


def test_a_job_is_followed_to_its_end_and_shown(home: Path, fake: FakeWinnow) -> None:
    scoring = {"done": 5, "total": 10, "unit": "images", "phase": "scoring", "fraction": 0.5}
    result = {"dataset": "signs@2", "counts": {"keep": 9, "quarantine": 1}}
    fake.script("job-1", {"state": "running", "progress": scoring}, {"state": "succeeded", "result": result})
    ran = winnow(home, "sanitise", "signs@1", "--reference", "trusted@1", "-p", "false_quarantine_rate=0.05")
    assert ran.exit_code == 0, ran.output
    assert fake.received[0]["body"] == {
        "type": "sanitise",
        "dataset": "signs@1",
        "reference": "trusted@1",
        "params": {"false_quarantine_rate": 0.05},
    }
    assert "sanitise: scoring" in ran.stderr
    assert "succeeded" in ran.stdout and "signs@2" in ran.stdout and "counts.quarantine" in ran.stdout


def test_json_is_all_that_is_on_stdout(home: Path, fake: FakeWinnow) -> None:
    fake.script("job-1", {"state": "succeeded", "result": {"model": "m@1"}})
    ran = winnow(home, "distill", "signs@2", "--model", "m", "--json")
    assert json.loads(ran.stdout)["result"] == {"model": "m@1"}


def test_a_failed_job_is_exit_code_1_with_its_reason(home: Path, fake: FakeWinnow) -> None:
    fake.script("job-1", {"state": "failed", "error": {"code": "x", "message": "Class 7 is empty."}})
    ran = winnow(home, "harden", "signs@1", "--model", "m", "--reference", "t@1", "--evaluate-on", "e@1")
    assert ran.exit_code == 1
    assert "Class 7 is empty." in ran.stdout
    assert fake.received[0]["body"]["evaluate_on"] == "e@1"


def test_no_wait_returns_at_once(home: Path, fake: FakeWinnow) -> None:
    ran = winnow(home, "evaluate", "m@1", "signs@1", "--no-wait", "--json")
    assert ran.exit_code == 0 and json.loads(ran.stdout)["state"] == "queued"


def test_a_refusal_is_said_in_words_with_its_code(home: Path, fake: FakeWinnow) -> None:
    fake.refusals.append(
        problem(422, "invalid_params", "No such parameter.", errors=[{"field": "params.x", "problem": "?"}])
    )
    ran = winnow(home, "sanitise", "signs@1", "-p", "x=1")
    assert ran.exit_code == 1 and ran.stdout == ""
    assert "No such parameter. (invalid_params)" in ran.stderr and "params.x: ?" in ran.stderr
    assert "Traceback" not in ran.output


def test_nobody_to_talk_to_is_exit_code_3(tmp_path: Path) -> None:
    ran = winnow(tmp_path, "jobs")
    assert ran.exit_code == 3 and "winnow up" in ran.stderr
    write_state(tmp_path, StackState(1, 9, "http://127.0.0.1:9", "now"))
    ran = winnow(tmp_path, "jobs")
    assert ran.exit_code == 3 and "--key" in ran.stderr
    (tmp_path / "admin.key").write_text(KEY)
    ran = winnow(tmp_path, "jobs")
    assert ran.exit_code == 3 and "Cannot reach Winnow" in ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("sanitise",),
        ("sanitise", "a@1", "-p", "no-equals-sign"),
        ("sanitise", "a@1", "-p", "a=1", "-p", "a.b=2"),
        ("sanitise", "a@1", "-p", "a=1", "-p", "a=2"),
        ("upload", "signs", "/nowhere.zip"),
        ("jobs", "--cancel"),
        ("no-such-command",),
    ],
)
def test_wrong_usage_is_exit_code_2(home: Path, arguments: tuple[str, ...]) -> None:
    assert winnow(home, *arguments).exit_code == 2


def test_parameters_nest_and_keep_their_types() -> None:
    given = [
        "distill.fit.epochs=20",
        "distill.seed=1",
        "sanitise.preset=badjie",
        "sanitise.policy={}",
        "a=null",
        "b=x=y",
    ]
    assert parse_params(given) == {
        "distill": {"fit": {"epochs": 20}, "seed": 1},
        "sanitise": {"preset": "badjie", "policy": {}},
        "a": None,
        "b": "x=y",
    }


def test_upload_takes_a_file_with_its_parameters(home: Path, fake: FakeWinnow, tmp_path: Path) -> None:
    file = tmp_path / "signs.zip"
    file.write_bytes(b"zip" * 1000)
    fake.script("ingest-1", {"type": "ingest", "state": "succeeded", "result": {"dataset": "signs@1"}})
    ran = winnow(home, "upload", "signs", str(file), "--size", "32", "--max-rejected-share", "0.2")
    assert ran.exit_code == 0, ran.output
    assert fake.received[0]["query"] == {"size": "32", "max_rejected_share": "0.2"}
    assert fake.received[0]["size"] == 3000 and "signs@1" in ran.stdout


def test_a_folder_of_class_folders_becomes_a_zip(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/deep/3.png", "stray.txt"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "secret").write_text("not to be sent")
    (tmp_path / "set" / "cat" / "link.png").symlink_to(tmp_path / "secret")
    with opened_for_upload(tmp_path / "set") as file, zipfile.ZipFile(file) as archive:
        assert archive.namelist() == ["cat/1.png", "cat/2.png", "dog/deep/3.png"]
        assert archive.read("cat/2.png") == b"cat/2.png"


def test_predict_prints_null_where_the_model_abstains(home: Path, fake: FakeWinnow, tmp_path: Path) -> None:
    images = [tmp_path / name for name in ("a.png", "b.png")]
    for image in images:
        image.write_bytes(b"x")
    ran = winnow(home, "predict", "m", *map(str, images), "--alpha", "0.1")
    assert ran.exit_code == 0 and "a.png" in ran.stdout and fake.received[0]["alpha"] == 0.1
    fake.refusals.append(
        problem(
            200,
            "",
            "",
            model="m@1",
            predictions=[{"label": None, "index": None, "abstained": True, "reason": "perturbed"}],
        )
    )
    ran = winnow(home, "predict", "m", str(images[0]))
    assert "null" in ran.stdout and "perturbed" in ran.stdout


def test_jobs_are_listed_shown_cancelled_and_reported(home: Path, fake: FakeWinnow, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        fake.script(name, {"state": "running"})
    ran = winnow(home, "jobs", "--limit", "2")
    assert "one" in ran.stdout and "two" in ran.stdout and "three" not in ran.stdout
    assert json.loads(winnow(home, "jobs", "one", "--json").stdout)["state"] == "running"
    assert "cancelling" in winnow(home, "jobs", "one", "--cancel").stdout
    report = tmp_path / "report.json"
    assert winnow(home, "jobs", "one", "--report", str(report)).exit_code == 0
    assert report.read_bytes() == b"{}"
    assert winnow(home, "jobs", "none").exit_code == 1


def test_ctrl_c_leaves_the_job_running_and_says_so(home: Path, fake: FakeWinnow) -> None:
    fake.script("job-1", {"state": "running"})
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "sanitise", "a@1", "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # whatever began the tests ignores
    )
    deadline = time.monotonic() + 20
    while not fake.received and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "job job-1 goes on" in told and "Traceback" not in told


def test_the_command_line_does_not_load_torch_or_the_gateway() -> None:
    probe = "import sys, service.cli; sys.exit(bool({'torch', 'fastapi', 'sqlalchemy', 'celery'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", probe], check=True)
