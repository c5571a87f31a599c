"""What pages of verdicts are found by, written with the table: the order of the p-values, each row's verdict and class.

Sorting a million p-values takes longer than a page may; reading their order does not.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
from numpy.typing import NDArray

from service.storage import Storage

BY_P_VALUE = "by_p_value"
CODED = ("verdict", "label")
"""Columns of few values, kept as numbers."""


def index_key(key: str) -> str:
    """Where the index of the table at `key` lies. Tables of earlier jobs have none."""
    return f"{key.removesuffix('.parquet')}.index.arrow"


class IndexWriter:
    """Gathers the index of a table that comes in parts."""

    def __init__(self) -> None:
        self._p_values: list[pa.Array] = [pa.array([], pa.float64())]
        self._coded: dict[str, list[pa.Array]] = {
            name: [pa.array([], pa.string()).dictionary_encode()] for name in CODED
        }

    def add(self, part: pa.Table) -> None:
        """The rows that follow."""
        self._p_values.append(part["p_value"].combine_chunks())
        for name, columns in self._coded.items():
            columns.append(part[name].combine_chunks().dictionary_encode())

    def write(self, storage: Storage, key: str) -> None:
        columns = {BY_P_VALUE: ascending(pa.chunked_array(self._p_values)).cast(pa.int32())}
        columns |= {name: pa.chunked_array(parts).combine_chunks() for name, parts in self._coded.items()}
        batch = pa.RecordBatch.from_pydict(columns)
        with storage.writing(index_key(key)) as file, ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)


def ascending(values: pa.ChunkedArray) -> pa.Array:
    """The places of the values in their order; ties by place, what is no number last."""
    return pc.sort_indices(values, sort_keys=[("", "ascending")])


def by_p_value(storage: Storage, key: str) -> NDArray[np.int32]:
    """The places of the rows in the order of their p-values."""
    order: NDArray[np.int32] = _column(storage, key, BY_P_VALUE).to_numpy()
    return order


def equal(storage: Storage, key: str, name: str, value: str) -> NDArray[np.bool_]:
    """Of every row whether that column, one of CODED, holds the value."""
    column = _column(storage, key, name)
    code = column.dictionary.index(value).as_py()  # -1 where no row has it
    return np.asarray(column.indices.to_numpy() == code)


def _column(storage: Storage, key: str, name: str) -> pa.Array:
    only = ipc.IpcReadOptions(included_fields=[(BY_P_VALUE, *CODED).index(name)])
    with closing(storage.open(index_key(key))) as file:
        return ipc.open_file(pa.PythonFile(file, "r"), options=only).get_batch(0).column(name)
