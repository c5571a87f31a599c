"""What a distill job works with: images to train on, and images that neither filter nor student has seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.filtering import Filter
from models.shift import Groups
from models.specs import DistillSpec
from models.splits import split_by_class
from service.datasets import repository as datasets
from service.errors import UnusableDataset
from worker.artifacts import FilterArtifacts
from worker.context import Context
from worker.datasets import groups_of, open_version, relabelled
from worker.lineage import sanitise_filter
from worker.promising import rows_that_calibrate


@dataclass(frozen=True, eq=False)
class Material:
    """What a distill job works with. The student saw none of the held-out images, nor the filter those of a reference.

    held_objects: how many objects they show, as far as is known; calibrating: rows of those that say when to abstain,
    all of them or one of each object; vouched: whether they are what production sends, and not what a filter left.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    held_images: NDArray[np.uint8]
    held_labels: NDArray[np.int64]
    held_objects: int
    calibrating: NDArray[np.int64]
    vouched: bool
    classes: list[str]
    image_shape: tuple[int, int, int]
    detector: Filter | None
    lineage: dict[str, Any]


def gather(context: Context, spec: DistillSpec) -> Material:
    inputs = context.claim.inputs
    row, reader = open_version(context, inputs["dataset"])
    kept = sanitise_filter(context, row)
    everything = np.arange(row.num_samples)
    labels = reader.labels()
    lineage = {"dataset": inputs["dataset"], "dataset_digest": row.digest, "reference": inputs.get("reference")}
    if "reference" in inputs:
        held_images, held_labels, groups = _from_reference(context, inputs["reference"], kept, row.classes)
        train = everything
    else:
        share, groups = spec.abstention.holdout_share, groups_of(reader)
        train, held = split_by_class(labels, groups, share=share, seed=spec.seed)
        held_images, held_labels = reader.images(held), labels[held]
        groups = None if groups is None else groups[held]
    _refuse_missing_classes(labels[train], row.classes, inputs["dataset"])
    calibrating = rows_that_calibrate(len(held_labels), groups, spec)
    return Material(
        images=reader.images(train),
        labels=labels[train],
        held_images=held_images,
        held_labels=held_labels,
        held_objects=len(held_labels) if groups is None else len(np.unique(groups)),
        calibrating=calibrating,
        vouched="reference" in inputs or kept is None,
        classes=row.classes,
        image_shape=reader.image_shape,
        detector=kept.filter if kept else None,
        lineage={**lineage, "num_held_out": len(held_labels), "sanitised": kept is not None},
    )


def _from_reference(
    context: Context, reference: str, kept: FilterArtifacts | None, classes: list[str]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], Groups | None]:
    """The reference's images, less those that the filter was fitted on: their scores would flatter."""
    row, reader = open_version(context, reference)
    same = kept is not None and kept.reference == datasets.reference_of(row)
    rows = kept.held if kept is not None and same else np.arange(row.num_samples)
    groups = groups_of(reader)
    labels = relabelled(reader.labels(), row.classes, classes)[rows]
    return reader.images(rows), labels, None if groups is None else groups[rows]


def _refuse_missing_classes(labels: NDArray[np.int64], classes: list[str], dataset: str) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise UnusableDataset(
            f"{dataset} has no image left to train on in these classes: {', '.join(empty[:5])}. Add images of them, "
            "leave the class out, or sanitise again with a lower false_quarantine_rate.",
            code="empty_class",
        )
