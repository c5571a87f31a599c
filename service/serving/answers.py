"""What is asked of a model and what it answers: arrays over the images of one request, all from one version."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.abstention import Reason
from service.serving.batches import Images


@dataclass(frozen=True, slots=True)
class Options:
    """What a request may choose; None is the model's own. Whatever is chosen, the calibration is made for it.

    alpha: share of clean images that may be refused. reform: the student sees each image's reconstruction, as MagNet
    does (Meng & Chen 2017). mc_passes, seed: how many dropout masks, and from what they are made.
    """

    alpha: float | None = None
    reform: bool = False
    mc_passes: int | None = None
    seed: int | None = None


DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one request: seconds in the queue, seconds of computing, images in the largest call that it was part of."""

    queued_s: float
    computed_s: float
    batch_images: int


@dataclass(frozen=True, slots=True)
class UncertaintyOf:
    """Of one image, in nats."""

    entropy: float
    mutual_information: float
    kl: float


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What is said of one image. Without a label there is a reason; the probabilities are given either way."""

    label: str | None
    index: int | None
    abstained: bool
    reason: Reason | None
    p_value: float
    probabilities: NDArray[np.float32]
    uncertainty: UncertaintyOf


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Of n images, from the one version that `model` names. The arrays are to be read, not written.

    probabilities: (n, classes), the mean over the dropout passes, given even where abstained. index: (n,), their
    argmax, whether abstained or not. entropy, mutual_information, kl: (n,), in nats.
    """

    model: str  # name@version, whatever reference was asked for
    bundle: str
    alpha: float
    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    index: NDArray[np.int64]
    abstained: NDArray[np.bool_]
    reason: list[Reason | None]
    p_value: NDArray[np.float64]
    entropy: NDArray[np.float64]
    mutual_information: NDArray[np.float64]
    kl: NDArray[np.float64]
    timing: Timing

    def __len__(self) -> int:
        return len(self.index)

    def label(self, row: int) -> str | None:
        """None where abstained."""
        return None if self.abstained[row] else self.classes[self.index[row]]

    def predictions(self) -> list[Prediction]:
        """One row an image, as `/v1/models/{name}/predict` tells them."""
        rows = zip(
            self.index.tolist(),
            self.reason,
            self.p_value.tolist(),
            self.probabilities,
            self.entropy.tolist(),
            self.mutual_information.tolist(),
            self.kl.tolist(),
            strict=True,
        )
        return [
            Prediction(
                label=self.classes[index] if reason is None else None,
                index=index if reason is None else None,
                abstained=reason is not None,
                reason=reason,
                p_value=p_value,
                probabilities=probabilities,
                uncertainty=UncertaintyOf(entropy, information, kl),
            )
            for index, reason, p_value, probabilities, entropy, information, kl in rows
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """An answered request, for those who watch: metrics, drift, capture."""

    tenant: str
    images: Images
    options: Options
    answers: Answers
