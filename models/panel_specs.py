"""What a job may say about the panel of detectors that look at labels and at the set as a whole. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from models.spec_fields import Spec, Width

DetectorName = Literal[
    "label_loss",
    "unchecked_loss",
    "poison_gain",
    "label_agreement",
    "spectral_signature",
    "activation_clustering",
    "recurring_patch",
    "recurring_pattern",
    "duplicates",
    "reconstruction_divergence",
    "encoder_loss",
]

ENCODER_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
EncoderName = Annotated[str, Field(pattern=ENCODER_NAME)]

CHOOSES_REFERENCE: frozenset[DetectorName] = frozenset(
    {
        "label_loss",
        "unchecked_loss",
        "poison_gain",
        "label_agreement",
        "spectral_signature",
        "activation_clustering",
        "encoder_loss",
    }
)
"""Through these, or others like them, a reference is sifted out of the candidates: it lacks their larger scores."""


class PanelSpec(Spec):
    """The detectors beside the filter's own score, and the budget of the classifiers that they look through.

    The budget is counted in steps and images, not in seconds, so that verdicts do not depend on the machine's speed.
    """

    detectors: tuple[DetectorName, ...] = Field(
        ("label_loss", "unchecked_loss", "spectral_signature", "recurring_patch", "recurring_pattern"),
        description="each more costs the others a part of the error rate they share",
    )
    encoder: EncoderName | None = Field(
        None, description="a pretrained network of the deployment's; naming one adds the detector encoder_loss"
    )
    max_images: Annotated[int, Field(ge=500)] = Field(
        20_000,
        description="candidates that the panel is fitted on, at most; trusted ones come on top, the filter's a fold",
    )
    rounds: Annotated[int, Field(ge=1, le=10)] = Field(3, description="of taking in what the round before confirmed")
    steps: Annotated[int, Field(ge=10, le=100_000)] = Field(
        250, description="of 128 images, for each classifier of a round before the last"
    )
    final_steps: Annotated[int, Field(ge=10, le=100_000)] = Field(
        1000, description="for each classifier of the last round, whose accuracy decides what is found"
    )
    width: Width = 16

    @field_validator("detectors")
    @classmethod
    def _once_each(cls, value: tuple[DetectorName, ...]) -> tuple[DetectorName, ...]:
        if len(set(value)) != len(value):
            raise ValueError("name each detector once")
        return value

    @model_validator(mode="before")
    @classmethod
    def _an_encoder_is_named_to_be_asked(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("encoder") is None:
            return given
        asked = given.get("detectors", cls.model_fields["detectors"].default)
        if not isinstance(asked, list | tuple) or "encoder_loss" in asked:
            return given
        return {**given, "detectors": [*asked, "encoder_loss"]}

    @model_validator(mode="after")
    def _encoder_loss_needs_an_encoder(self) -> Self:
        if "encoder_loss" in self.detectors and self.encoder is None:
            raise ValueError("encoder_loss needs an encoder: name one, or leave the detector out")
        return self
