"""Every hyperparameter, as frozen pydantic models: what a job's `params` may say, with the papers' values as presets.

Torch-free: the gateway validates a job's parameters with these models before it accepts the job.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from models.combination import Combine
from models.distill_specs import AbstentionSpec as AbstentionSpec
from models.distill_specs import ClassifierSpec as ClassifierSpec
from models.distill_specs import DistillSpec as DistillSpec
from models.distill_specs import ExportSpec as ExportSpec
from models.distill_specs import ExtendedSpec as ExtendedSpec
from models.distill_specs import Method as Method
from models.distill_specs import RobustSpec as RobustSpec
from models.evaluate_specs import EvaluateSpec as EvaluateSpec
from models.filter_specs import PRESETS as PRESETS
from models.filter_specs import BottleneckSpec as BottleneckSpec
from models.filter_specs import ConvolutionalSpec as ConvolutionalSpec
from models.filter_specs import FilterSpec as FilterSpec
from models.filter_specs import PerturbationSpec as PerturbationSpec
from models.filter_specs import PresetName as PresetName
from models.filter_specs import ResidualSpec as ResidualSpec
from models.filter_specs import SearchSpec as SearchSpec
from models.panel_specs import DetectorName as DetectorName
from models.panel_specs import PanelSpec as PanelSpec
from models.spec_fields import CountBy, overlaid
from models.spec_fields import EpsLinf as EpsLinf
from models.spec_fields import FitSpec as FitSpec
from models.spec_fields import Probability as Probability
from models.spec_fields import Seed as Seed
from models.spec_fields import Spec as Spec
from models.spec_fields import Width as Width


class ImageSpec(Spec):
    """Working resolution of a version. None: the native size where all images agree and it is at most 64, else 64."""

    size: Annotated[int, Field(ge=8, le=256)] | None = Field(None, description="height and width in pixels")
    channels: Literal[1, 3] | None = Field(None, description="None: 1 where every image is grey, else 3")


class IngestSpec(ImageSpec):
    """Parameters of an ingest job."""

    max_rejected_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="fail the job when more than this share of the images cannot be decoded"
    )
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = Field(
        "all", description="train, test or validation: only that part of an upload that has such parts"
    )


class InferThreshold(Spec):
    """Threshold such that `percentage` % of the calibration images pass as clean (Badjie's `infer_threshold`)."""

    percentage: Annotated[float, Field(gt=0, lt=100)] = 95.0


class CalibrationSpec(Spec):
    """How scores become a verdict: exactly one of the four rules. Rates judge the panel, a threshold one score."""

    false_quarantine_rate: Probability | None = Field(None, description="α: share of clean images that may be flagged")
    false_discovery_rate: Probability | None = Field(
        None, description="share of the flagged images that may be clean (Benjamini–Hochberg)"
    )
    threshold: Annotated[float, Field(gt=0)] | None = Field(None, description="flag where the score exceeds it")
    infer_threshold: InferThreshold | None = None
    per_class: bool = Field(False, description="calibrate each class by its own images, so that each keeps the rate")
    calibrate_on: Literal["reference", "candidates"] = Field(
        "reference",
        description="candidates: on the bulk of the candidates, most of which must be clean; rates are then estimates",
    )
    count_by: CountBy = Field(
        "groups",
        description="groups: reference images of one group count as one; images: each for itself, which keeps a rate "
        "only where images of a group are as different as any",
    )
    combine: Combine = Field(
        "auto",
        description="how several detectors' p-values become one; auto: power_mean, but joint where images of a "
        "reference count one by one and α leaves less than two of them for each detector. Of groups and on the "
        "candidates joint is the least p-value, ranked again",
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if sum(getattr(self, rule) is not None for rule in CALIBRATION_RULES) != 1:
            raise ValueError(f"give exactly one of {', '.join(CALIBRATION_RULES)}")
        if self.per_class and self.rate is None:
            raise ValueError("per_class needs false_quarantine_rate or false_discovery_rate: a threshold has none")
        return self

    @property
    def rate(self) -> float | None:
        """The rate asked for, of whichever kind; None under a threshold."""
        return self.false_quarantine_rate if self.false_quarantine_rate is not None else self.false_discovery_rate


class PolicySpec(Spec):
    """What becomes of the images once they are judged."""

    on_flag: Literal["quarantine", "reform"] = "quarantine"
    pass_through: Literal["original", "reconstructed"] = "original"


CALIBRATION_RULES = ("false_quarantine_rate", "false_discovery_rate", "threshold", "infer_threshold")
CALIBRATION_CHOICES = (*CALIBRATION_RULES, "per_class", "calibrate_on", "count_by", "combine")
"""What may be said at the top level of a sanitise job's parameters for short."""


class SanitiseSpec(Spec):
    """Parameters of a sanitise job. `preset` fills what is not given; a rule given replaces the preset's."""

    preset: PresetName = "residual"
    filter: FilterSpec = ResidualSpec()
    perturbation: PerturbationSpec = PerturbationSpec()
    calibration: CalibrationSpec = CalibrationSpec(false_quarantine_rate=0.01)
    policy: PolicySpec = PolicySpec()
    panel: PanelSpec = PanelSpec()
    search: SearchSpec | None = Field(None, description="look for better hyperparameters of the filter first")
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        """Lay `given` over the preset, and lift calibration choices given at the top level into `calibration`."""
        if not isinstance(given, dict):
            return given
        preset = PRESETS.get(given.get("preset", "residual"), {})
        merged = overlaid(preset, {k: v for k, v in given.items() if k not in CALIBRATION_CHOICES})
        merged["calibration"] = _calibration(preset.get("calibration", {}), given)
        return merged


def _calibration(preset: dict[str, Any], given: dict[str, Any]) -> Any:
    asked = given.get("calibration", {})
    if not isinstance(asked, dict):
        return asked
    asked = {**asked, **{choice: given[choice] for choice in CALIBRATION_CHOICES if choice in given}}
    if any(asked.get(rule) is not None for rule in CALIBRATION_RULES):
        preset = {k: v for k, v in preset.items() if k not in CALIBRATION_RULES}
    return {**dict.fromkeys(CALIBRATION_RULES), **preset, **asked}


class HardenSpec(Spec):
    """Parameters of a harden job: those of the three jobs it runs in a row."""

    sanitise: SanitiseSpec = SanitiseSpec()
    distill: DistillSpec = DistillSpec()
    evaluate: EvaluateSpec = EvaluateSpec()


class ReviewSpec(Spec):
    """A review job has no parameters: what people decided is all that it goes by."""


PARAMS_OF_JOB: dict[str, type[Spec]] = {
    "ingest": IngestSpec,
    "sanitise": SanitiseSpec,
    "distill": DistillSpec,
    "evaluate": EvaluateSpec,
    "harden": HardenSpec,
    "review": ReviewSpec,
}
