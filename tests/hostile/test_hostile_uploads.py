"""Hundreds of hostile files, each sent to a running service: all are answered, and nothing else happens."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.hostile import archives_tar, archives_zip, arrays, fuzzed, images, tables
from tests.hostile.arena import Arena, Peaks, arena
from tests.hostile.cases import CANARY, GOOD, TAKEN, Case, zipped
from tests.integration.conftest import PATIENCE

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(1800)]

MODULES = (archives_zip, archives_tar, arrays, images, tables, fuzzed)
CASES = {case.name: case for module in MODULES for case in module.CASES}
AT_ONCE = 4
MOST_S = 5.0 * PATIENCE
MOST_BYTES = 1_000_000_000
END_S = 600 * PATIENCE
CODES = frozenset(re.findall(r"`([a-z_0-9]+)`", (Path(__file__).parents[2] / "docs" / "errors.md").read_text()))


@dataclass(frozen=True)
class Answer:
    """What the service said to one file in the end."""

    code: str  # TAKEN, or of the error
    message: str
    took_s: float  # in the worker, or at the gateway where it refused
    content_type: str = "application/problem+json"


@dataclass(frozen=True)
class Attack:
    """What came of all of them."""

    answers: dict[str, Answer]
    peaks: Peaks
    lived: bool  # whether the same processes were there before and after
    changed: dict[str, Any]


@pytest.fixture(scope="module")
def attack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    """All the files that this run asks for, sent at once, so that jobs wait while others are worked on."""
    wanted = [item.callspec.params["name"] for item in request.session.items if hasattr(item, "callspec")]
    cases = [CASES[name] for name in dict.fromkeys(wanted) if name in CASES]
    CANARY.unlink(missing_ok=True)
    with arena(tmp_path_factory.mktemp("arena")) as ours:
        _answers(
            ours, [Case("honest", lambda: zipped(GOOD))]
        )  # so that what the parts make at their first job is there
        before, files = ours.processes(), ours.files()
        with Peaks(before.worker[1]) as peaks:
            answers = _answers(ours, cases)
        after = ours.files()
        changed = {name: told for name, told in (files | after).items() if files.get(name) != after.get(name)}
        outcome = Attack(answers, peaks, before == ours.processes(), changed)
    _tell(outcome)
    yield outcome


def _answers(ours: Arena, cases: list[Case]) -> dict[str, Answer]:
    headers = {"Authorization": f"Bearer {ours.key}"}
    with (
        httpx.Client(base_url=ours.stack.url, headers=headers, timeout=120) as http,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        sent = dict(zip([case.name for case in cases], pool.map(lambda case: _sent(http, case), cases), strict=True))
        deadline = time.monotonic() + END_S
        return {name: one if isinstance(one, Answer) else _ended(http, one, deadline) for name, one in sent.items()}


def _sent(http: httpx.Client, case: Case) -> Answer | str:
    """Its job, or the answer where the gateway refused it."""
    data = case.make()
    began = time.monotonic()
    headers = {"Content-Type": case.content_type}
    answer = http.post(f"/v1/datasets/{case.name.replace('.', '-')}/versions", content=data, headers=headers)
    took_s = time.monotonic() - began
    if answer.status_code == 202:
        return str(answer.json()["id"])
    return Answer(answer.json()["code"], answer.json()["detail"], took_s, answer.headers["content-type"])


def _ended(http: httpx.Client, job: str, deadline: float) -> Answer:
    while time.monotonic() < deadline:
        told = http.get(f"/v1/jobs/{job}").raise_for_status().json()
        if told["finished_at"] is not None:
            took = datetime.fromisoformat(told["finished_at"]) - datetime.fromisoformat(told["started_at"])
            error = told["error"] or {"code": TAKEN, "message": ""}
            return Answer(error["code"], error["message"], took.total_seconds())
        time.sleep(0.1)
    return Answer("unanswered", "the job has not ended", END_S)


def _tell(attack: Attack) -> None:
    slowest = sorted(attack.answers, key=lambda name: -attack.answers[name].took_s)[:8]
    print(f"\nfiles: {len(attack.answers)}, {sum(one.code == TAKEN for one in attack.answers.values())} of them taken")
    print("slowest:", ", ".join(f"{name} {attack.answers[name].took_s:.2f} s" for name in slowest))
    print(f"peak of the worker: {attack.peaks.of_worker / 1e6:.0f} MB; of a process that it starts: "
          f"{attack.peaks.of_its_processes / 1e6:.0f} MB")  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_answered(attack: Attack, name: str) -> None:
    """In time, with a code that is documented, and with the one that is right."""
    answer, case = attack.answers[name], CASES[name]
    assert answer.code in CODES | {TAKEN}
    assert answer.code not in ("internal", "worker_lost", "out_of_memory")
    assert not case.codes or answer.code in case.codes, answer.message
    assert answer.took_s < MOST_S
    assert answer.content_type.startswith("application/problem+json")
    assert answer.code == TAKEN or len(answer.message) > 20


def test_no_process_died(attack: Attack) -> None:
    assert attack.lived


def test_memory_stayed_within_bounds(attack: Attack) -> None:
    assert 0 < attack.peaks.of_worker < MOST_BYTES
    assert attack.peaks.of_its_processes < MOST_BYTES


def test_not_a_byte_was_written_where_the_tenant_does_not_belong(attack: Attack) -> None:
    assert attack.changed == {}
    assert not CANARY.exists()


def test_there_are_hundreds_of_them() -> None:
    assert len(CASES) >= 200
