"""The main job through a real stack: upload, harden, verdicts, report, prediction, lineage."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest

from models.evaluate_specs import CHEAP
from service.client import Job, ProblemError, WinnowClient
from service.embedded.running import RunningStack
from tests.encoders import line_encoder
from tests.integration.conftest import FAST_FILTER, Digits, finished
from worker.caveats import POORLY_TOLD

FAST_BADJIE: dict[str, Any] = {
    "preset": "badjie",
    "filter": {"fit": {"epochs": 1}, "width": 8},
    "perturbation": FAST_FILTER["perturbation"],
}


@pytest.fixture(scope="module")
def result(hardened: Job) -> dict[str, Any]:
    assert hardened.result is not None
    return hardened.result


def test_verdicts_account_for_every_image(client: WinnowClient, hardened: Job, result: dict[str, Any]) -> None:
    rows = list(client.verdicts(hardened.id, sort="p_value"))
    assert sorted(row.index for row in rows) == list(range(400))
    assert [row.p_value for row in rows] == sorted(row.p_value for row in rows if row.p_value is not None)
    counts = {kind: sum(row.verdict == kind for row in rows) for kind in ("keep", "reform", "quarantine")}
    assert counts == result["counts"]
    assert all((row.verdict == "quarantine") == (row.p_value is not None and row.p_value <= 0.05) for row in rows)
    assert all(bool(row.reasons) == (row.verdict == "quarantine") for row in rows)


def test_the_sanitised_version_holds_what_was_kept_and_knows_its_parent(
    client: WinnowClient, sets: dict[str, str], result: dict[str, Any]
) -> None:
    version = client.dataset(result["dataset"])
    assert version.parent == sets["signs"]
    assert version.num_samples == result["counts"]["keep"]
    assert client.dataset(sets["signs"]).num_samples == 400


def test_lineage_leads_from_the_model_to_the_upload(client: WinnowClient, result: dict[str, Any]) -> None:
    lineage = client.model(result["model"]).card["lineage"]
    assert lineage["dataset"] == result["dataset"]
    assert lineage["dataset_digest"] == client.dataset(result["dataset"]).digest
    assert lineage["distill_job"] == result["jobs"]["distill"]
    sanitise = client.job(result["jobs"]["sanitise"])
    assert sanitise.result is not None
    assert sanitise.result["dataset"] == result["dataset"]


def test_reports_are_pages_and_numbers(client: WinnowClient, result: dict[str, Any]) -> None:
    for kind in ("sanitise", "evaluate"):
        page = client.report(result["jobs"][kind]).decode()
        assert page.lstrip().lower().startswith("<!doctype html>")
        assert "<svg" in page or "data:image/png" in page
        assert client.report(result["jobs"][kind], "json").startswith(b"{")


def test_evaluation_has_every_attack_with_n_and_interval(result: dict[str, Any]) -> None:
    rows = {row["attack"]: row for row in result["evaluation"]["attacks"]}
    quick = {"fgsm", "ifgsm", "pgd-margin", "pgd-cross-entropy", "transfer-teacher", "square", "adaptive"}
    assert set(rows) == {"none"} | quick
    assert {row["knowledge"] for row in rows.values()} == {"none", "student", "transfer", "queries", "everything"}
    assert all(row["n"] == (40 if name in CHEAP | {"none"} else 12) for name, row in rows.items())
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows.values())
    assert rows["pgd-margin"]["accuracy"] <= rows["none"]["accuracy"]
    assert 0 < rows["fgsm"]["mean_linf"] <= 0.01 + 0.5 / 255
    assert result["evaluation"]["clean"]["accuracy"]["n"] == 200
    assert [point["eps_linf"] for point in result["evaluation"]["curve"]] == [0.01, 0.04]


def test_dropout_is_alive_in_what_is_served(client: WinnowClient, digits: Digits, result: dict[str, Any]) -> None:
    assert result["metrics"]["mc_variance"] > 0
    assert result["metrics"]["onnx_max_difference"] < 1e-4
    answers = client.predict("digits", digits.npz(slice(840, 900)).getvalue()).predictions
    assert len(answers) == 60
    spread = [answer.uncertainty.mutual_information for answer in answers if answer.uncertainty is not None]
    assert max(spread) > 0
    assert all((answer.label is None) == answer.abstained for answer in answers)


def test_foreign_images_are_refused_more_often_than_digits(
    client: WinnowClient, digits: Digits, result: dict[str, Any]
) -> None:
    def abstained(images: np.ndarray[Any, Any]) -> float:
        buffer = io.BytesIO()
        np.savez(buffer, images=images)
        answers = client.predict(result["model"], buffer.getvalue(), alpha=0.05).predictions
        return float(np.mean([answer.abstained for answer in answers]))

    noise = np.random.default_rng(0).integers(0, 256, (60, 16, 16), dtype=np.uint8)
    assert abstained(noise) > 0.9
    assert abstained(digits.images[840:900]) < 0.4


def test_an_alpha_that_cannot_be_promised_is_refused(
    stack: RunningStack, digits: Digits, result: dict[str, Any]
) -> None:
    answer = httpx.post(
        f"{stack.url}/v1/models/{result['model']}/predict",
        params={"alpha": 0.0001},
        content=digits.npz(slice(0, 1)).getvalue(),
        headers={"Authorization": f"Bearer {stack.key}"},
    )
    assert answer.status_code == 422
    assert answer.json()["code"] == "alpha_too_small"


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({**FAST_BADJIE, "threshold": 0.015}, marks=pytest.mark.slow),
        pytest.param({**FAST_BADJIE, "infer_threshold": {"percentage": 90}}, marks=pytest.mark.slow),
        pytest.param(
            {**FAST_FILTER, "policy": {"on_flag": "reform"}, "false_quarantine_rate": 0.3}, marks=pytest.mark.slow
        ),
    ],
    ids=["badjie-threshold", "badjie-inferred", "reform"],
)
def test_other_ways_to_sanitise(client: WinnowClient, sets: dict[str, str], params: dict[str, Any]) -> None:
    job = finished(client, client.submit("sanitise", dataset=sets["signs"], reference=sets["trusted"], params=params))
    assert job.result is not None
    kept = job.result["counts"]["keep"] + job.result["counts"]["reform"]
    assert sum(job.result["counts"].values()) == 400
    if kept:
        assert client.dataset(job.result["dataset"]).num_samples == kept
    assert job.result["rates_are"] == ("held" if "false_quarantine_rate" in params else "estimated")
    report = json.loads(client.report(job.id, "json"))
    told = any("hardly tells" in warning for warning in report["warnings"])
    assert told == (report["notes"]["told_apart"] < POORLY_TOLD)


def test_a_corrupt_image_among_good_ones_is_a_row_of_the_report(client: WinnowClient) -> None:
    import zipfile

    from PIL import Image

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(20):
            image = io.BytesIO()
            Image.new("RGB", (20, 20), (index, 0, 0)).save(image, "PNG")
            archive.writestr(f"{index % 2}/{index}.png", image.getvalue())
        archive.writestr("1/broken.png", b"\x89PNG\r\n\x1a\nnothing")
    buffer.seek(0)
    job = finished(client, client.upload_dataset("mixed", buffer))
    assert job.result is not None
    assert (job.result["num_samples"], job.result["num_rejected"], job.result["image_shape"]) == (20, 1, [20, 20, 3])
    assert job.result["rejected"][0]["path"] == "1/broken.png"
    assert b"broken.png" in client.report(job.id, "json")


def test_one_class_only_is_refused_in_words(client: WinnowClient) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((10, 8, 8), np.uint8), labels=np.zeros(10, np.int64))
    buffer.seek(0)
    job = client.wait(client.upload_dataset("single", buffer).id, timeout_s=30)
    assert job.state == "failed"
    assert job.error["code"] == "one_class"
    assert "at least two" in job.error["message"]


@pytest.mark.parametrize("size", [28, 32, 64, 128])
def test_working_resolutions(client: WinnowClient, digits: Digits, size: int) -> None:
    job = finished(
        client, client.upload_dataset(f"sized{size}", digits.npz(slice(0, 20)), {"size": size, "channels": 3})
    )
    assert job.result is not None
    assert job.result["image_shape"] == [size, size, 3]


def test_an_encoder_of_the_operators_is_asked(stack: RunningStack, client: WinnowClient, sets: dict[str, str]) -> None:
    folder = stack.home / "encoders"
    folder.mkdir(exist_ok=True)
    (folder / "lines.onnx").write_bytes(line_encoder(channels=3))
    (folder / "noise.onnx").write_bytes(b"no network")
    params = {**FAST_FILTER, "false_quarantine_rate": 0.3, "panel": {**FAST_FILTER["panel"], "encoder": "lines"}}
    inputs = {"dataset": sets["signs"], "reference": sets["trusted"]}
    job = finished(client, client.submit("sanitise", **inputs, params=params))
    assert "encoder_loss" in (job.result or {})["detectors"]
    report = json.loads(client.report(job.id, "json"))
    assert report["notes"]["panel"]["encoder"]["sha256"] == hashlib.sha256(line_encoder(channels=3)).hexdigest()
    params["panel"]["encoder"] = "noise"
    failed = finished(client, client.submit("sanitise", **inputs, params=params), state="failed")
    assert failed.error is not None and failed.error["code"] == "encoder_unfit"
    params["panel"]["encoder"] = "nobody"
    with pytest.raises(ProblemError, match="There is: lines, noise"):
        client.submit("sanitise", **inputs, params=params)
