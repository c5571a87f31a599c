"""What the specs are made of: their base, the fields that several share, and the one fit loop's parameters.

Torch-free.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

EpsLinf = Annotated[float, Field(gt=0, le=1, description="L∞ radius in units of the pixel range [0, 1]")]
Probability = Annotated[float, Field(gt=0, lt=1)]
Width = Annotated[int, Field(ge=4, le=256, multiple_of=4, description="channels; fast kernels want fours")]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Spec(BaseModel):
    """A frozen set of parameters; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    patience: Annotated[int, Field(ge=1, le=500)] | None = Field(
        None,
        description="stop after so many epochs without a smaller validation loss, and go back to the best; None: never",
    )
    mixed_precision: bool = Field(
        True, description="compute losses in bfloat16 where the device is CUDA; a CPU always has float32"
    )

    @model_validator(mode="after")
    def _patience_needs_validation(self) -> Self:
        if self.patience is not None and self.validation_share == 0:
            raise ValueError("patience needs a validation_share above 0: there is no validation loss to watch")
        return self
