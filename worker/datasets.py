"""Opens versions for the steps, and lines up labels between two of them."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
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


def groups_of(reader: ShardReader) -> NDArray[np.int32] | None:
    """Of every sample the place of its group among the sorted names, or None where the upload did not name them all."""
    column = reader.manifest(["group"])["group"]
    if column.null_count:
        return None
    coded = column.combine_chunks().dictionary_encode()
    order = pc.sort_indices(coded.dictionary).to_numpy()
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    groups: NDArray[np.int32] = place[coded.indices.to_numpy()]
    return groups


def relabelled(labels: NDArray[np.int64], classes: list[str], wanted: list[str]) -> NDArray[np.int64]:
    """Labels of one class list as labels of another that has all its names."""
    place = {name: index for index, name in enumerate(wanted)}
    return np.array([place[name] for name in classes], np.int64)[labels]
