"""The verdicts of a sanitise job as one table: written by the worker whole and in pages, read by the gateway."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from service.jobs.verdict_index import IndexWriter
from service.storage import Storage

FIRST = (
    ("index", pa.int64()),
    ("sample_id", pa.string()),
    ("path", pa.string()),
    ("label", pa.string()),
    ("verdict", pa.string()),
    ("p_value", pa.float64()),
)
SCORE, OWN_P = "score.", "p."
"""Before a detector's name: the columns of its score and of its own p-value."""

OVERRIDE = {"override": "verdict", "override_note": "note", "override_by": "by", "override_at": "at"}
"""Columns of what a person decided, in the files that a reviewed table is given out as."""

ROWS_A_BATCH = 1024
"""Of the paged file. A page in any order reads at most as many batches as it has rows."""
BATCH_MARK = b"rows_a_batch"
"""In the schema of pages of which every batch but the last has that many rows."""
ROWS_A_PART = 32 * ROWS_A_BATCH
"""Of what is in memory at a time where a table is written in parts."""

ROWS_A_CSV_PART = 8192
_FORMULA = r"\A([=+\-@\t\r\n])"


class Verdict(StrEnum):
    KEEP = "keep"
    REFORM = "reform"
    QUARANTINE = "quarantine"


Verdicts = NDArray[np.object_]
"""Of each image the value of its `Verdict`, (n,): references to three strings."""


def schema(names: Sequence[str]) -> pa.Schema:
    own = [(f"{kind}{name}", pa.float64()) for name in names for kind in (SCORE, OWN_P)]
    return pa.schema([*FIRST, *own, ("reasons", pa.list_(pa.string()))])


def detectors(columns: Sequence[str]) -> tuple[str, ...]:
    """Names of the detectors whose scores are among the columns, in their order."""
    return tuple(column.removeprefix(SCORE) for column in columns if column.startswith(SCORE))


def paged_key(key: str) -> str:
    """Where the rows of the table at `key` lie in pages."""
    return f"{key.removesuffix('.parquet')}.arrow"


class VerdictTable:
    """An immutable table of verdicts in upload order."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def table(self) -> pa.Table:
        return self._table

    @classmethod
    def of(
        cls,
        *,
        sample_ids: Any,
        paths: Any,
        labels: Any,
        verdicts: ArrayLike,
        p_values: NDArray[np.float64],
        names: Sequence[str],
        scores: NDArray[np.floating[Any]],
        own_p: NDArray[np.float64],
        spoke: NDArray[np.bool_],
        first: int = 0,
    ) -> VerdictTable:
        """sample_ids, paths, labels: n strings, as Arrow or a sequence. names: t; scores, own_p, spoke: (n, t).

        first: the index of the first image, where this is a part of a table.
        An image's reasons are the detectors that spoke, the one with the smallest p-value of its own first.
        """
        count = len(p_values)
        if not scores.shape == own_p.shape == spoke.shape == (count, len(names)):
            raise ValueError(f"want {count} × {len(names)}, not {scores.shape}, {own_p.shape}, {spoke.shape}")
        columns = {
            "index": np.arange(first, first + count),
            "sample_id": sample_ids,
            "path": paths,
            "label": labels,
            "verdict": np.asarray(verdicts).tolist(),
            "p_value": p_values,
        }
        for place, name in enumerate(names):
            columns[SCORE + name] = scores[:, place].astype(np.float64)
            columns[OWN_P + name] = own_p[:, place].astype(np.float64)
        columns["reasons"] = _reasons(names, own_p, spoke)
        return cls(pa.table(columns, schema=schema(names)))

    @classmethod
    def read(cls, storage: Storage, key: str) -> VerdictTable:
        return cls(_as_now(pq.read_table(pa.BufferReader(storage.read(key)))))

    def reviewed(self, numbers: NDArray[np.int32], overrides: Mapping[int, Mapping[str, Any]]) -> VerdictTable:
        """The table with what a person decided. numbers: (n,), for each image that of its override, or 0."""
        table = self._table
        known = sorted(overrides)
        places = pa.array(np.searchsorted(known, numbers), mask=numbers == 0)
        for column, field in OVERRIDE.items():
            told = [None if (value := overrides[number][field]) is None else str(value) for number in known]
            table = table.append_column(column, pa.array(told, pa.string()).take(places))
        return VerdictTable(table)

    def write(self, storage: Storage, key: str) -> None:
        names = detectors(self._table.column_names)
        parts = (VerdictTable(self._table.slice(at, ROWS_A_PART)) for at in range(0, len(self), ROWS_A_PART))
        write_parts(storage, key, names, parts)

    def parquet(self) -> bytes:
        sink = io.BytesIO()
        pq.write_table(self._table, sink, compression="zstd")
        return sink.getvalue()

    def csv(self, order: NDArray[np.int64] | None = None) -> Iterator[bytes]:
        """The rows in `order` (all, where None), part by part; no cell begins as a spreadsheet's formula would."""
        count = len(self) if order is None else len(order)
        yield _csv(self._table.slice(0, 0), header=True)
        for start in range(0, count, ROWS_A_CSV_PART):
            if order is None:
                yield _csv(self._table.slice(start, ROWS_A_CSV_PART), header=False)
            else:
                yield _csv(self._table.take(order[start : start + ROWS_A_CSV_PART]), header=False)


def write_parts(storage: Storage, key: str, names: Sequence[str], parts: Iterable[VerdictTable]) -> None:
    """A table whole at `key`, and in pages with an index, so that the gateway need not read it all for a hundred rows.

    names: of its detectors. parts: in order, each of whole batches but the last; one at a time is in memory.
    """
    layout = schema(names)
    marked, index = layout.with_metadata({BATCH_MARK: str(ROWS_A_BATCH)}), IndexWriter()
    with ExitStack() as files:
        whole = files.enter_context(storage.writing(key))
        table = files.enter_context(pq.ParquetWriter(whole, layout, compression="zstd"))
        pages = files.enter_context(storage.writing(paged_key(key)))
        batches = files.enter_context(ipc.new_file(pages, marked))
        rows = 0
        for part in parts:
            if rows % ROWS_A_BATCH:
                raise ValueError(f"a part of {len(part)} rows follows {rows}, which are no whole batches")
            rows += len(part)
            table.write_table(part.table)
            for start in range(0, len(part), ROWS_A_BATCH):  # columns lie in chunks of any length
                batches.write_table(part.table.slice(start, ROWS_A_BATCH).combine_chunks().cast(marked))
            index.add(part.table)
    index.write(storage, key)


def as_wire(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as the API gives them."""
    names = detectors(rows.column_names)
    return [
        {
            **{column: row[column] for column, _ in FIRST},
            "scores": {name: row[SCORE + name] for name in names},
            "p_values": {name: row[OWN_P + name] for name in names},
            "reasons": row["reasons"],
            "override": None,
        }
        for row in rows.to_pylist()
    ]


def _reasons(names: Sequence[str], own_p: NDArray[np.float64], spoke: NDArray[np.bool_]) -> pa.ListArray:
    order = np.argsort(np.where(spoke, own_p, np.inf), axis=1, kind="stable")
    counts = spoke.sum(axis=1)
    mentioned = order[np.arange(len(names)) < counts[:, None]]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(starts, pa.array(list(names), pa.string()).take(pa.array(mentioned)))


def _as_now(table: pa.Table) -> pa.Table:
    """A table of the time when the filter judged alone: its columns were score, detector and one reason in words."""
    if "detector" not in table.column_names:
        return table
    name = table["detector"][0].as_py() if table.num_rows else "score"
    gave_one = pc.is_valid(table["reason"]).to_numpy()
    columns = {column: table[column] for column, _ in FIRST}
    columns |= {SCORE + name: table["score"], OWN_P + name: table["p_value"]}
    spoke = np.asarray(gave_one, dtype=bool)[:, None]
    columns["reasons"] = _reasons([name], np.zeros(spoke.shape), spoke)
    return pa.table(columns, schema=schema([name]))


def _csv(rows: pa.Table, *, header: bool) -> bytes:
    columns = {}
    for name in rows.column_names:
        column = rows[name]
        if pa.types.is_list(column.type):
            column = pc.binary_join(column, ";")
        if pa.types.is_string(column.type):
            column = pc.replace_substring_regex(column, _FORMULA, r"'\1")
        columns[name] = column
    sink = io.BytesIO()
    pacsv.write_csv(pa.table(columns), sink, pacsv.WriteOptions(include_header=header))
    return sink.getvalue()
