"""What the specs are made of: their base, the fields that several share, and the one fit loop's parameters.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

EpsLinf = Annotated[float, Field(gt=0, le=1, description="L∞ radius in units of the pixel range [0, 1]")]
Probability = Annotated[float, Field(gt=0, lt=1)]
Width = Annotated[int, Field(ge=4, le=256, multiple_of=4, description="channels; fast kernels want fours")]
CountBy = Literal["groups", "images"]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


def overlaid(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what is given in its place, at every depth; a section of another `kind` is taken as it is given."""
    merged = {**base, **given}
    for name, value in given.items():
        below = base.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            same = value.get("kind", below.get("kind")) == below.get("kind")
            merged[name] = overlaid(below, value) if same else value
    return merged


def _takes(field: FieldInfo, kind: type) -> bool:
    return field.annotation is kind or kind in get_args(field.annotation)


class Spec(BaseModel):
    """A frozen set of parameters; an unknown name is an error.

    A section given in part keeps the rest of its default; one that has presets fills itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, given: Any) -> Any:
        """JSON tells true from 1, and so do we."""
        for name, value in given.items() if isinstance(given, dict) else ():
            if isinstance(value, bool) and name in cls.model_fields and not _takes(cls.model_fields[name], bool):
                raise ValueError(f"{name} is not a question of true or false")
        return given

    @model_validator(mode="before")
    @classmethod
    def _keep_the_rest_of_sections(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        fields = {name: cls.model_fields[name].default for name in given if name in cls.model_fields}
        sections = {name: default for name, default in fields.items() if isinstance(default, Spec)}
        plain = {name: own for name, own in sections.items() if "preset" not in type(own).model_fields}
        return overlaid({name: own.model_dump(exclude_unset=True) for name, own in plain.items()}, given)


class FitSpec(Spec):
    """One run of the fit loop."""

    epochs: Annotated[int, Field(ge=1, le=500)] = 5
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    peak_lr: Annotated[float, Field(gt=0, le=10)] = 4e-3
    schedule: Literal["one_cycle", "cosine", "decay", "constant"] = Field(
        "one_cycle",
        description="one_cycle: up to peak_lr and down; cosine: down from it; decay: × 0.95 (momentum × 0.5) every ten "
        "epochs, as Papernot has it; constant: peak_lr throughout",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="of sgd, and Adam's first decay; one_cycle has its own, from 0.95 to 0.85 and back"
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="a batch's gradient longer than this, in the Euclidean norm, is shortened to it; None: never"
    )
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    patience: Annotated[int, Field(ge=1, le=500)] | None = Field(
        None,
        description="stop after so many epochs without a smaller validation loss, and go back to the best; None: never",
    )
    mixed_precision: bool = Field(
        True, description="train in bfloat16 where the device computes in it: CUDA, and CPUs with units for it"
    )

    @model_validator(mode="after")
    def _patience_needs_validation(self) -> Self:
        if self.patience is not None and self.validation_share == 0:
            raise ValueError("patience needs a validation_share above 0: there is no validation loss to watch")
        return self
