"""A worker that is killed, and a job that is cancelled, in the middle of the real thing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from service.client import Job, WinnowClient
from service.embedded.running import RunningStack
from service.embedded.state import read_state
from service.storage import Storage
from tests.integration.conftest import FAST_FILTER, finished

IN_THE_MIDDLE = ("denoiser", "surrogates 2", "perturbing 2", "denoiser 2", "believing")
"""Progress is told once a second, and some phases are shorter."""


def wait_for_phase(client: WinnowClient, job: Job, phases: Collection[str], timeout_s: float = 60) -> Job:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        seen = client.job(job.id)
        if seen.progress.phase in phases and seen.state == "running":
            return seen
        assert seen.state in ("queued", "running"), seen
        time.sleep(0.05)
    raise TimeoutError(f"the job never came to {', '.join(phases)}")


def worker_pids(stack: RunningStack) -> tuple[int, int]:
    """(the worker, its child that computes)."""
    state = read_state(stack.home)
    assert state is not None
    parent = state.parts["worker"]
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return parent, int(children[-1])


def decided(client: WinnowClient, job: Job) -> list[tuple[int, str, float | None, dict[str, float]]]:
    return [(row.index, row.verdict, row.p_value, row.scores) for row in client.verdicts(job.id)]


@pytest.fixture(scope="module")
def undisturbed(client: WinnowClient, hardened: Job) -> list[Any]:
    return decided(client, client.job((hardened.result or {})["jobs"]["sanitise"]))


@pytest.mark.parametrize("victim", [pytest.param("child", marks=pytest.mark.slow), "worker"])
def test_a_killed_worker_costs_neither_the_job_nor_a_verdict(
    stack: RunningStack, client: WinnowClient, sets: dict[str, str], undisturbed: list[Any], victim: str
) -> None:
    job = client.submit("sanitise", dataset=sets["signs"], reference=sets["trusted"], params=FAST_FILTER)
    wait_for_phase(client, job, IN_THE_MIDDLE)
    parent, child = worker_pids(stack)
    os.kill(child if victim == "child" else parent, signal.SIGKILL)
    killed_at = time.monotonic()
    while client.job(job.id).attempt < 2:
        assert time.monotonic() - killed_at < 15, client.job(job.id)
        time.sleep(0.05)
    done = finished(client, job)
    assert done.attempt == 2
    assert decided(client, job) == undisturbed


def test_cancel_ends_a_running_job_soon_and_leaves_nothing(
    storage: Storage, client: WinnowClient, sets: dict[str, str]
) -> None:
    params = {**FAST_FILTER, "filter": {"width": 24, "fit": {"epochs": 100}}}
    job = client.submit("sanitise", dataset=sets["signs"], reference=sets["trusted"], params=params)
    wait_for_phase(client, job, ["denoiser"])
    client.cancel(job.id)
    asked_at = time.monotonic()
    done = finished(client, job, state="cancelled", timeout_s=20)
    assert time.monotonic() - asked_at < 5
    assert done.result is None
    assert [entry.key for entry in storage.list() if f"{job.id}-" in entry.key] == []


@pytest.mark.slow
@pytest.mark.timeout(600)  # two jobs, one after the other
def test_a_worker_that_is_stopped_gives_its_job_back(
    stack: RunningStack, client: WinnowClient, sets: dict[str, str]
) -> None:
    long = {"width": 8, "fit": {"epochs": 12}}  # enough to be stopped in the middle of it
    params = {**FAST_FILTER, "filter": long}
    untouched, stopped = (
        client.submit("sanitise", dataset=sets["signs"], reference=sets["trusted"], params=params) for _ in range(2)
    )
    finished(client, untouched)
    wait_for_phase(client, stopped, IN_THE_MIDDLE)
    os.kill(worker_pids(stack)[0], signal.SIGTERM)
    assert finished(client, stopped).attempt == 2
    assert decided(client, stopped) == decided(client, untouched)


def test_nothing_of_this_stack_swallows_cpu_when_idle(stack: RunningStack) -> None:
    """It comes to rest: a worker that was restarted a moment ago may load its libraries first."""
    deadline = time.monotonic() + 30
    while (share := cpu_share(stack, seconds=2)) >= 0.15:
        assert time.monotonic() < deadline, f"still at {share:.0%} of a core"


def cpu_share(stack: RunningStack, *, seconds: float) -> float:
    """Of one core, over the next `seconds`, by the supervisor and its parts."""
    state = read_state(stack.home)
    assert state is not None
    pids = [state.pid, *state.parts.values()]
    try:
        before, began = ticks(pids), time.monotonic()
        time.sleep(seconds)
        spent = ticks(pids) - before
    except FileNotFoundError:  # a part was being restarted: not at rest
        return 1.0
    return spent / os.sysconf("SC_CLK_TCK") / (time.monotonic() - began)


def ticks(pids: list[int]) -> int:
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats)
