"""What a job may ask for, and the refusals that say what would work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from service.datasets import repository as datasets
from service.db import Database
from service.errors import WinnowError
from service.jobs import submit
from service.jobs.harden import steps_of
from service.settings import Settings
from tests.service.conftest import MakeDataset

TWO = {"a": 100, "b": 100}
SETTINGS = Settings(encoders=Path("nowhere"))


def ask(
    database: Database, kind: str, params: dict[str, Any] | None = None, key: str | None = None, **inputs: str
) -> str:
    with database.transaction() as session:
        return submit.submit(session, submit.Request(kind, inputs, params or {}, key), SETTINGS).id


def refusal(database: Database, kind: str, params: dict[str, Any] | None = None, **inputs: str) -> WinnowError:
    with pytest.raises(WinnowError) as caught:
        ask(database, kind, params, **inputs)
    return caught.value


@pytest.fixture
def sets(make_dataset: MakeDataset) -> dict[str, str]:
    return {"dataset": make_dataset("signs", TWO), "reference": make_dataset("trusted", {"a": 120, "b": 120})}


def test_harden_is_queued_with_its_first_step(database: Database, sets: dict[str, str]) -> None:
    job_id = ask(
        database,
        "harden",
        {"sanitise": {"false_quarantine_rate": 0.05}, "distill": {"abstention": {"alpha": 0.05}}},
        model="m",
        **sets,
    )
    with database.session() as session:
        (step,) = steps_of(session, job_id)
        assert step.type == "sanitise"
        assert step.params["calibration"]["false_quarantine_rate"] == 0.05
        assert step.params["filter"]["kind"] == "residual"


def test_a_reference_too_small_for_alpha_names_the_smallest_it_can_promise(
    database: Database, sets: dict[str, str]
) -> None:
    error = refusal(database, "sanitise", {"false_quarantine_rate": 0.003}, **sets)
    assert error.code == "alpha_too_small"
    assert error.details["smallest"] == pytest.approx(1 / 241)
    assert "at least 333 images" in error.message
    assert ask(database, "sanitise", {"false_quarantine_rate": 0.005}, **sets)


@pytest.mark.parametrize("kind", ["sanitise", "harden"])
def test_an_encoder_that_the_operator_did_not_give_is_refused_with_what_there_is(
    database: Database, sets: dict[str, str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = {"panel": {"encoder": "photos"}}
    harden = {"sanitise": panel, "distill": {"abstention": {"alpha": 0.05}}}
    asked = {"params": panel, **sets} if kind == "sanitise" else {"params": harden, "model": "m", **sets}
    assert "WINNOW_ENCODERS" in refusal(database, kind, **asked).message
    monkeypatch.setattr(sys.modules[__name__], "SETTINGS", Settings(encoders=tmp_path))
    (tmp_path / "signs.onnx").touch()
    error = refusal(database, kind, **asked)
    assert (error.code, error.details["encoders"]) == ("encoder_not_found", ["signs"])
    (tmp_path / "photos.onnx").touch()
    assert ask(database, kind, **asked)


@pytest.mark.parametrize("name", ["../photos", "photos.onnx", "", "a/b", "-"])
def test_an_encoders_name_is_no_path(database: Database, sets: dict[str, str], name: str) -> None:
    assert refusal(database, "sanitise", {"panel": {"encoder": name}}, **sets).code == "invalid_params"


def test_where_groups_count_a_rate_that_so_few_cannot_promise_is_refused_with_the_way_out(
    database: Database, sets: dict[str, str], make_dataset: MakeDataset
) -> None:
    """240 images of 48 objects: half of these are held out for a student, and of those three quarters calibrate."""
    grouped = {**sets, "reference": make_dataset("grouped", {"a": 120, "b": 120}, group=5)}
    error = refusal(database, "sanitise", {"false_quarantine_rate": 0.02}, **grouped)
    assert (error.code, error.details["smallest"]) == ("alpha_too_small", pytest.approx(1 / 49))
    assert "48 groups" in error.message and "at least 49 groups" in error.message
    assert 'calibration.count_by "images"' in error.message
    assert ask(database, "sanitise", {"false_quarantine_rate": 0.02, "count_by": "images"}, **grouped)
    assert ask(database, "sanitise", {"false_quarantine_rate": 0.03}, **grouped)

    error = refusal(database, "distill", {"abstention": {"alpha": 0.02}}, model="m", **grouped)
    assert (error.code, error.details["smallest"]) == ("alpha_too_small", pytest.approx(1 / 37))
    assert "Of at most 48 held-out groups 36 calibrate" in error.message
    assert 'abstention.count_by "images"' in error.message
    images = {"abstention": {"alpha": 0.02, "count_by": "images"}}
    assert ask(database, "distill", images, model="m", **grouped)


def test_what_is_held_out_of_groups_is_not_guessed(database: Database, make_dataset: MakeDataset) -> None:
    """A hundredth of the images of each of a few writers may be an image of each: only the worker sees."""
    writers = make_dataset("writers", {"a": 400, "b": 400}, group=8)
    assert ask(database, "distill", {"abstention": {"alpha": 0.02}}, dataset=writers, model="m")
    error = refusal(database, "distill", {"abstention": {"alpha": 0.01}}, dataset=writers, model="m")
    assert "Of at most 80 held-out groups 60 calibrate" in error.message
    assert "holdout_share" in error.message


def test_a_reference_that_also_calibrates_has_half_of_it_left(database: Database, sets: dict[str, str]) -> None:
    """Whether it is named once or twice."""
    params = {"sanitise": {"false_quarantine_rate": 0.05}, "distill": {"abstention": {"alpha": 0.006}}}
    assert "Of at most 120" in refusal(database, "harden", params, model="m", **sets).message
    twice = {**sets, "calibrate_on": sets["reference"]}
    assert "Of at most 120" in refusal(database, "harden", params, model="m", **twice).message


def test_a_version_whose_groups_nobody_counted_is_not_refused_for_them(
    database: Database, sets: dict[str, str], make_dataset: MakeDataset
) -> None:
    grouped = {**sets, "reference": make_dataset("grouped", {"a": 120, "b": 120}, group=5)}
    with database.transaction() as session:
        datasets.find(session, grouped["reference"]).num_groups = None
    assert ask(database, "sanitise", {"false_quarantine_rate": 0.02}, **grouped)


def test_a_reference_of_another_shape_says_how_to_upload_it(
    database: Database, sets: dict[str, str], make_dataset: MakeDataset
) -> None:
    other = make_dataset("other", TWO, (16, 16, 3))
    error = refusal(database, "sanitise", dataset=sets["dataset"], reference=other)
    assert error.code == "shape_mismatch"
    assert "size=8" in error.message
    assert "channels=1" in error.message


def test_a_reference_with_other_classes_names_them(
    database: Database, sets: dict[str, str], make_dataset: MakeDataset
) -> None:
    error = refusal(
        database, "sanitise", dataset=sets["dataset"], reference=make_dataset("other", {"a": 100, "z": 100})
    )
    assert error.code == "class_mismatch"
    assert "z" in error.message


def test_a_reference_may_lack_a_class(database: Database, make_dataset: MakeDataset) -> None:
    many = make_dataset("many", {"a": 100, "b": 100, "c": 100})
    assert ask(database, "sanitise", dataset=many, reference=make_dataset("few", {"a": 150, "c": 150}))


def test_a_class_with_one_image_is_refused_by_name(
    database: Database, sets: dict[str, str], make_dataset: MakeDataset
) -> None:
    lonely = make_dataset("lonely", {"a": 200, "b": 1})
    assert refusal(database, "sanitise", dataset=sets["dataset"], reference=lonely).code == "class_too_small"
    error = refusal(database, "distill", dataset=lonely, model="m")
    assert error.code == "class_too_small"
    assert "b" in error.message


def test_a_tiny_reference_is_refused(database: Database, sets: dict[str, str], make_dataset: MakeDataset) -> None:
    tiny = make_dataset("tiny", {"a": 10, "b": 10})
    error = refusal(database, "sanitise", {"false_quarantine_rate": 0.2}, dataset=sets["dataset"], reference=tiny)
    assert error.code == "reference_too_small"


def test_one_class_only_is_refused(database: Database, make_dataset: MakeDataset) -> None:
    assert refusal(database, "distill", dataset=make_dataset("single", {"a": 300}), model="m").code == "one_class"


def test_abstention_that_cannot_be_promised_is_refused(database: Database, sets: dict[str, str]) -> None:
    error = refusal(database, "distill", {"abstention": {"alpha": 0.001}}, model="m", **sets)
    assert error.code == "alpha_too_small"


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"sed": 1}, "params.sed"),
        ({"filter": {"kind": "residual", "fit": {"epochs": 0}}}, "params.filter.residual.fit.epochs"),
        ({"false_quarantine_rate": 0.01, "threshold": 0.003}, "params.calibration"),
        ({"preset": "nonesuch"}, "params.preset"),
    ],
)
def test_wrong_parameters_are_named(
    database: Database, sets: dict[str, str], params: dict[str, Any], field: str
) -> None:
    error = refusal(database, "sanitise", params, **sets)
    assert error.code == "invalid_params"
    assert isinstance(error.details["errors"], list)
    assert field in [item["field"] for item in error.details["errors"]]


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"reference": "trusted@1"}, "missing_input"),
        ({"dataset": "signs@1", "reference": "trusted@1", "model": "m"}, "unknown_input"),
        ({"dataset": "signs@9", "reference": "trusted@1"}, "dataset_not_found"),
        ({"dataset": "signs", "reference": "trusted@1"}, "invalid_reference"),
    ],
)
def test_wrong_inputs_are_refused(database: Database, sets: dict[str, str], inputs: dict[str, str], code: str) -> None:
    assert refusal(database, "sanitise", **inputs).code == code


def test_an_idempotency_key_gives_the_same_job_for_the_same_payload(database: Database, sets: dict[str, str]) -> None:
    first = ask(database, "sanitise", {"seed": 1}, "key", **sets)
    assert ask(database, "sanitise", {"seed": 1}, "key", **sets) == first
    with pytest.raises(WinnowError) as caught:
        ask(database, "sanitise", {"seed": 2}, "key", **sets)
    assert caught.value.code == "idempotency_key_reused"
