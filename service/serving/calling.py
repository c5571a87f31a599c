"""One way to ask a loaded version: a graph, dropout masks, and the calibration that holds for exactly those."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.abstention import AbstentionCalibration, Reason, uncertainty_of
from models.calibration import samples_needed
from models.reliability import at_temperature
from service.registry.bundle import SERVED
from service.registry.samples import Parity
from service.serving.batches import Images, Told, calls, padded, probe_images, trusted_sizes
from service.serving.errors import ModelFault
from service.serving.sessions import Network

PARITY_ATOL = 1e-3
"""Over max(1, |expected|). Export allows 1e-4 on the CPU; other devices' kernels add in other orders."""

TIMED = 5
"""Calls of one image, of which the fastest tells what it takes: the machine may do other things meanwhile."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Of n images, all that does not depend on α. probabilities (n, c) at the calibration's temperature, first (n,)
    which test speaks loudest, the rest (n,); by_class: the p-values among the calibration images of the same answer,
    where the model decides so.
    """

    probabilities: NDArray[np.float32]
    index: NDArray[np.int64]
    whole: Floats
    by_class: Floats | None
    first: NDArray[np.int64]
    entropy: Floats
    mutual_information: Floats
    kl: Floats
    finite: NDArray[np.bool_]

    def rows(self, here: slice) -> Judged:
        def part(name: str) -> Any:
            column = getattr(self, name)
            return None if column is None else column[here]

        return Judged(*(part(field.name) for field in fields(self)))

    @classmethod
    def joined(cls, parts: list[Judged]) -> Judged:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]

        def column(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else np.concatenate(values)

        return cls(*(column(field.name) for field in fields(cls)))


@dataclass(frozen=True, eq=False)
class Calling:
    """Safe to call from several threads at once. Sizes, falling: how many images a call of the graph may take.

    seconds: that it took for one image alone, once warm; inf where that was not tried.
    """

    network: Network
    masks: NDArray[np.float32]
    calibration: AbstentionCalibration
    sizes: tuple[int, ...]
    seconds: float = math.inf

    @property
    def batch(self) -> int:
        return self.sizes[0]

    def tried(self, image_shape: tuple[int, int, int], *, batch: int) -> Calling:
        """Warmed up, with the sizes at which the graph says the same of every image, and timed. Raises ModelFault."""
        images = probe_images(batch, image_shape)
        warm = replace(self, sizes=trusted_sizes(self._everything, images))
        return replace(warm, seconds=min(warm._seconds_of(images[:1]) for _ in range(TIMED)))

    def _seconds_of(self, images: Images) -> float:
        began = time.perf_counter()
        self.judge(images)
        return time.perf_counter() - began

    def check(self, sample: Parity) -> None:
        """Raises ModelFault where the graph does not compute here what was computed when it was made."""
        found = self._run(sample.images)
        wanted: dict[str, Any] = {
            "mean_probabilities": sample.mean_probabilities,
            "class_entropy": sample.class_entropy,
            **({} if sample.scores is None else {"scores": sample.scores}),
        }
        for name, values in wanted.items():
            difference = np.max(np.abs(found[name] - values) / np.maximum(1, np.abs(values)))
            if not difference <= PARITY_ATOL:
                raise ModelFault(
                    f"{SERVED} answers its parity sample otherwise than when it was exported: {name} differs by "
                    f"{difference:.3g}, over {PARITY_ATOL:g}. It is not served on this machine."
                )

    def judge(self, images: Images) -> Judged:
        """images: (n, h, w, c), n at least 1. Raises ModelFault."""
        found = self._run(images)
        finite = np.ones(len(images), bool)
        if not all(np.isfinite(values).all() for values in found.values()):
            for values in found.values():
                finite &= np.isfinite(values.reshape(len(images), -1)).all(axis=1)
            found = {name: np.where(np.isfinite(values), values, 0) for name, values in found.items()}
        unsure = uncertainty_of(
            found["mean_probabilities"], found["class_entropy"].sum(axis=1, dtype=np.float64), self.calibration.profiles
        )
        columns: dict[Reason, Any] = {"uncertain": unsure.kl, "perturbed": found.get("scores"), **found}  # type: ignore[dict-item]
        table = np.stack([np.asarray(columns[reason], np.float64) for reason in self.calibration.reasons], axis=1)
        whole, each = self.calibration.test.p_values(table)
        index = unsure.mean_probabilities.argmax(axis=1).astype(np.int64)
        told = at_temperature(unsure.mean_probabilities, self.calibration.temperature)
        return Judged(
            probabilities=told.astype(np.float32),
            index=index,
            whole=whole,
            by_class=self.calibration.class_p_values(table, index) if self.calibration.per_class else None,
            first=each.argmin(axis=1),
            entropy=unsure.entropy,
            mutual_information=unsure.mutual_information,
            kl=unsure.kl,
            finite=finite,
        )

    def p_values(self, judged: Judged, alpha: float) -> Floats:
        """By class where the model decides so and the answer has calibration images enough to promise α."""
        if judged.by_class is None:
            return judged.whole
        enough = self.calibration.answer_counts[judged.index] >= samples_needed(alpha)
        return np.where(enough, judged.by_class, judged.whole)

    def _run(self, images: Images) -> dict[str, NDArray[np.float32]]:
        """The graph's outputs (n, …), in calls of trusted sizes."""
        outputs, parts = outputs_of(self.calibration), []
        for rows, size in calls(len(images), self.sizes):
            answers = self.network.run(outputs, {"images": padded(images[rows], size), "masks": self.masks})
            _check_shapes(outputs, answers, size, len(self.calibration.profiles))
            count = rows.stop - rows.start
            parts.append(answers if count == size else [values[:count] for values in answers])
        whole = parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts, strict=True)]
        return dict(zip(outputs, whole, strict=True))

    def _everything(self, images: Images) -> Told:
        """All that is said of each image as one row of numbers, from one call; what `trusted_sizes` compares."""
        alone = replace(self, sizes=(len(images),))
        judged = alone.judge(images)
        if not judged.finite.all():
            raise ModelFault(f"{SERVED} answers numbers that are not finite.")
        if not np.allclose(judged.probabilities.sum(axis=1), 1, atol=1e-3):
            raise ModelFault(f"{SERVED} answers numbers that are no probabilities: they do not sum to 1.")
        said = (judged.probabilities, judged.whole, judged.entropy, judged.mutual_information, judged.kl)
        return np.column_stack([*said, *alone._run(images).values()])


def outputs_of(calibration: AbstentionCalibration) -> list[str]:
    """What a graph must give for this calibration to judge by."""
    scores = [] if calibration.detector_scores is None else ["scores"]
    return ["mean_probabilities", "class_entropy", *scores, *calibration.student_scores]


def _check_shapes(outputs: list[str], answers: list[NDArray[Any]], n: int, classes: int) -> None:
    for name, values in zip(outputs, answers, strict=True):
        wanted = (n, classes) if name in ("mean_probabilities", "class_entropy") else (n,)
        if values.shape != wanted:
            raise ModelFault(f"{SERVED} answers {name} of shape {values.shape}; wanted {wanted}.")
