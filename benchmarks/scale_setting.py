"""What the parts of the scale benchmark share: how large a run is, drawn images, stacks, and a second worker."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import select

from service.client import Job, WinnowClient
from service.db import Database
from service.embedded.running import RunningStack, running_stack
from service.embedded.state import read_state
from service.jobs.state import FINISHED
from service.jobs.steps import PhaseState, StepState
from service.jobs.tables import Phase, Step
from service.tables import Job as JobRow

SIDE, CLASSES, TRUSTED = 32, 10, 600
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
PARAMS: dict[str, Any] = {
    "false_quarantine_rate": 0.01,
    "filter": {"width": 8, "depth": 2, "fit": {"epochs": 1, "batch_size": 256}, "max_images": 500},
    "perturbation": {"steps": 2, "surrogates": 1},
    "panel": {"rounds": 1, "steps": 10, "final_steps": 20, "max_images": 1000, "width": 8},
}
"""Small and hardly fitted: what scoring costs does not depend on what the networks have learnt."""


@dataclass(frozen=True)
class Setting:
    """Where a run has its files, and how large it is."""

    folder: Path
    images: int  # to be ingested and scored by one worker
    shared: int  # to be scored by one worker and by two, in turns
    rounds: int
    jobs: int

    @contextmanager
    def stack(self, environment: Mapping[str, str] | None = None) -> Iterator[tuple[RunningStack, WinnowClient]]:
        """A new stack, and a client of it; its home goes with the block."""
        with (
            TemporaryDirectory(dir=self.folder, prefix="home-") as home,
            running_stack(Path(home), environment={**ONE_THREAD, **(environment or {})}, timeout_s=300) as stack,
            WinnowClient(stack.url, stack.key) as client,
        ):
            yield stack, client


def drawn(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 32, 32, 3): a wave for each class, at any place, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    images = rng.integers(0, 90, (count, SIDE, SIDE, 3), dtype=np.uint8)
    columns = np.arange(SIDE)[None, :] + rng.integers(0, SIDE, count)[:, None]
    waves = 80 * (1 + np.sin(columns * (1 + labels[:, None]) * np.pi / SIDE))
    images += waves.astype(np.uint8)[:, None, :, None]
    return images, labels


def npz(count: int, seed: int) -> io.BytesIO:
    images, labels = drawn(count, seed)
    buffer = io.BytesIO()
    np.savez(buffer, images=images, labels=labels)
    buffer.seek(0)
    return buffer


def write_zip(path: Path, count: int, seed: int) -> None:
    """Folders of PNGs, one a class; a part of them in memory at a time."""
    at_once = 10_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for start in range(0, count, at_once):
            images, labels = drawn(min(at_once, count - start), seed + start)
            for place, (image, label) in enumerate(zip(images, labels, strict=True), start):
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "PNG", compress_level=1)
                archive.writestr(f"{label}/{place:08}.png", buffer.getvalue())


def done(client: WinnowClient, job: Job) -> Job:
    ended = client.wait(job.id)
    if not ended.succeeded:
        raise RuntimeError(f"job {job.id} ended as {ended.state}: {ended.error}")
    return ended


def ingested(client: WinnowClient, name: str, source: io.BytesIO | Path) -> str:
    return str((done(client, client.upload_dataset(name, source)).result or {})["dataset"])


def worker_pids(stack: RunningStack) -> tuple[int, int]:
    """(the stack's own worker, its child that computes)."""
    state = read_state(stack.home)
    if state is None:
        raise RuntimeError(f"no stack runs in {stack.home}")
    parent = state.parts["worker"]
    return parent, int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[-1])


@dataclass(frozen=True)
class Scored:
    """How long a phase of steps took, from its opening to its last step, and how many workers did it."""

    seconds: float
    workers: int


class Phases:
    """Watches the database while a job runs: its rows of steps are gone when it has succeeded."""

    def __init__(self, stack: RunningStack) -> None:
        self._database = Database.open(f"sqlite:///{stack.home / 'winnow.db'}", pooled=False)

    def scoring_of(self, job: Job) -> Scored:
        began = ended = 0.0
        workers: set[str] = set()
        while not ended:
            time.sleep(0.05)
            with self._database.session() as session:
                finished = session.scalar(select(JobRow.state).where(JobRow.id == job.id)) in FINISHED
                state = session.scalar(select(Phase.state).where(Phase.job_id == job.id))
                working = select(Step.worker).where(Step.job_id == job.id, Step.state != StepState.QUEUED).distinct()
                workers |= {name for name in session.scalars(working) if name}
            if finished and not began:
                raise RuntimeError(f"job {job.id} ended without steps")
            began = began or (time.monotonic() if state == PhaseState.OPEN and workers else 0.0)
            ended = time.monotonic() if began and state != PhaseState.OPEN else 0.0
        return Scored(ended - began, len(workers))
