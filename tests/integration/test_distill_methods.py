"""Every method of distillation through a real stack: job, ONNX, bundle, prediction."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from service.client import WinnowClient
from tests.integration.conftest import FAST_DISTILL, Digits, finished


def distilled(client: WinnowClient, sets: dict[str, str], model: str, **params: Any) -> dict[str, Any]:
    job = client.submit(
        "distill", dataset=sets["signs"], reference=sets["trusted"], model=model, params={**FAST_DISTILL, **params}
    )
    result = finished(client, job, timeout_s=230).result
    assert result is not None
    return result


def abstained(client: WinnowClient, model: str, images: np.ndarray[Any, Any]) -> tuple[float, set[str | None]]:
    buffer = io.BytesIO()
    np.savez(buffer, images=images)
    answers = client.predict(model, buffer.getvalue(), alpha=0.05).predictions
    assert all(abs(sum(answer.probabilities) - 1) < 1e-4 and len(answer.probabilities) == 10 for answer in answers)
    return float(np.mean([answer.abstained for answer in answers])), {answer.reason for answer in answers}


@pytest.mark.slow
def test_the_extended_students_outlier_class_can_refuse_but_never_answers(
    client: WinnowClient, sets: dict[str, str], digits: Digits
) -> None:
    result = distilled(client, sets, "extended", method="extended")
    assert result["metrics"]["abstains_for"] == ["uncertain", "unfamiliar", "outlier"]
    assert result["metrics"]["onnx_max_difference"] < 1e-4
    assert 0 <= result["metrics"]["ece_after"] <= 1
    card = client.model(result["model"]).card
    assert 0 < card["notes"]["mean_outlier_mass"] < 1
    noise = np.random.default_rng(0).integers(0, 256, (60, 16, 16), dtype=np.uint8)
    refused, reasons = abstained(client, result["model"], noise)
    clean, _ = abstained(client, result["model"], digits.images[800:900])
    assert refused > clean
    assert clean < 0.3
    assert reasons & {"unfamiliar", "outlier"}


@pytest.mark.slow
def test_the_robust_student_is_served_as_any_other(client: WinnowClient, sets: dict[str, str], digits: Digits) -> None:
    result = distilled(client, sets, "robust", method="robust", robust={"attack": "pgd", "steps": 2})
    notes = client.model(result["model"]).card["notes"]
    assert notes["adversary"] == "pgd"
    assert notes["overfitting_check"]["caught"] is False
    assert abstained(client, result["model"], digits.images[800:900])[0] < 0.3


@pytest.mark.slow
def test_a_student_in_bytes_is_calibrated_measured_and_evaluated_as_it_is_served(
    client: WinnowClient, sets: dict[str, str], digits: Digits
) -> None:
    export = {"precision": "int8", "max_accuracy_loss": 0.2}
    result = distilled(client, sets, "bytes", export=export)
    told = result["metrics"]["export"]
    assert told["precision"] == "int8" and told["n"] == result["metrics"]["student_accuracy"]["n"]
    assert told["accuracy"] == result["metrics"]["student_accuracy"]["share"]
    assert 0.5 < told["same_answer"] <= 1
    assert result["metrics"]["onnx_max_difference"] < 1e-4
    assert abstained(client, result["model"], digits.images[800:900])[0] < 0.3
    params = {"suite": "quick", "max_images": 40}
    job = client.submit("evaluate", model=result["model"], dataset=sets["trusted"], params=params)
    assert finished(client, job, timeout_s=230).result is not None
    assert "served in int8" in client.report(job.id).decode()


@pytest.mark.slow
def test_papernots_network_is_served_per_class(client: WinnowClient, sets: dict[str, str], digits: Digits) -> None:
    network = {"kind": "plain", "width": 8, "hidden": 32, "augment": False}
    abstention = {**FAST_DISTILL["abstention"], "per_class": True}
    result = distilled(client, sets, "plain", temperature=20, teacher=network, student=network, abstention=abstention)
    assert abstained(client, result["model"], digits.images[800:860])[0] < 0.5


@pytest.mark.slow
def test_a_network_that_cannot_take_the_images_is_refused_before_it_is_trained(client: WinnowClient) -> None:
    images, labels = np.zeros((80, 8, 8), np.uint8), np.arange(80) % 2
    images[labels == 1] = 200
    buffer = io.BytesIO()
    np.savez(buffer, images=images + np.arange(80, dtype=np.uint8)[:, None, None] // 4, labels=labels)
    buffer.seek(0)
    uploaded = finished(client, client.upload_dataset("small", buffer)).result
    assert uploaded is not None
    params = {**FAST_DISTILL, "student": {"kind": "plain"}, "abstention": {"alpha": 0.2, "mc_passes": 8}}
    job = client.submit("distill", dataset=uploaded["dataset"], model="small", params=params)
    ended = client.wait(job.id)
    assert ended.state == "failed"
    assert ended.error is not None
    assert ended.error["code"] == "network_does_not_fit"
