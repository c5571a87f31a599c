"""A loaded model version: detector and student on ONNX Runtime, then the decision to answer or to abstain, in numpy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.abstention import Decision, decide
from models.calibration import AlphaTooSmall, check_alpha
from service.references import ModelRef
from service.registry.bundle import DETECTOR, STUDENT, Bundle
from service.serving.answers import Answers, Timing
from service.serving.batches import Images, Told, calls, largest_batch, padded, probe_images, trusted_sizes
from service.serving.errors import AlphaNotPromised, AlphaOutOfRange, ModelFault
from service.serving.sessions import Runtime


class Predictor:
    """Ready when made: its networks are open, warm, and have shown at which batch sizes they answer alike."""

    def __init__(self, bundle: Bundle, runtime: Runtime, *, name: str, version: int, batch: int) -> None:
        """Raises ModelFault where a network cannot be run, or answers what no such network would."""
        self.name = name
        self.version = version
        self.reference = str(ModelRef(name, version))
        self.classes = bundle.classes
        self.image_shape = bundle.image_shape
        self.digest = bundle.digest
        self.alpha = bundle.calibration.alpha
        self._calibration = bundle.calibration.abstention
        self._masks = bundle.calibration.mc.masks()
        self._student = runtime.open(bundle.student, name=STUDENT, inputs=("images", "masks"), output="probabilities")
        self._detector = None
        if bundle.detector is not None:
            self._detector = runtime.open(bundle.detector, name=DETECTOR, inputs=("images",), output="scores")
        self.provider = self._student.provider
        probe = probe_images(largest_batch(batch, bundle.image_shape), bundle.image_shape)
        self.sizes = trusted_sizes(self._judge, probe)

    @property
    def batch(self) -> int:
        """Images that one call takes, at most."""
        return self.sizes[0]

    def check_alpha(self, alpha: float) -> None:
        """Raises AlphaOutOfRange or AlphaNotPromised, which names the smallest that can be."""
        try:
            check_alpha(alpha, self._calibration.n)
        except AlphaTooSmall as error:
            raise AlphaNotPromised(
                f"α = {alpha:g} cannot be held: this model was calibrated on {error.n} images, and the smallest α that "
                f"they can show is {error.smallest}. Ask for that or more, or distill with a larger reference.",
                smallest_alpha=error.smallest,
                calibration_images=error.n,
            ) from error
        except ValueError as error:
            raise AlphaOutOfRange(f"α = {alpha} is no share of images: it must be above 0 and below 1.") from error

    def predict(self, images: Images, *, alpha: float) -> Answers:
        """The same of an image whatever the images around it. Raises as `check_alpha`, and ModelFault."""
        self.check_alpha(alpha)
        began = time.monotonic()
        found: list[tuple[Decision, int]] = []
        for rows, size in calls(len(images), self.sizes):
            probabilities, scores = self._scores(padded(images[rows], size))
            found.append((self._decide(probabilities, scores, alpha), rows.stop - rows.start))
        return self._told(found, alpha, time.monotonic() - began)

    def _decide(self, probabilities: NDArray[np.float32], scores: NDArray[np.float32] | None, alpha: float) -> Decision:
        """The decision on two rows or more: on one, numpy adds over the passes in another order, and bits differ."""
        if probabilities.shape[1] == 1:
            probabilities = np.repeat(probabilities, 2, axis=1)
            scores = None if scores is None else np.repeat(scores, 2)
        return decide(probabilities, scores, self._calibration, alpha=alpha)

    def _scores(self, images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Probabilities (passes, n, classes) of the student and scores (n,) of the detector, checked."""
        probabilities = self._student.run("probabilities", {"images": images, "masks": self._masks})
        _check(STUDENT, probabilities, (len(self._masks), len(images), len(self.classes)))
        if self._detector is None:
            return probabilities, None
        scores = self._detector.run("scores", {"images": images})
        _check(DETECTOR, scores, (len(images),))
        return probabilities, scores

    def _judge(self, images: Images) -> Told:
        """All that is said of each image as one row of numbers; what `trusted_sizes` compares."""
        probabilities, scores = self._scores(images)
        if not np.allclose(probabilities.sum(axis=-1), 1, atol=1e-3):
            raise ModelFault(f"{STUDENT} answers numbers that are no probabilities: they do not sum to 1.")
        found = self._decide(probabilities, scores, self._calibration.smallest_alpha)
        n, unsure = len(images), found.uncertainty
        columns: list[NDArray[Any]] = [found.p_value, unsure.entropy, unsure.mutual_information, unsure.kl]
        rows = np.column_stack([*columns, unsure.mean_probabilities])[:n]
        each = np.moveaxis(probabilities, 1, 0).reshape(n, -1)
        return np.column_stack([rows, each] if scores is None else [rows, each, scores])

    def _told(self, found: list[tuple[Decision, int]], alpha: float, seconds: float) -> Answers:
        def joined(column: Callable[[Decision], NDArray[Any]]) -> NDArray[Any]:
            return np.concatenate([column(decision)[:count] for decision, count in found])

        return Answers(
            model=self.reference,
            bundle=self.digest,
            alpha=alpha,
            classes=self.classes,
            probabilities=joined(lambda d: d.uncertainty.mean_probabilities).astype(np.float32),
            index=joined(lambda d: d.label_index),
            abstained=joined(lambda d: d.abstained),
            reason=[reason for decision, count in found for reason in decision.reason[:count]],
            p_value=joined(lambda d: d.p_value),
            entropy=joined(lambda d: d.uncertainty.entropy),
            mutual_information=joined(lambda d: d.uncertainty.mutual_information),
            kl=joined(lambda d: d.uncertainty.kl),
            timing=Timing(0.0, seconds, max(count for _, count in found)),
        )


def _check(name: str, values: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise ModelFault(f"{name} answers with shape {values.shape}; wanted {shape}.")
    if not np.isfinite(values).all():
        raise ModelFault(f"{name} answers numbers that are not finite.")
