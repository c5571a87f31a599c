"""What the specs are made of: their base, the fields that several share, and the one fit loop's parameters.

Torch-free.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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
