"""One embedded stack for the whole session: real broker, real worker, real gateway, and real handwritten digits."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from service.client import Job, WinnowClient
from service.embedded.running import RunningStack, running_stack, settings_of
from service.storage import Storage, open_storage
from tests.parts import PostgresServer, S3Server, redis_server

# Small enough for seconds, and still the real thing.
FAST_FILTER: dict[str, Any] = {
    "false_quarantine_rate": 0.05,
    "filter": {"width": 8, "fit": {"epochs": 1}},
    "perturbation": {"steps": 4, "surrogates": 1, "surrogate_epochs": 4},
    "panel": {"detectors": ["label_loss"], "rounds": 1, "steps": 20, "final_steps": 40, "width": 4},
}
FAST_DISTILL: dict[str, Any] = {
    "fit": {"epochs": 2, "batch_size": 64},
    "teacher": {"width": 8, "hidden": 32},
    "student": {"width": 8, "hidden": 32},
    "abstention": {"alpha": 0.05, "mc_passes": 8},
    "max_accuracy_loss": 1.0,
}
FAST_EVALUATE: dict[str, Any] = {
    **{"max_images": 40, "costly_images": 12, "pgd_steps": 3, "steps": 3, "eps_curve": [0.01, 0.04]},
    **{"queries": 5, "adaptive_steps": 3, "adaptive_restarts": 2},
}


PATIENCE = float(os.environ.get("WINNOW_TEST_PATIENCE", "1"))
"""By how much longer than on an idle machine of two cores a job may take."""


@dataclass(frozen=True)
class Digits:
    """Handwritten digits at 16×16."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def npz(self, rows: slice, **more: NDArray[np.int64]) -> io.BytesIO:
        buffer = io.BytesIO()
        np.savez(buffer, images=self.images[rows], labels=self.labels[rows], **more)
        buffer.seek(0)
        return buffer


@pytest.fixture(scope="session")
def digits() -> Digits:
    return Digits(*digits_16())


def digits_16() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 16, 16) and labels."""
    told = load_digits()
    small = (told.images * 255 / 16).round().astype(np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)) for image in small]
    )
    # The set is ordered by writer: cut in order, its parts differ enough for a shift to be told, and rightly.
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], told.target[order].astype(np.int64)


@contextmanager
def chosen_parts(request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Settings of a stack: none, for SQLite, a folder and a private broker; or those of a cluster's parts."""
    if os.environ.get("WINNOW_TEST_PARTS") != "cluster":
        yield {}
        return
    with cluster_parts(request, factory) as made:
        yield made


@contextmanager
def cluster_parts(request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Settings of a stack on a database, a bucket and a Redis of its own."""
    postgres: PostgresServer = request.getfixturevalue("postgres")
    s3: S3Server = request.getfixturevalue("s3")
    with redis_server(factory.mktemp("redis")) as redis_url:
        yield {
            **s3.environment,
            "WINNOW_DATABASE_URL": postgres.url(postgres.make_database()),
            "WINNOW_STORAGE_URL": f"s3://{s3.make_bucket()}/winnow",
            "WINNOW_S3_ENDPOINT": s3.endpoint,
            "WINNOW_S3_REGION": "eu-central-1",
            "WINNOW_REDIS_URL": redis_url,
        }


@pytest.fixture(scope="session")
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with chosen_parts(request, tmp_path_factory) as chosen:
        yield chosen


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, str]) -> Iterator[RunningStack]:
    environment = {"WINNOW_STEP_IMAGES": "64", **parts}  # so that sets of some hundred images are scored by steps
    with running_stack(tmp_path_factory.mktemp("stack"), environment=environment) as running:
        yield running


@pytest.fixture(scope="session")
def storage(stack: RunningStack, parts: dict[str, str]) -> Storage:
    """The stack's own."""
    return open_storage(settings_of(stack, parts))


@pytest.fixture(scope="session")
def client(stack: RunningStack) -> Iterator[WinnowClient]:
    with WinnowClient(stack.url, stack.key) as opened:
        yield opened


def finished(client: WinnowClient, job: Job, *, state: str = "succeeded", timeout_s: float = 220) -> Job:
    """Looks more often than `client.wait`, which asks once a second."""
    deadline = time.monotonic() + timeout_s * PATIENCE
    while not (done := client.job(job.id)).finished:
        assert time.monotonic() < deadline, done
        time.sleep(0.1)
    assert done.state == state, done.error
    return done


@pytest.fixture(scope="session")
def sets(client: WinnowClient, digits: Digits) -> dict[str, str]:
    """References of the trusted, the candidate and the test set."""
    parts = {"trusted": slice(0, 240), "signs": slice(240, 640), "test": slice(640, 840)}
    jobs = {name: client.upload_dataset(name, digits.npz(rows)) for name, rows in parts.items()}
    return {name: (finished(client, job).result or {})["dataset"] for name, job in jobs.items()}


@pytest.fixture(scope="session")
def hardened(client: WinnowClient, sets: dict[str, str]) -> Job:
    params = {"sanitise": FAST_FILTER, "distill": FAST_DISTILL, "evaluate": FAST_EVALUATE}
    job = client.submit(
        "harden",
        dataset=sets["signs"],
        reference=sets["trusted"],
        model="digits",
        evaluate_on=sets["test"],
        params=params,
    )
    return finished(client, job)
