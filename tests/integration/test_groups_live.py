"""A reference that shows each object several times: what counts, what is refused and when, what the report says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.client import WinnowClient
from tests.integration.conftest import FAST_FILTER, Digits, finished

EACH = 5


@pytest.fixture(scope="module")
def grouped(client: WinnowClient, digits: Digits) -> str:
    """240 images of 48 objects."""
    upload = digits.npz(slice(0, 240), groups=np.arange(240) // EACH)
    job = finished(client, client.upload_dataset("grouped", upload))
    return str((job.result or {})["dataset"])


def test_a_rate_that_so_few_objects_cannot_promise_is_refused_before_anything_is_fitted(
    client: WinnowClient, sets: dict[str, str], grouped: str
) -> None:
    job = finished(client, client.submit("sanitise", dataset=sets["signs"], reference=grouped), state="failed")
    assert job.error["code"] == "alpha_too_small"
    assert "48 groups of calibration images" in job.error["message"]
    assert "1/49" in job.error["message"]
    assert 'count_by "images"' in job.error["message"]
    assert job.progress.phase is None


@pytest.mark.parametrize(("how", "standing", "groups"), [("groups", "held", 48), ("images", "estimated", None)])
def test_images_of_one_object_count_as_one_unless_asked_otherwise(
    client: WinnowClient, sets: dict[str, str], grouped: str, how: str, standing: str, groups: int | None
) -> None:
    params = {**FAST_FILTER, "false_quarantine_rate": 0.05, "count_by": how, "panel": {"detectors": []}}
    job = finished(client, client.submit("sanitise", dataset=sets["signs"], reference=grouped, params=params))
    assert job.result is not None
    assert (job.result["calibration_groups"], job.result["num_calibration"]) == (groups, 240)
    smallest = 1 / (1 + (groups or 240))
    report = json.loads(client.report(job.id, "json"))
    assert report["calibration"]["groups"] == groups
    assert report["rule"]["smallest_alpha"] == pytest.approx(smallest)
    assert job.result["rates_are"] in {standing, "estimated"}
    page = client.report(job.id).decode()
    assert ("each of which counts as one" in page) == (groups is not None)
    rows = list(client.verdicts(job.id))
    assert min(row.p_value for row in rows if row.p_value is not None) >= smallest * (1 - 1e-6)
