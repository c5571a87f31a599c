"""The versions that a sanitise job looks at, and which images it may learn from and calibrate on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.specs import SanitiseSpec
from models.splits import split_by_class
from service.datasets import repository as datasets
from service.datasets.shards import ShardReader
from service.tables import DatasetVersion
from worker.context import Context
from worker.datasets import groups_of, open_version

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sets:
    """Without a reference (None) the trusted images are rows of the candidates themselves, sifted out of them."""

    candidate: DatasetVersion
    candidate_reader: ShardReader
    reference: DatasetVersion | None
    reference_reader: ShardReader
    fit: Rows  # rows of the reference that fit the filter, sorted
    held: Rows  # rows that calibrate it, sorted

    @property
    def sifted(self) -> bool:
        return self.reference is None

    @property
    def reference_version(self) -> DatasetVersion:
        """Where the trusted images lie."""
        return self.reference or self.candidate

    @property
    def reference_name(self) -> str | None:
        return datasets.reference_of(self.reference) if self.reference is not None else None

    def trusting(self, rows: Rows, spec: SanitiseSpec) -> Sets:
        """The same, with `rows` of the reference split in those that fit and those that calibrate."""
        groups = groups_of(self.reference_reader)
        fit, held = split_by_class(
            self.reference_reader.labels()[rows],
            None if groups is None else groups[rows],
            share=spec.calibration.calibration_share,
            seed=spec.seed,
        )
        return replace(self, fit=rows[fit], held=rows[held])


def open_sets(context: Context, spec: SanitiseSpec) -> Sets:
    """With a reference all of it is trusted; without one nothing is, yet."""
    inputs, nothing = context.claim.inputs, np.empty(0, np.int64)
    candidate, reader = open_version(context, inputs["dataset"])
    if "reference" not in inputs:
        return Sets(candidate, reader, None, reader, nothing, nothing)
    reference, reference_reader = open_version(context, inputs["reference"])
    sets = Sets(candidate, reader, reference, reference_reader, nothing, nothing)
    return sets.trusting(np.arange(reference.num_samples), spec)
