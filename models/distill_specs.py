"""What a distill job's `params` may say: method, networks, temperature, fit, abstention; the papers' as presets.

Torch-free.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from models.spec_fields import CountBy, EpsLinf, FitSpec, Probability, Seed, Spec, Width, overlaid

Method = Literal["defensive", "extended", "robust"]
DistillPreset = Literal["default", "badjie", "papernot-mnist", "papernot-cifar10"]


class ClassifierSpec(Spec):
    """A convolutional trunk, then fully connected layers with explicit dropout masks on the last."""

    kind: Literal["residual", "plain"] = Field(
        "residual", description="residual: blocks with batch norm; plain: Papernot's, for images of 16 to 64 pixels"
    )
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
    per_class: bool = Field(
        False,
        description="judge an image by the calibration images of the same answer, where they are enough to promise α",
    )
    count_by: CountBy = Field(
        "groups",
        description="groups: of the held-out images of one group one calibrates, for they are no independent draws; "
        "images: all do, which keeps α only where images of a group are as different as any",
    )
    holdout_share: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.1, description="share of the set held out to calibrate, where no reference is given"
    )


class ExtendedSpec(Spec):
    """The outlier class of the method `extended`: a teacher's uncertain images teach it (Papernot & McDaniel 2017)."""

    mc_passes: Annotated[int, Field(ge=2, le=256)] = Field(32, description="dropout passes of the teacher")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="how much of its mass the most uncertain image gives to the outlier class; the others in part"
    )


class RobustSpec(Spec):
    """The adversary of the method `robust` (Goldblum et al. 2020)."""

    eps_linf: EpsLinf = 0.01
    attack: Literal["fast", "pgd"] = Field(
        "fast",
        description="fast: one step of 1.25 eps from a random start (Wong et al. 2020); pgd: `steps` of 2.5 eps/steps",
    )
    steps: Annotated[int, Field(ge=1, le=100)] = Field(7, description="of pgd, also where fast has overfitted")
    from_teacher: bool = Field(
        True, description="start from the teacher's weights where the networks are alike: half the epochs then suffice"
    )
    clean_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        0.25, description="share of the clean cross-entropy in the loss; the rest is T²·KL on perturbed images"
    )


class ExportSpec(Spec):
    """In which precision the student is served. Calibration, accuracy and the bound are of the student as served."""

    precision: Literal["float32", "float16", "int8"] = Field(
        "float32",
        description="of the student's trunk; int8 is quicker on CPUs with VNNI, float16 on GPUs. The filter stays in "
        "float32: what it looks for is one level of 256",
    )
    max_accuracy_loss: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="refuse a precision that costs more accuracy on the held-out images than this"
    )
    sample_images: Annotated[int, Field(ge=16, le=4096)] = Field(
        512, description="of training, whose activations set the scales of int8"
    )


class DistillSpec(Spec):
    """Parameters of a distill job: teacher and student at temperature T, T = 1 when served. `preset` fills the rest."""

    preset: DistillPreset = "default"
    method: Method = Field(
        "defensive",
        description="defensive: soft labels; extended: and an outlier class; robust: on perturbed images",
    )
    temperature: Annotated[float, Field(ge=1, le=1000)] = 5.0
    teacher: ClassifierSpec = ClassifierSpec()
    student: ClassifierSpec = ClassifierSpec()
    fit: FitSpec = FitSpec(
        epochs=8, batch_size=128, optimizer="adamw", peak_lr=4e-3, weight_decay=0.02, validation_share=0.0
    )
    student_fit: FitSpec | None = Field(None, description="None: as the teacher's, `fit`")
    extended: ExtendedSpec = ExtendedSpec()
    robust: RobustSpec = RobustSpec()
    abstention: AbstentionSpec = AbstentionSpec()
    export: ExportSpec = ExportSpec()
    max_accuracy_loss: Annotated[float, Field(ge=0, le=1)] = Field(
        0.03, description="refuse to register a student this much less accurate than its teacher on the held-out images"
    )
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        """Lay `given` over the preset, section by section."""
        if not isinstance(given, dict):
            return given
        preset = DISTILL_PRESETS.get(str(given.get("preset", "default")), {})
        merged = overlaid(preset, given)
        if isinstance(merged.get("student_fit"), dict):
            teachers = overlaid({"fit": cls.model_fields["fit"].default.model_dump()}, merged)["fit"]
            merged["student_fit"] = overlaid(teachers, merged["student_fit"])
        return merged


_MNIST = {"kind": "plain", "width": 32, "hidden": 200, "dropout": 0.5, "augment": False}
_CIFAR10 = {"kind": "plain", "width": 64, "hidden": 256, "dropout": 0.5, "augment": False}
_PAPERNOT_FIT = {
    "epochs": 50,
    "batch_size": 128,
    "optimizer": "sgd",
    "schedule": "decay",
    "momentum": 0.9,
    "weight_decay": 0.0,
    "validation_share": 0.0,
}

DISTILL_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "badjie": {"method": "defensive", "temperature": 5.0},
    "papernot-mnist": {
        "temperature": 20.0,
        "teacher": _MNIST,
        "student": _MNIST,
        "fit": {**_PAPERNOT_FIT, "peak_lr": 0.1},
    },
    "papernot-cifar10": {
        "temperature": 20.0,
        "teacher": _CIFAR10,
        "student": _CIFAR10,
        "fit": {**_PAPERNOT_FIT, "peak_lr": 0.01},
    },
}
"""Papernot et al. 2016, tables I and II: networks, batches, rates and epochs. Badjie et al.: T = 5."""
