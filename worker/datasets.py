"""Opens versions for the steps, and lines up labels between two of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.datasets import repository as datasets
from service.datasets.shards import ShardReader
from service.tables import DatasetVersion
from worker.context import Context


def open_version(context: Context, reference: str) -> tuple[DatasetVersion, ShardReader]:
    def find() -> DatasetVersion:
        with context.database.session() as session:
            return datasets.find(session, reference)

    row = context.patiently(find)
    return row, datasets.reader(context.storage, row)


def groups_of(reader: ShardReader) -> NDArray[np.object_] | None:
    """The group of every sample, or None where the upload named none."""
    column = reader.manifest()["group"]
    if column.null_count:
        return None
    return np.array(column.to_pylist(), dtype=object)


def relabelled(labels: NDArray[np.int64], classes: list[str], wanted: list[str]) -> NDArray[np.int64]:
    """Labels of one class list as labels of another that has all its names."""
    place = {name: index for index, name in enumerate(wanted)}
    return np.array([place[name] for name in classes], np.int64)[labels]
