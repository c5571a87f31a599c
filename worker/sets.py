"""The two versions that a sanitise job looks at, and how the reference is split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.specs import SanitiseSpec
from models.splits import split_by_class
from service.datasets.shards import ShardReader
from service.tables import DatasetVersion
from worker.context import Context
from worker.datasets import groups_of, open_version


@dataclass(frozen=True)
class Sets:
    """The two versions a sanitise job looks at."""

    candidate: DatasetVersion
    candidate_reader: ShardReader
    reference: DatasetVersion
    reference_reader: ShardReader
    fit: NDArray[np.int64]  # rows of the reference that fit the filter
    held: NDArray[np.int64]  # rows that calibrate it


def open_sets(context: Context, spec: SanitiseSpec) -> Sets:
    inputs = context.claim.inputs
    candidate, candidate_reader = open_version(context, inputs["dataset"])
    reference, reference_reader = open_version(context, inputs["reference"])
    fit, held = split_by_class(
        reference_reader.labels(),
        groups_of(reference_reader),
        share=spec.calibration.calibration_share,
        seed=spec.seed,
    )
    return Sets(candidate, candidate_reader, reference, reference_reader, fit, held)
