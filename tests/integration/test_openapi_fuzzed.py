"""Every call of the OpenAPI document under schemathesis with all its checks, against a stack that really runs."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.api.examples import JOB_ID
from service.api.openapi import operations
from service.client import WinnowClient
from service.db import Database
from service.embedded.running import RunningStack, running_stack
from service.jobs import artifacts, create
from service.jobs.repository import record
from service.jobs.state import JobState
from service.storage import LocalStorage
from tests.service.test_verdicts import table

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "15")  # a call and phase, at most
SECONDS = os.environ.get("FUZZ_SECONDS", "270")  # after which no more are made up
ENDS_KEYS = (
    "--max-time",
    "60",
    "--include-path-regex",
    "^/v1/keys/",
)  # the fuzzer's own, too, as soon as it has read which that is
REST = ("--max-time", SECONDS, "--exclude-path-regex", "^/v1/keys/")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """With data sets of the names, and a job of the id, that the document's examples have."""
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        finish_a_job(running)
        with WinnowClient(running.url, running.key) as client:
            for name in ("signs", "trusted"):
                client.wait(client.upload_dataset(name, images()).id, timeout_s=120)
        yield running


def images() -> io.BytesIO:
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    np.savez(buffer, images=rng.integers(0, 256, (40, 16, 16), dtype=np.uint8), labels=np.arange(40) % 2)
    buffer.seek(0)
    return buffer


def finish_a_job(stack: RunningStack) -> None:
    """With verdicts and a report, so that the calls about them find what they are about."""
    database = Database.open(f"sqlite:///{stack.home / 'winnow.db'}", pooled=False)
    with database.transaction() as session, pytest.MonkeyPatch.context() as patch:
        patch.setattr(create, "new_job_id", lambda: JOB_ID)
        job = create.add_job(session, "sanitise", inputs={}, params={}, max_attempts=3)
        job.state, job.attempt = JobState.SUCCEEDED, 1
        record(session, job, "succeeded")
        verdicts, report = artifacts.verdicts_key(job), artifacts.report_key(job, "json")
    storage = LocalStorage(stack.home / "storage")
    table(40).write(storage, verdicts)
    storage.write(report, b"{}")


def fuzzed(stack: RunningStack, *which: str) -> str:
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(ROOT / "schemathesis.toml"), "run"]
    wanted = ["--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", "1"]
    rest = ["--no-color", "--request-timeout", "60", "-H", f"Authorization: Bearer {stack.key}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # for its hooks
    done = subprocess.run(
        [*command, f"{stack.url}/openapi.json", *wanted, *rest, *which],
        capture_output=True,
        text=True,
        cwd=stack.home,
        env=env,
    )
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    return done.stdout


def test_no_call_fails_a_check_and_none_answers_500(stack: RunningStack) -> None:
    document = httpx.get(f"{stack.url}/openapi.json", timeout=30).json()
    told = fuzzed(stack, *REST) + fuzzed(stack, *ENDS_KEYS)
    tested = sum(int(count) for count in re.findall(r"Tested: (\d+)", told))
    assert tested == len(list(operations(document)))
    assert sum(int(count) for count in re.findall(r"(\d+) generated", told)) > 1000
    log = (stack.home / "logs" / "gateway.log").read_text(errors="replace")
    assert len(re.findall(r'"status": ?\d{3}', log)) > 1000
    assert re.findall(r'.*"status": ?500.*', log) == []
