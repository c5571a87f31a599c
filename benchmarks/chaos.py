"""Kills every part of a running stack at random, and looks whether anything was lost, doubled or changed.

Harden jobs on scikit-learn's digits; an undisturbed one says what verdicts and weights must come out.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from benchmarks.harness import ClaimRow, report, row
from service.client import WinnowClient
from service.db import Database
from service.embedded.running import RunningStack, another_worker, running_stack
from service.embedded.state import read_state
from service.jobs import artifacts, harden
from service.jobs.state import FINISHED, OWNED, JobState
from service.jobs.verdicts import VerdictTable
from service.settings import Settings
from service.storage import LocalStorage
from service.tables import DatasetVersion, Job, JobEvent, ModelVersion

VICTIMS = ("child", "worker", "broker", "broker's data", "gateway")
RESUMED_WITHIN_S = 15.0
JOB_S = 1800.0
WEIGHTS = ("student.onnx", "student.safetensors", "detector.onnx")
PARAMS: dict[str, Any] = {
    "sanitise": {
        "false_quarantine_rate": 0.05,
        "filter": {"width": 8, "fit": {"epochs": 6}},
        "perturbation": {"steps": 4, "surrogates": 1},
        "panel": {"rounds": 1, "steps": 20, "final_steps": 40, "width": 4},
    },
    "distill": {
        "fit": {"epochs": 3, "batch_size": 64},
        "teacher": {"width": 8, "hidden": 32},
        "student": {"width": 8, "hidden": 32},
        "abstention": {"alpha": 0.05, "mc_passes": 8},
        "max_accuracy_loss": 1.0,
    },
    "evaluate": {"max_images": 40, "pgd_steps": 3, "pgd_restarts": 1, "steps": 3},
}


@dataclass
class Seen:
    """What the kills did."""

    kills: dict[str, int] = field(default_factory=dict)
    resumed_s: list[float] = field(default_factory=list)


class Truth:
    """What the database and the storage say; no part of the stack is asked."""

    def __init__(self, home: Path) -> None:
        self.database = Database.open(f"sqlite:///{home / 'winnow.db'}", pooled=False)
        self.storage = LocalStorage(home / "storage")

    def job(self, job_id: str) -> Job:
        with self.database.session() as session:
            return session.get_one(Job, job_id)

    def at_work(self) -> Job | None:
        """The step that a worker owns."""
        with self.database.session() as session:
            return session.scalars(select(Job).where(Job.state.in_(OWNED), Job.worker.is_not(None))).first()

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        began = time.monotonic()
        while True:
            with suppress(OperationalError):
                if condition():
                    return time.monotonic() - began
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"after {seconds:.0f} s: {what}")
            time.sleep(0.05)

    def outcome(self, parent_id: str) -> tuple[list[Any], dict[str, str]]:
        """(verdicts, digests of the weights) of a harden job."""
        with self.database.session() as session:
            steps = {step.type: step for step in harden.steps_of(session, parent_id)}
            model = session.scalars(select(ModelVersion).where(ModelVersion.job_id == steps["distill"].id)).one()
        table = VerdictTable.read(self.storage, artifacts.verdicts_key(steps["sanitise"])).table
        return table.to_pylist(), {name: model.files[name] for name in WEIGHTS}

    def doubled(self) -> int:
        """Jobs that ended or published more than once."""
        with self.database.session() as session:
            ends = select(JobEvent.job_id).where(JobEvent.state == JobState.SUCCEEDED)
            count = len(session.execute(ends.group_by(JobEvent.job_id).having(func.count() > 1)).all())
            for table in (DatasetVersion, ModelVersion):
                count += len(
                    session.execute(select(table.job_id).group_by(table.job_id).having(func.count() > 1)).all()
                )
        return count


def strike(stack: RunningStack, truth: Truth, victim: str, seen: Seen) -> None:
    """Kill it, and wait until the work goes on; how long that took is noted."""
    truth.wait(lambda: truth.at_work() is not None, JOB_S, "no step was at work")
    state, step = read_state(stack.home), truth.at_work()
    if state is None or step is None:
        return
    pid = state.parts.get(victim.removesuffix("'s data") if victim != "child" else "worker")
    if victim == "child" and pid is not None:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pid = int(children[-1]) if children else None
    if pid is None:  # it is being started again since the last strike
        return
    if victim == "broker's data":
        shutil.rmtree(stack.home / "broker" / "appendonlydir", ignore_errors=True)
    os.kill(pid, signal.SIGKILL)
    seen.kills[victim] = seen.kills.get(victim, 0) + 1
    if victim in ("child", "worker"):
        seen.resumed_s.append(truth.wait(lambda: goes_on(truth, step), 120, f"{step.type} was not resumed"))
    else:
        seen.resumed_s.append(truth.wait(lambda: is_back(stack, victim, pid), 120, f"{victim} did not come back"))


def goes_on(truth: Truth, step: Job) -> bool:
    present = truth.job(step.id)
    return present.state in FINISHED or (present.attempt > step.attempt and present.state in OWNED)


def is_back(stack: RunningStack, victim: str, pid: int) -> bool:
    state = read_state(stack.home)
    present = None if state is None else state.parts.get(victim.removesuffix("'s data"))
    return present is not None and present != pid


def freeze(stack: RunningStack, truth: Truth, lease_s: float) -> int:
    """Stop a worker for longer than its lease, with a second one there, and wake it up: what it publishes then."""
    with another_worker(stack, stack.home / "logs" / "second.log", environment={"OMP_NUM_THREADS": "1"}):
        truth.wait(lambda: truth.at_work() is not None, JOB_S, "no step was at work")
        state, step = read_state(stack.home), truth.at_work()
        if state is None or step is None or step.worker is None:
            return 0
        owner = int(step.worker.rpartition(":")[2])
        os.kill(owner, signal.SIGSTOP)
        try:
            truth.wait(lambda: goes_on(truth, step), 120, "nobody took the frozen worker's job over")
            time.sleep(lease_s)
        finally:
            os.kill(owner, signal.SIGCONT)
        truth.wait(lambda: truth.job(step.id).state in FINISHED, JOB_S, "the job did not end")
        time.sleep(2)
    return truth.doubled()


def submit(client: WinnowClient, sets: dict[str, str], name: str) -> str:
    job = client.submit(
        "harden",
        dataset=sets["signs"],
        reference=sets["trusted"],
        evaluate_on=sets["test"],
        model=name,
        params=PARAMS,
    )
    return job.id


def ingest(client: WinnowClient) -> dict[str, str]:
    from tests.integration.conftest import Digits, digits_16

    digits = Digits(*digits_16())
    parts = {"trusted": slice(0, 240), "signs": slice(240, 640), "test": slice(640, 840)}
    found = {}
    for name, rows in parts.items():
        job = client.wait(client.upload_dataset(name, digits.npz(rows)).id, timeout_s=300)
        found[name] = (job.result or {})["dataset"]
    return found


def rows_of(truth: Truth, jobs: list[str], right: Any, seen: Seen, stale: int) -> list[ClaimRow]:
    lost = sum(truth.job(job_id).state != JobState.SUCCEEDED for job_id in jobs)
    changed = sum(truth.outcome(job_id) != right for job_id in jobs) if not lost else len(jobs)
    count = sum(seen.kills.values())
    slowest = max(seen.resumed_s, default=0.0)
    return [
        row("chaos/jobs-lost", "0", lost, lost == 0, n=len(jobs), unit="jobs"),
        row("chaos/published-twice", "0", truth.doubled(), truth.doubled() == 0, n=len(jobs), unit="jobs"),
        row("chaos/verdicts-or-weights-changed", "0", changed, changed == 0, n=len(jobs), unit="jobs"),
        row("chaos/slowest-resumption", "≤ 15 s", slowest, slowest <= RESUMED_WITHIN_S, n=count, unit="s"),
        row("chaos/published-by-a-frozen-worker", "0", stale, stale == 0, n=1, unit="jobs"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="10 kills, and no file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    kills, rng, began, seen = 10 if args.quick else args.kills, random.Random(args.seed), time.monotonic(), Seen()
    home = Path(tempfile.mkdtemp(prefix="winnow-chaos-"))
    many = {"WINNOW_MAX_ATTEMPTS": "1000", "OMP_NUM_THREADS": "1"}  # an attempt that is killed counts
    with running_stack(home, environment=many, timeout_s=300) as stack, WinnowClient(stack.url, stack.key) as client:
        truth, sets = Truth(home), ingest(client)
        first = submit(client, sets, "undisturbed")
        truth.wait(lambda: truth.job(first).state in FINISHED, JOB_S, "the undisturbed job did not end")
        right = truth.outcome(first)
        jobs: list[str] = []
        while sum(seen.kills.values()) < kills:
            if not jobs or truth.job(jobs[-1]).state in FINISHED:
                truth.wait(lambda: client_answers(client), 60, "the gateway did not come back")
                jobs.append(submit(client, sets, f"disturbed-{len(jobs)}"))
            strike(stack, truth, rng.choice(VICTIMS), seen)
            time.sleep(rng.uniform(0.2, 3.0))
        truth.wait(lambda: truth.job(jobs[-1]).state in FINISHED, JOB_S, "the last job did not end")
        truth.wait(lambda: client_answers(client), 60, "the gateway did not come back")
        jobs.append(submit(client, sets, "frozen"))
        stale = freeze(stack, truth, Settings().lease_seconds)
        truth.wait(lambda: truth.job(jobs[-1]).state in FINISHED, JOB_S, "the frozen job did not end")
        rows = rows_of(truth, jobs, right, seen, stale)
    extra = {"kills": seen.kills, "resumed_s": [round(each, 2) for each in seen.resumed_s]}
    print(f"kills: {seen.kills}")
    shutil.rmtree(home)
    return report("chaos", rows, time.monotonic() - began, quick=args.quick, extra=extra)


def client_answers(client: WinnowClient) -> bool:
    try:
        next(iter(client.jobs()), None)
    except Exception:  # noqa: BLE001 (whatever a gateway that was just killed makes of it)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
