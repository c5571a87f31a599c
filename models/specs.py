"""Every hyperparameter, as frozen pydantic models: what a job's `params` may say, with the papers' values as presets.

Torch-free: the gateway validates a job's parameters with these models before it accepts the job.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

EpsLinf = Annotated[float, Field(gt=0, le=1, description="L∞ radius in units of the pixel range [0, 1]")]
Probability = Annotated[float, Field(gt=0, lt=1)]
Width = Annotated[int, Field(ge=4, le=256, multiple_of=4, description="channels; fast kernels want fours")]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Spec(BaseModel):
    """A frozen set of parameters; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FitSpec(Spec):
    """One run of the fit loop. Learning rates follow a one-cycle schedule that peaks at `peak_lr`."""

    epochs: Annotated[int, Field(ge=1, le=500)] = 5
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    peak_lr: Annotated[float, Field(gt=0, le=10)] = 4e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.05


class ImageSpec(Spec):
    """Working resolution of a version. None: the native size where all images agree and it is at most 64, else 64."""

    size: Annotated[int, Field(ge=8, le=256)] | None = Field(None, description="height and width in pixels")
    channels: Literal[1, 3] | None = Field(None, description="None: 1 where every image is grey, else 3")


class IngestSpec(ImageSpec):
    """Parameters of an ingest job."""

    max_rejected_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="fail the job when more than this share of the images cannot be decoded"
    )


class PerturbationSpec(Spec):
    """The perturbations the filter learns to undo: FGSM and I-FGSM, at `eps_linf` times each of the scales' range."""

    eps_linf: EpsLinf = 0.01
    step_linf: EpsLinf = 0.01
    steps: Annotated[int, Field(ge=1, le=100)] = 10
    scale_low: Annotated[float, Field(gt=0, le=10)] = 0.4
    scale_high: Annotated[float, Field(gt=0, le=10)] = 2.5
    surrogates: Annotated[int, Field(ge=1, le=4)] = Field(2, description="how many surrogate networks craft them")

    @model_validator(mode="after")
    def _scales_in_order(self) -> Self:
        if self.scale_low > self.scale_high:
            raise ValueError("scale_low must not exceed scale_high")
        return self


class ResidualSpec(Spec):
    """Residual denoiser: x̂ = x − ε·n(x), trained to predict the perturbation itself."""

    kind: Literal["residual"] = "residual"
    width: Width = 24
    depth: Annotated[int, Field(ge=2, le=20)] = 5
    max_images: Annotated[int, Field(ge=64)] = Field(8000, description="reference images drawn for training, at most")
    fit: FitSpec = FitSpec(epochs=8, batch_size=64, optimizer="adam", peak_lr=4e-3)


class BottleneckSpec(Spec):
    """Bottleneck denoising autoencoder of Badjie et al.; trained with MSE by SGD."""

    kind: Literal["bottleneck"] = "bottleneck"
    width: Width = 32
    latent: Annotated[int, Field(ge=2, le=2048)] = 128
    max_images: Annotated[int, Field(ge=64)] = 8000
    fit: FitSpec = FitSpec(epochs=20, batch_size=64, optimizer="sgd", peak_lr=0.1)


class InferThreshold(Spec):
    """Threshold such that `percentage` % of the calibration images pass as clean (Badjie's `infer_threshold`)."""

    percentage: Annotated[float, Field(gt=0, lt=100)] = 95.0


class CalibrationSpec(Spec):
    """How a score becomes a verdict: exactly one of the three rules."""

    false_quarantine_rate: Probability | None = Field(None, description="α: share of clean images that may be flagged")
    threshold: Annotated[float, Field(gt=0)] | None = Field(None, description="flag where the score exceeds it")
    infer_threshold: InferThreshold | None = None
    calibration_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="share of the reference that is held out of every fit and calibrates"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        rules = [self.false_quarantine_rate, self.threshold, self.infer_threshold]
        if sum(rule is not None for rule in rules) != 1:
            raise ValueError("give exactly one of false_quarantine_rate, threshold, infer_threshold")
        return self


class PolicySpec(Spec):
    """What becomes of the images once they are judged."""

    on_flag: Literal["quarantine", "reform"] = "quarantine"
    pass_through: Literal["original", "reconstructed"] = "original"


FilterSpec = Annotated[ResidualSpec | BottleneckSpec, Field(discriminator="kind")]

PRESETS: dict[str, dict[str, Any]] = {
    "residual": {"filter": {"kind": "residual"}, "calibration": {"false_quarantine_rate": 0.01}},
    "badjie": {
        "filter": {"kind": "bottleneck"},
        "calibration": {"threshold": 0.003},
        "policy": {"pass_through": "reconstructed"},
    },
}
"""Badjie et al. start at threshold 0.015 and end at 0.003; images under it reach the teacher as reconstructions."""

CALIBRATION_RULES = ("false_quarantine_rate", "threshold", "infer_threshold")


class SanitiseSpec(Spec):
    """Parameters of a sanitise job. `preset` fills what is not given; a rule given replaces the preset's."""

    preset: Literal["residual", "badjie"] = "residual"
    filter: FilterSpec = ResidualSpec()
    perturbation: PerturbationSpec = PerturbationSpec()
    calibration: CalibrationSpec = CalibrationSpec(false_quarantine_rate=0.01)
    policy: PolicySpec = PolicySpec()
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        """Lay `given` over the preset, and lift calibration rules given at the top level into `calibration`."""
        if not isinstance(given, dict):
            return given
        preset = PRESETS.get(given.get("preset", "residual"), {})
        merged = {**preset, **{k: v for k, v in given.items() if k not in CALIBRATION_RULES}}
        for section in ("filter", "policy"):
            asked = given.get(section)
            if isinstance(asked, dict):
                merged[section] = {**preset.get(section, {}), **asked}
        merged["calibration"] = _calibration(preset.get("calibration", {}), given)
        return merged


def _calibration(preset: dict[str, Any], given: dict[str, Any]) -> Any:
    asked = given.get("calibration", {})
    if not isinstance(asked, dict):
        return asked
    asked = {**asked, **{rule: given[rule] for rule in CALIBRATION_RULES if rule in given}}
    if any(asked.get(rule) is not None for rule in CALIBRATION_RULES):
        preset = {k: v for k, v in preset.items() if k not in CALIBRATION_RULES}
    return {**preset, **asked}


class ClassifierSpec(Spec):
    """Residual convolutional trunk, then a fully connected head with explicit dropout masks."""

    width: Width = 16
    hidden: Annotated[int, Field(ge=8, le=4096)] = 256
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.5
    augment: bool = Field(
        True, description="small rotations, shifts, scalings and light changes while training; no flips"
    )


class AbstentionSpec(Spec):
    """How the served model decides to answer null."""

    alpha: Probability = Field(
        0.01, description="share of clean inputs that may be refused, unless the request says otherwise"
    )
    mc_passes: Annotated[int, Field(ge=2, le=256)] = 32
    holdout_share: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.1, description="share of the set held out to calibrate, where no reference is given"
    )


class DistillSpec(Spec):
    """Parameters of a distill job: teacher and student at temperature T, T = 1 when served."""

    temperature: Annotated[float, Field(ge=1, le=1000)] = 5.0
    teacher: ClassifierSpec = ClassifierSpec()
    student: ClassifierSpec = ClassifierSpec()
    fit: FitSpec = FitSpec(
        epochs=8, batch_size=128, optimizer="adamw", peak_lr=4e-3, weight_decay=0.02, validation_share=0.0
    )
    abstention: AbstentionSpec = AbstentionSpec()
    max_accuracy_loss: Annotated[float, Field(ge=0, le=1)] = Field(
        0.03, description="refuse to register a student this much less accurate than its teacher on the held-out images"
    )
    seed: Seed = 0


class EvaluateSpec(Spec):
    """Parameters of an evaluate job: FGSM and I-FGSM with Badjie's settings, and PGD with the margin loss."""

    eps_linf: EpsLinf = 0.01
    step_linf: EpsLinf = 0.01
    steps: Annotated[int, Field(ge=1, le=500)] = 10
    pgd_steps: Annotated[int, Field(ge=1, le=500)] = 40
    pgd_restarts: Annotated[int, Field(ge=1, le=20)] = 2
    max_images: Annotated[int, Field(ge=1)] = 1000
    alpha: Probability | None = Field(None, description="None: the model's own")
    seed: Seed = 0


class HardenSpec(Spec):
    """Parameters of a harden job: those of the three jobs it runs in a row."""

    sanitise: SanitiseSpec = SanitiseSpec()
    distill: DistillSpec = DistillSpec()
    evaluate: EvaluateSpec = EvaluateSpec()


PARAMS_OF_JOB: dict[str, type[Spec]] = {
    "ingest": IngestSpec,
    "sanitise": SanitiseSpec,
    "distill": DistillSpec,
    "evaluate": EvaluateSpec,
    "harden": HardenSpec,
}
