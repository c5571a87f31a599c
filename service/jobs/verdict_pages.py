"""Pages of a table of verdicts in any order, without reading the table: sorted orders are kept, rows are looked up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
from numpy.typing import NDArray

from service.errors import InvalidInput, NotFound
from service.jobs import verdict_index
from service.jobs.verdicts import BATCH_MARK, ROWS_A_BATCH, SCORE, Verdict, VerdictTable, as_wire, detectors, paged_key
from service.storage import Storage

Order = NDArray[np.int64]

SORTS = ("index", "p_value", "path", "label")
MOST_BYTES = 64 * 1024 * 1024
"""Of all orders kept: sixteen of a million images each."""
MOST_ORDERS = 1024
"""Kept at once, however small: a class that has no image is an order, too."""


class Orders:
    """The orders of rows that were asked for last, within `most_bytes`; any thread may ask."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[tuple[str, ...], NDArray[np.int32]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        return sum(order.nbytes for order in self._kept.values())

    def get(self, key: tuple[str, ...], make: Callable[[], Order]) -> NDArray[np.int32]:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        order = make().astype(np.int32)
        with self._lock:
            if order.nbytes <= self._most:
                self._kept[key] = order
            while self.nbytes > self._most or len(self._kept) > MOST_ORDERS:
                self._kept.popitem(last=False)
        return order


@dataclass(frozen=True)
class VerdictPages:
    """The verdicts at `key`, which are written once and never change."""

    storage: Storage
    key: str
    orders: Orders

    def page(
        self,
        verdict: Verdict | None,
        sort: str,
        offset: int,
        limit: int,
        *,
        label: str | None = None,
        among: NDArray[np.bool_] | None = None,
    ) -> tuple[list[dict[str, Any]], int]:
        """Rows of one verdict and one class (or all) in the order of `sort`, ties by index, and how many there are.

        among: of every image whether it may be among them; None where all may. Raises InvalidInput for an order there
        is not.
        """
        with _Rows(self.storage, self.key) as rows:
            order = _among(self._order(rows, verdict, label, sort), among)
            if order is None:
                return as_wire(rows.take(np.arange(offset, max(offset, min(offset + limit, len(rows)))))), len(rows)
            return as_wire(rows.take(order[offset : offset + limit].astype(np.int64))), len(order)

    def order(
        self,
        verdict: Verdict | None,
        sort: str,
        *,
        label: str | None = None,
        among: NDArray[np.bool_] | None = None,
    ) -> Order | None:
        """The places of those rows in that order; None where it is all as they lie. Raises as `page` does."""
        with _Rows(self.storage, self.key) as rows:
            order = _among(self._order(rows, verdict, label, sort), among)
        return None if order is None else order.astype(np.int64)

    def count(self) -> int:
        with _Rows(self.storage, self.key) as rows:
            return len(rows)

    def columns(self) -> list[str]:
        with _Rows(self.storage, self.key) as rows:
            return list(rows.columns)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column whole, in upload order."""
        with _Rows(self.storage, self.key) as rows:
            return rows.column(name)

    def row(self, index: int) -> dict[str, Any]:
        """One verdict. Raises NotFound."""
        with _Rows(self.storage, self.key) as rows:
            if not 0 <= index < len(rows):
                raise NotFound(
                    f"There are {len(rows)} verdicts, the first of which is 0: none has the index {index}.",
                    code="verdict_not_found",
                )
            return as_wire(rows.take(np.array([index])))[0]

    def _order(self, rows: _Rows, verdict: Verdict | None, label: str | None, sort: str) -> NDArray[np.int32] | None:
        column = _sorted_by(sort, rows.columns)
        wanted = {name: str(value) for name, value in (("verdict", verdict), ("label", label)) if value is not None}
        if not wanted and sort == "index":
            return None
        key = (self.key, sort, *(f"{name}={value}" for name, value in wanted.items()))
        return self.orders.get(key, lambda: _ordered(rows, wanted, column, descending=sort.startswith("-")))


def _among(order: NDArray[np.int32] | None, among: NDArray[np.bool_] | None) -> NDArray[np.int32] | None:
    if among is None:
        return order
    return np.flatnonzero(among).astype(np.int32) if order is None else order[among[order]]


def _sorted_by(sort: str, columns: list[str]) -> str:
    """The column that `sort` names; plain `score` is the first detector's."""
    names = detectors(columns)
    wanted = sort.removeprefix("-")
    if wanted == "score" and names:
        return SCORE + names[0]
    known = [*SORTS, *(SCORE + name for name in names)]
    if wanted not in known:
        raise InvalidInput(
            f"Verdicts cannot be sorted by {sort!r}: use one of {', '.join(known)}, with a '-' before it to reverse.",
            code="bad_sort",
        )
    return wanted


def _ordered(rows: _Rows, wanted: Mapping[str, str], column: str, *, descending: bool) -> Order:
    """wanted: what columns must hold."""
    if column == "p_value" and not descending and not wanted:
        return rows.by_p_value()
    holds = [rows.equal(name, value) for name, value in wanted.items()]
    meant = np.logical_and.reduce(holds) if holds else np.ones(len(rows), np.bool_)
    if column == "p_value" and not descending:
        order = rows.by_p_value()
        return np.asarray(order[meant[order]])
    places = np.flatnonzero(meant)
    if column == "index" and not descending:
        return places
    keys = rows.column(column).take(pa.array(places))
    direction = "descending" if descending else "ascending"
    return np.asarray(places[pc.sort_indices(keys, sort_keys=[("", direction)]).to_numpy()])


class _Rows:
    """Rows by their places.

    Earlier jobs have no index, or pages of any length, or only the whole table: that is read instead, and sorted.
    """

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage, self._key = storage, key
        self._open = ExitStack()
        self._count: int
        self._whole: pa.Table | None = None
        if not (storage.exists(paged_key(key)) and self._opened()):
            self._whole = VerdictTable.read(storage, key).table
            self.columns = self._whole.column_names
            self._count = len(self._whole)
            return
        self.columns = self._batches.schema.names
        last = self._batches.num_record_batches - 1
        self._count = 0 if last < 0 else last * ROWS_A_BATCH + len(self._batches.get_batch(last))

    def _opened(self) -> bool:
        """Opens the pages. False, and closed again, where they are not all of one length."""
        self._file = self._open.enter_context(self._storage.open(paged_key(self._key)))
        self._batches = ipc.open_file(pa.PythonFile(self._file, "r"))
        if (self._batches.schema.metadata or {}).get(BATCH_MARK) == str(ROWS_A_BATCH).encode():
            return True
        self._open.close()
        return False

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __len__(self) -> int:
        return self._count

    def column(self, name: str) -> pa.ChunkedArray:
        if self._whole is not None:
            return self._whole[name]
        only = ipc.IpcReadOptions(included_fields=[self.columns.index(name)])
        return ipc.open_file(pa.PythonFile(self._file, "r"), options=only).read_all()[name]

    def equal(self, name: str, value: str) -> NDArray[np.bool_]:
        """Of every row whether that column holds the value."""
        if self._has_index:
            return verdict_index.equal(self._storage, self._key, name, value)
        return np.asarray(pc.equal(self.column(name), value).to_numpy())

    def by_p_value(self) -> NDArray[np.int64]:
        """The places of all rows in the order of their p-values."""
        if self._has_index:
            return verdict_index.by_p_value(self._storage, self._key).astype(np.int64)
        return np.asarray(verdict_index.ascending(self.column("p_value")).to_numpy(), np.int64)

    @property
    def _has_index(self) -> bool:
        return self._storage.exists(verdict_index.index_key(self._key))

    def take(self, places: Order) -> pa.Table:
        if self._whole is not None:
            return self._whole.take(pa.array(places))
        numbers, within = np.unique(places // ROWS_A_BATCH, return_inverse=True)
        batches = [self._batches.get_batch(int(number)) for number in numbers]
        table = pa.Table.from_batches(batches, schema=self._batches.schema)
        starts = np.concatenate([[0], np.cumsum([len(batch) for batch in batches])])[:-1].astype(np.int64)
        return table.take(pa.array(starts[within] + places % ROWS_A_BATCH)) if len(places) else table
