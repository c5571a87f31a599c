"""Presets and what overrides them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.distill_specs import DistillSpec
from models.specs import PARAMS_OF_JOB, HardenSpec, SanitiseSpec


def test_the_papers_values_are_the_preset() -> None:
    spec = SanitiseSpec.model_validate({"preset": "badjie"})
    assert (spec.filter.kind, spec.filter.fit.optimizer) == ("bottleneck", "sgd")
    assert spec.calibration.threshold == 0.003
    assert spec.calibration.false_quarantine_rate is None
    assert spec.policy.pass_through == "reconstructed"
    assert (spec.perturbation.eps_linf, spec.perturbation.step_linf, spec.perturbation.steps) == (0.01, 0.01, 10)


@pytest.mark.parametrize(
    ("given", "rule", "value"),
    [
        ({"threshold": 0.015}, "threshold", 0.015),
        ({"calibration": {"threshold": 0.015}}, "threshold", 0.015),
        ({"false_quarantine_rate": 0.02}, "false_quarantine_rate", 0.02),
    ],
)
def test_a_rule_given_replaces_the_presets(given: dict[str, Any], rule: str, value: float) -> None:
    calibration = SanitiseSpec.model_validate({"preset": "badjie", **given}).calibration
    assert getattr(calibration, rule) == value
    set_rules = [
        name for name in ("false_quarantine_rate", "threshold", "infer_threshold") if getattr(calibration, name)
    ]
    assert set_rules == [rule]


def test_part_of_a_filter_given_keeps_the_presets_rest() -> None:
    spec = SanitiseSpec.model_validate({"preset": "badjie", "filter": {"latent": 64}})
    assert (spec.filter.kind, spec.filter.model_dump()["latent"]) == ("bottleneck", 64)


@pytest.mark.parametrize("kind", sorted(PARAMS_OF_JOB))
def test_a_stored_spec_reads_back_as_itself(kind: str) -> None:
    spec = PARAMS_OF_JOB[kind].model_validate({})
    assert PARAMS_OF_JOB[kind].model_validate(spec.model_dump(mode="json")) == spec


def test_a_stored_badjie_spec_reads_back_as_itself() -> None:
    spec = HardenSpec.model_validate({"sanitise": {"preset": "badjie", "infer_threshold": {"percentage": 99}}})
    assert HardenSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize("kind", sorted(PARAMS_OF_JOB))
def test_an_unknown_name_is_an_error(kind: str) -> None:
    with pytest.raises(ValidationError, match="nonesuch"):
        PARAMS_OF_JOB[kind].model_validate({"nonesuch": 1})


def test_part_of_a_fit_given_keeps_the_rest_of_that_fit() -> None:
    usual = DistillSpec().fit
    assert DistillSpec.model_validate({"fit": {"epochs": 3}}).fit == usual.model_copy(update={"epochs": 3})
    preset = DistillSpec.model_validate({"preset": "papernot-mnist"}).fit
    shorter = DistillSpec.model_validate({"preset": "papernot-mnist", "fit": {"epochs": 3}}).fit
    assert shorter == preset.model_copy(update={"epochs": 3})
    filtered = SanitiseSpec.model_validate({"preset": "badjie", "filter": {"fit": {"epochs": 3}}}).filter
    assert filtered == SanitiseSpec(preset="badjie").filter.model_copy(update={"fit": filtered.fit})
    assert filtered.fit == SanitiseSpec(preset="badjie").filter.fit.model_copy(update={"epochs": 3})


def test_part_of_a_students_fit_given_keeps_the_rest_of_the_teachers() -> None:
    spec = DistillSpec.model_validate({"fit": {"batch_size": 32}, "student_fit": {"epochs": 3}})
    assert spec.student_fit == spec.fit.model_copy(update={"epochs": 3})


@pytest.mark.parametrize("given", [{"seed": True}, {"filter": {"width": False}}, {"false_quarantine_rate": True}])
def test_a_truth_is_no_number(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="not a question of true or false"):
        SanitiseSpec.model_validate(given)
    assert (
        SanitiseSpec.model_validate({"filter": {"fit": {"mixed_precision": False}}}).filter.fit.mixed_precision is False
    )
