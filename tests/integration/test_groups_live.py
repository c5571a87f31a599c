"""A reference that shows each object several times: what counts, what is refused and when, what the report says."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from models.abstention import calibrating_of
from service.client import ProblemError, WinnowClient
from service.embedded.running import RunningStack
from tests.integration.conftest import FAST_DISTILL, FAST_FILTER, Digits, finished

EACH, IMAGES = 5, 240


@pytest.fixture(scope="module")
def objects(digits: Digits) -> NDArray[np.int64]:
    """What each image shows: up to five of a class show one object."""
    labels, groups = digits.labels[:IMAGES], np.empty(IMAGES, np.int64)
    for label in np.unique(labels):
        groups[labels == label] = 100 * label + np.arange((labels == label).sum()) // EACH
    return groups


@pytest.fixture(scope="module")
def count(objects: NDArray[np.int64]) -> int:
    return len(np.unique(objects))


@pytest.fixture(scope="module")
def grouped(client: WinnowClient, digits: Digits, objects: NDArray[np.int64]) -> str:
    job = finished(client, client.upload_dataset("grouped", digits.npz(slice(0, IMAGES), groups=objects)))
    return str((job.result or {})["dataset"])


def test_a_rate_that_so_few_objects_cannot_promise_is_refused_before_anything_is_fitted(
    client: WinnowClient, sets: dict[str, str], grouped: str, count: int
) -> None:
    assert client.dataset(grouped).num_groups == count
    for kind, further in (("sanitise", {}), ("distill", {"model": "of-groups"})):
        with pytest.raises(ProblemError) as refused:
            client.submit(kind, dataset=sets["signs"], reference=grouped, **further)
        assert refused.value.code == "alpha_too_small"
        assert f" {count} " in str(refused.value) and 'count_by "images"' in str(refused.value)


def test_what_the_filter_leaves_to_the_student_is_counted_before_it_is_fitted(
    client: WinnowClient, sets: dict[str, str], grouped: str
) -> None:
    """The filter that is served leaves half of the objects, and three quarters of these calibrate."""
    distill = {**FAST_DISTILL, "abstention": {"alpha": 0.03, "mc_passes": 8}}
    params = {"sanitise": {**FAST_FILTER, "false_quarantine_rate": 0.05}, "distill": distill}
    job = client.submit("harden", dataset=sets["signs"], reference=grouped, model="of-half", params=params)
    failed = finished(client, job, state="failed")
    assert (failed.error["code"], failed.error["step"]) == ("alpha_too_small", "sanitise")
    assert "held-out groups that calibrate" in failed.error["message"]
    assert 'abstention.count_by "images"' in failed.error["message"]
    assert client.job(failed.error["job"]).progress.phase is None


@pytest.mark.parametrize("how", ["groups", "images"])
def test_of_an_object_one_held_out_image_calibrates_the_student(
    stack: RunningStack,
    client: WinnowClient,
    digits: Digits,
    sets: dict[str, str],
    grouped: str,
    count: int,
    how: str,
) -> None:
    calibrating = calibrating_of(count if how == "groups" else IMAGES)
    params = {**FAST_DISTILL, "abstention": {"alpha": 0.05, "mc_passes": 8, "count_by": how}}
    job = client.submit("distill", dataset=sets["signs"], reference=grouped, model=f"of-{how}", params=params)
    metrics = (finished(client, job).result or {})["metrics"]
    assert metrics["num_calibration"] == calibrating
    assert metrics["smallest_alpha"] == pytest.approx(1 / (1 + calibrating))
    assert metrics["calibration_groups"] == (calibrating if how == "groups" else None)
    assert metrics["rates_are"] == ("held" if how == "groups" else "estimated")
    for choice in ({}, {"mc_passes": 16}):  # other passes are calibrated for anew, on what the bundle holds
        answer = httpx.post(
            f"{stack.url}/v1/models/of-{how}/predict",
            params=choice,
            content=digits.npz(slice(0, 200)).getvalue(),
            headers={"Authorization": f"Bearer {stack.key}"},
        )
        ranks = np.array([each["p_value"] for each in answer.json()["predictions"]]) * (1 + calibrating)
        np.testing.assert_allclose(ranks, np.rint(ranks), atol=1e-6)
        assert ranks.min() >= 1 - 1e-6


@pytest.mark.parametrize(("how", "standing"), [("groups", "held"), ("images", "estimated")])
def test_images_of_one_object_count_as_one_unless_asked_otherwise(
    client: WinnowClient, sets: dict[str, str], grouped: str, count: int, how: str, standing: str
) -> None:
    groups = count if how == "groups" else None
    params = {**FAST_FILTER, "false_quarantine_rate": 0.05, "count_by": how, "panel": {"detectors": []}}
    job = finished(client, client.submit("sanitise", dataset=sets["signs"], reference=grouped, params=params))
    assert job.result is not None
    assert (job.result["calibration_groups"], job.result["num_calibration"]) == (groups, IMAGES)
    smallest = 1 / (1 + (groups or IMAGES))
    report = json.loads(client.report(job.id, "json"))
    assert report["calibration"]["groups"] == groups
    assert report["rule"]["smallest_alpha"] == pytest.approx(smallest)
    assert job.result["rates_are"] in {standing, "estimated"}
    page = client.report(job.id).decode()
    assert ("each of which counts as one" in page) == (groups is not None)
    rows = list(client.verdicts(job.id))
    assert min(row.p_value for row in rows if row.p_value is not None) >= smallest * (1 - 1e-6)
