"""Backdoors and flipped labels through the whole service: with a trusted reference, with a spoilt one, with none."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.attacks.triggers import Patch
from service.client import Job, Verdict, WinnowClient
from tests.integration.conftest import FAST_FILTER, Digits, finished

pytestmark = pytest.mark.slow

TRIGGERED, FLIPPED = 30, 30
MISLABELLED = 17  # of the reference
PARAMS: dict[str, Any] = {
    **FAST_FILTER,
    "panel": {"detectors": ["label_loss", "poison_gain"], "rounds": 2, "steps": 40, "final_steps": 120, "width": 8},
}


class Crowd:
    """The last 1,157 digits, the first of which are poisoned."""

    def __init__(self, digits: Digits) -> None:
        images, labels = digits.images[640:, ..., None].copy(), digits.labels[640:].copy()
        poison = np.flatnonzero(labels != 0)[: TRIGGERED + FLIPPED]
        self.triggered, self.flipped = poison[:TRIGGERED], poison[TRIGGERED:]
        images[self.triggered] = Patch(size_px=3).stamp(images[self.triggered])
        labels[self.triggered] = 0
        labels[self.flipped] = (labels[self.flipped] + 3) % 10
        self.images, self.labels = images, labels
        self.clean = np.setdiff1d(np.arange(len(labels)), poison)


def npz(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> io.BytesIO:
    buffer = io.BytesIO()
    np.savez(buffer, images=images, labels=labels)
    buffer.seek(0)
    return buffer


@pytest.fixture(scope="module")
def crowd(digits: Digits) -> Crowd:
    return Crowd(digits)


@pytest.fixture(scope="module")
def dataset(client: WinnowClient, crowd: Crowd) -> str:
    job = finished(client, client.upload_dataset("crowd", npz(crowd.images, crowd.labels)))
    return str((job.result or {})["dataset"])


def quarantined(verdicts: Sequence[Verdict], rows: NDArray[np.int64]) -> float:
    return float(np.mean([verdicts[row].verdict == "quarantine" for row in rows]))


@pytest.fixture(scope="module")
def with_reference(client: WinnowClient, digits: Digits, dataset: str) -> tuple[Job, list[Verdict]]:
    """Judged against 400 trusted images, of which one is mislabelled."""
    labels = digits.labels[:400].copy()
    labels[MISLABELLED] = (labels[MISLABELLED] + 5) % 10
    upload = finished(client, client.upload_dataset("vouched", npz(digits.images[:400, ..., None], labels)))
    reference = (upload.result or {})["dataset"]
    job = finished(client, client.submit("sanitise", dataset=dataset, reference=reference, params=PARAMS))
    return job, list(client.verdicts(job.id))


def test_both_kinds_are_found_and_the_reasons_name_who_spoke(
    crowd: Crowd, with_reference: tuple[Job, list[Verdict]]
) -> None:
    _, verdicts = with_reference
    assert quarantined(verdicts, crowd.triggered) >= 0.8
    assert quarantined(verdicts, crowd.flipped) >= 0.8
    assert quarantined(verdicts, crowd.clean) <= 0.12
    found = [verdicts[row] for row in crowd.flipped if verdicts[row].verdict == "quarantine"]
    assert all(set(row.reasons) & {"label_loss", "poison_gain"} for row in found)
    assert all(set(row.scores) == {"residual_energy", "label_loss", "poison_gain"} for row in verdicts)


def test_the_report_lists_the_mislabelled_image_of_the_reference(
    client: WinnowClient, digits: Digits, with_reference: tuple[Job, list[Verdict]]
) -> None:
    job, _ = with_reference
    report = json.loads(client.report(job.id, "json"))
    listed = {(row["label"], row["suggested_label"]) for row in report["suspicious_reference"]}
    truth = int(digits.labels[MISLABELLED])
    assert (str((truth + 5) % 10), str(truth)) in listed


def test_without_a_reference_one_is_sifted_and_rates_are_estimates(
    client: WinnowClient, crowd: Crowd, dataset: str
) -> None:
    job = finished(client, client.submit("sanitise", dataset=dataset, params=PARAMS), timeout_s=200)
    result, verdicts = job.result or {}, list(client.verdicts(job.id))
    assert result["reference"] is None
    assert result["rates_are"] == "estimated"
    assert result["sifted"]["trusted"] >= 200
    assert quarantined(verdicts, crowd.flipped) >= 0.6
    assert quarantined(verdicts, crowd.clean) <= 0.2
