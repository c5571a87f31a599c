"""The verdicts of a sanitise job as one Parquet table: written by the worker, paged by the gateway."""

from __future__ import annotations

import io
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from service.storage import Storage

SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("sample_id", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("verdict", pa.string()),
        ("p_value", pa.float64()),
        ("score", pa.float64()),
        ("detector", pa.string()),
        ("reason", pa.string()),
    ]
)
SORTS = ("index", "p_value", "score", "path", "label")


class Verdict(StrEnum):
    KEEP = "keep"
    REFORM = "reform"
    QUARANTINE = "quarantine"


class VerdictTable:
    """An immutable table of verdicts."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @classmethod
    def of(cls, columns: dict[str, Any]) -> VerdictTable:
        return cls(pa.table(columns, schema=SCHEMA))

    @classmethod
    def read(cls, storage: Storage, key: str) -> VerdictTable:
        return cls(pq.read_table(pa.BufferReader(storage.read(key))))

    def write(self, storage: Storage, key: str) -> None:
        sink = io.BytesIO()
        pq.write_table(self._table, sink, compression="zstd")
        storage.write(key, sink.getvalue())

    def select(self, verdict: Verdict | None, sort: str) -> VerdictTable:
        """Rows of one verdict (or all), in the order of `sort`; ties by index."""
        table = self._table
        if verdict is not None:
            table = table.filter(pc.equal(table["verdict"], verdict.value))
        column, order = sort.removeprefix("-"), "descending" if sort.startswith("-") else "ascending"
        keys = [(column, order)] if column == "index" else [(column, order), ("index", "ascending")]
        return VerdictTable(table if sort == "index" else table.sort_by(keys))

    def rows(self, offset: int, limit: int) -> list[dict[str, Any]]:
        return [_as_wire(row) for row in self._table.slice(offset, limit).to_pylist()]

    def csv(self) -> bytes:
        sink = io.BytesIO()
        pacsv.write_csv(self._table, sink)
        return sink.getvalue()


def _as_wire(row: dict[str, Any]) -> dict[str, Any]:
    reason = row.pop("reason")
    detector, score = row.pop("detector"), row.pop("score")
    return {**row, "scores": {detector: score}, "reasons": [reason] if reason else [], "override": None}
