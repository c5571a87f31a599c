"""The versions that a sanitise job looks at, and which images it trusts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.datasets import repository as datasets
from service.datasets.shards import ShardReader
from service.tables import DatasetVersion
from worker.context import Context
from worker.datasets import open_version

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sets:
    """Without a reference (None) the trusted images are rows of the candidates themselves, sifted out of them."""

    candidate: DatasetVersion
    candidate_reader: ShardReader
    reference: DatasetVersion | None
    reference_reader: ShardReader
    trusted: Rows  # rows of the reference, sorted: they teach what judges the other fold, and calibrate in their own

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


def open_sets(context: Context) -> Sets:
    """With a reference all of it is trusted; without one nothing is, yet."""
    inputs = context.claim.inputs
    candidate, reader = open_version(context, inputs["dataset"])
    if "reference" not in inputs:
        return Sets(candidate, reader, None, reader, np.empty(0, np.int64))
    reference, reference_reader = open_version(context, inputs["reference"])
    return Sets(candidate, reader, reference, reference_reader, np.arange(reference.num_samples))
