"""A person's decisions through a real stack: the version that they make, and the model trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.client import Verdict, WinnowClient
from tests.integration.conftest import FAST_DISTILL, FAST_FILTER, finished

# So many flags that some are reformed and some are not.
PARAMS: dict[str, Any] = {
    "preset": "badjie",
    "filter": {"fit": {"epochs": 1}, "width": 8},
    "perturbation": FAST_FILTER["perturbation"],
    "infer_threshold": {"percentage": 70},
    "policy": {"on_flag": "reform"},
}


class Reviewed:
    """A sanitise job, what was decided, and the version that came of it."""

    def __init__(self, client: WinnowClient, sets: dict[str, str]) -> None:
        job = client.submit("sanitise", dataset=sets["signs"], reference=sets["trusted"], params=PARAMS)
        self.sanitise = finished(client, job).result or {}
        self.verdicts = list(client.verdicts(job.id))
        kept, self.reformed, self.out = (self._of(name)[:6] for name in ("keep", "reform", "quarantine"))
        assert len(self.reformed) >= 2 and len(self.out) >= 3, self.sanitise["counts"]
        self.restored, self.removed = [*self.out[:2], self.reformed[0]], kept[:3]
        client.decide(job.id, "keep", self.restored, note="looked at")
        client.decide(job.id, "quarantine", self.removed)
        client.decide(job.id, "keep", {"indices": [self.out[2]]})
        client.decide(job.id, None, [self.out[2]])
        self.review = finished(client, client.review(job.id)).result or {}
        client.decide(job.id, "keep", self.out)  # too late for the version that is made
        self.job_id = job.id

    def _of(self, name: str) -> list[int]:
        return [row.index for row in self.verdicts if row.verdict == name]

    @property
    def stays(self) -> list[int]:
        kept = {row.index for row in self.verdicts if row.verdict != "quarantine"}
        return sorted((kept | set(self.restored)) - set(self.removed))


@pytest.fixture(scope="module")
def reviewed(client: WinnowClient, sets: dict[str, str]) -> Reviewed:
    return Reviewed(client, sets)


def pixels(client: WinnowClient, reference: str, folder: Path) -> NDArray[np.uint8]:
    with np.load(client.export(reference, folder / f"{reference}.npz", "npz")) as arrays:
        images: NDArray[np.uint8] = arrays["images"]
        return images


def test_a_person_has_the_last_word_and_gives_back_the_original(
    client: WinnowClient, sets: dict[str, str], reviewed: Reviewed, tmp_path: Path
) -> None:
    version = client.dataset(reviewed.review["dataset"])
    assert (version.parent, version.num_samples) == (sets["signs"], len(reviewed.stays))
    original = pixels(client, sets["signs"], tmp_path)
    sanitised = pixels(client, reviewed.sanitise["dataset"], tmp_path)
    place = {row.index: at for at, row in enumerate(kept(reviewed.verdicts))}
    expected = [original[index] if index in reviewed.restored else sanitised[place[index]] for index in reviewed.stays]
    assert np.array_equal(pixels(client, reviewed.review["dataset"], tmp_path), expected)
    back, still = reviewed.reformed[:2]
    assert not np.array_equal(sanitised[place[back]], original[back])
    assert not np.array_equal(sanitised[place[still]], original[still])


def kept(verdicts: list[Verdict]) -> list[Verdict]:
    return [row for row in verdicts if row.verdict != "quarantine"]


def test_the_result_says_what_was_changed(client: WinnowClient, sets: dict[str, str], reviewed: Reviewed) -> None:
    before, after = reviewed.sanitise["counts"], reviewed.review["counts"]
    assert after["keep"] == before["keep"] + 3 - 3 and after["reform"] == before["reform"] - 1
    assert after["quarantine"] == before["quarantine"] - 2 + 3
    told = {name: reviewed.review[name] for name in ("overridden", "restored", "removed", "decisions", "job", "parent")}
    assert told == {
        "overridden": 6,
        "restored": 2,
        "removed": 3,
        "decisions": 4,
        "job": reviewed.job_id,
        "parent": sets["signs"],
    }
    assert len(reviewed.review["overrides_digest"]) == 64


@pytest.mark.slow
def test_a_model_of_a_reviewed_version_has_the_sanitise_jobs_filter(
    client: WinnowClient, sets: dict[str, str], reviewed: Reviewed
) -> None:
    job = client.submit(
        "distill",
        dataset=reviewed.review["dataset"],
        reference=sets["trusted"],
        model="reviewed",
        params={**FAST_DISTILL, "fit": {"epochs": 1, "batch_size": 64}},
    )
    result = finished(client, job).result or {}
    lineage = client.model(result["model"]).card["lineage"]
    assert lineage["sanitised"] is True
    assert lineage["dataset"] == reviewed.review["dataset"]
    # The filter was fitted on half of the reference: only the other half may calibrate.
    assert lineage["num_held_out"] < client.dataset(sets["trusted"]).num_samples
