"""Verdict tables: reasons, orders, pages, CSV that no spreadsheet runs, and tables of earlier jobs."""

from __future__ import annotations

import csv
import io
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from httpx import Client
from hypothesis import given
from hypothesis import settings as deadlines
from hypothesis import strategies as st

from service.app import create_app
from service.auth import ensure_admin_key
from service.db import Database
from service.errors import InvalidInput
from service.jobs.create import add_job
from service.jobs.verdict_index import index_key
from service.jobs.verdict_pages import MOST_ORDERS, Orders, VerdictPages
from service.jobs.verdicts import ROWS_A_BATCH, Verdict, VerdictTable, paged_key, write_parts
from service.settings import Settings
from service.storage import LocalStorage
from tests.service.live import serving

NAMES = ("residual_energy", "label_loss", "poison_gain")
KEY = "jobs/j/1/verdicts.parquet"
ROWS = 2 * ROWS_A_BATCH + 100


def table(count: int = ROWS, seed: int = 0, **changes: Any) -> VerdictTable:
    rng = np.random.default_rng(seed)
    own = rng.integers(1, 21, (count, len(NAMES))) / 20  # few values, so that there are ties to break
    flagged = own.min(axis=1, initial=1) <= 0.1
    columns: dict[str, Any] = {
        "sample_ids": [f"{i:064x}" for i in range(count)],
        "paths": [f"{int(order):05d}.png" for order in rng.permutation(count)],
        "labels": [f"class {i % 7}" for i in range(count)],
        "verdicts": np.where(flagged, "quarantine", "keep"),
        "p_values": own.min(axis=1, initial=1),
        "names": NAMES,
        "scores": rng.random((count, len(NAMES)), np.float32),
        "own_p": own,
        "spoke": (own <= 0.1) & flagged[:, None],
    }
    return VerdictTable.of(**(columns | changes))


@pytest.fixture
def pages(storage: LocalStorage) -> VerdictPages:
    table().write(storage, KEY)
    return VerdictPages(storage, KEY, Orders())


def every_row(
    pages: VerdictPages, verdict: Verdict | None, sort: str, limit: int = 1000, label: str | None = None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while True:
        some, total = pages.page(verdict, sort, len(rows), limit, label=label)
        rows += some
        if not some:
            assert len(rows) == total
            return rows


def test_reasons_are_the_detectors_that_spoke_the_most_extreme_first() -> None:
    own = np.array([[0.02, 0.01, 0.9], [0.01, 0.01, 0.001], [0.5, 0.5, 0.5], [0.01, 0.5, 0.02]])
    spoke = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1]], bool)
    told = table(4, own_p=own, spoke=spoke, p_values=own.min(axis=1), scores=np.zeros((4, 3), np.float32)).table
    assert told["reasons"].to_pylist() == [
        ["label_loss", "residual_energy"],
        ["poison_gain", "residual_energy", "label_loss"],
        [],
        ["poison_gain", "label_loss"],
    ]


def test_a_row_has_every_detectors_score_and_p_value(pages: VerdictPages) -> None:
    rows, total = pages.page(None, "index", ROWS_A_BATCH - 1, 3)
    assert total == ROWS and [row["index"] for row in rows] == [ROWS_A_BATCH - 1, ROWS_A_BATCH, ROWS_A_BATCH + 1]
    expected = table().table.slice(ROWS_A_BATCH, 1).to_pylist()[0]
    assert rows[1] == {
        "index": ROWS_A_BATCH,
        "sample_id": f"{ROWS_A_BATCH:064x}",
        "path": expected["path"],
        "label": expected["label"],
        "verdict": expected["verdict"],
        "p_value": expected["p_value"],
        "scores": {name: expected[f"score.{name}"] for name in NAMES},
        "p_values": {name: expected[f"p.{name}"] for name in NAMES},
        "reasons": expected["reasons"],
        "override": None,
    }


@pytest.mark.parametrize("verdict", [None, Verdict.QUARANTINE, Verdict.REFORM])
@pytest.mark.parametrize("sort", ["index", "p_value", "path", "label", "score.label_loss", "score"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("label", "index"), [(None, True), ("class 3", True), ("class 3", False), (None, False)])
def test_every_order_is_that_of_a_plain_sort(
    pages: VerdictPages,
    storage: LocalStorage,
    verdict: Verdict | None,
    sort: str,
    reverse: bool,
    label: str | None,
    index: bool,
) -> None:
    if not index:  # a job of before there was one
        storage.path(index_key(KEY)).unlink()

    def key(row: dict[str, Any]) -> Any:
        name = {"score": NAMES[0]}.get(sort, sort.removeprefix("score."))
        return row["scores"][name] if sort.startswith("score") else row[sort]

    every = every_row(pages, None, "index")
    plain = [row for row in every if verdict in (None, row["verdict"]) and label in (None, row["label"])]
    expected = sorted(plain, key=lambda row: row["index"])
    expected.sort(key=key, reverse=reverse)
    told = every_row(pages, verdict, f"-{sort}" if reverse else sort, label=label)
    assert [row["index"] for row in told] == [row["index"] for row in expected]
    assert len(expected) < len(every) or (verdict, label) == (None, None)


def test_a_table_written_in_parts_is_the_one_written_whole(storage: LocalStorage) -> None:
    labels = np.repeat(["b", "a", "c"], [ROWS_A_BATCH + 7, ROWS_A_BATCH - 7, 100])  # another first in every part
    whole = table(labels=labels.tolist())
    whole.write(storage, "whole.parquet")
    parts = [VerdictTable(whole.table.slice(start, ROWS_A_BATCH)) for start in range(0, ROWS, ROWS_A_BATCH)]
    write_parts(storage, "parts.parquet", NAMES, iter(parts))
    assert storage.read("parts.arrow") == storage.read("whole.arrow")
    assert VerdictTable.read(storage, "parts.parquet").table == whole.table
    found, expected = (VerdictPages(storage, f"{name}.parquet", Orders()) for name in ("parts", "whole"))
    for label in ("a", "b", "c", None):
        assert every_row(found, None, "p_value", label=label) == every_row(expected, None, "p_value", label=label)
    assert len(every_row(found, None, "index", label="a")) == ROWS_A_BATCH - 7


def test_a_part_after_one_of_no_whole_batches_is_refused(storage: LocalStorage) -> None:
    with pytest.raises(ValueError, match="follows 5, which are no whole batches"):
        write_parts(storage, KEY, NAMES, iter([table(5), table(5)]))
    assert not storage.exists(KEY) and not storage.exists(paged_key(KEY))


def test_an_unknown_order_names_those_there_are(pages: VerdictPages) -> None:
    for sort in ("beauty", "score.beauty", "--index", ""):
        with pytest.raises(
            InvalidInput, match=r"use one of index, p_value, path, label, score\.residual_energy"
        ) as told:
            pages.page(None, sort, 0, 10)
        assert told.value.code == "bad_sort"


@pytest.mark.parametrize("count", [0, 1, ROWS_A_BATCH])
def test_a_table_of_any_length_ends_where_it_ends(storage: LocalStorage, count: int) -> None:
    table(count).write(storage, KEY)
    pages = VerdictPages(storage, KEY, Orders())
    for sort in ("index", "-p_value"):
        assert len(every_row(pages, None, sort)) == count
        assert pages.page(None, sort, count + 5, 10) == ([], count)


def test_columns_in_chunks_of_any_length_make_whole_pages(storage: LocalStorage) -> None:
    """As those of a manifest do, whose row groups are its shards."""
    labels = pa.chunked_array([[f"class {i}"] * size for i, size in enumerate((64, 700, 1500))])
    chunked = table(2264, labels=labels)
    chunked.write(storage, KEY)
    rows, count = VerdictPages(storage, KEY, Orders()).page(None, "index", 0, 2264)
    assert count == 2264
    assert [row["index"] for row in rows] == list(range(2264))
    assert [row["label"] for row in rows] == labels.to_pylist()


def test_pages_of_any_length_of_earlier_jobs_are_not_believed(storage: LocalStorage) -> None:
    table(300).write(storage, KEY)
    whole = table(300).table
    with storage.writing(paged_key(KEY)) as file, ipc.new_file(file, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=64)
    rows, count = VerdictPages(storage, KEY, Orders()).page(None, "-index", 0, 300)
    assert count == 300
    assert [row["index"] for row in rows] == list(range(299, -1, -1))


def test_a_job_of_before_the_panel_is_read_in_the_new_form(storage: LocalStorage) -> None:
    old = pa.table(
        {
            "index": [0, 1],
            "sample_id": ["a", "b"],
            "path": ["0.png", "1.png"],
            "label": ["x", "y"],
            "verdict": ["quarantine", "keep"],
            "p_value": [0.005, 0.7],
            "score": [9.0, 0.1],
            "detector": ["residual_energy"] * 2,
            "reason": ["residual_energy_conformal", None],
        }
    )
    sink = io.BytesIO()
    pq.write_table(old, sink)
    storage.write(KEY, sink.getvalue())
    rows, total = VerdictPages(storage, KEY, Orders()).page(None, "score.residual_energy", 0, 10)
    assert total == 2 and [row["index"] for row in rows] == [1, 0]
    assert [row["reasons"] for row in rows] == [[], ["residual_energy"]]
    assert rows[1]["scores"] == {"residual_energy": 9.0} and rows[1]["p_values"] == {"residual_energy": 0.005}
    assert VerdictTable.read(storage, KEY).table.schema == table(1, names=NAMES[:1], **one_detector()).table.schema


def one_detector() -> dict[str, Any]:
    one = np.ones((1, 1))
    return {"scores": one, "own_p": one, "spoke": one > 1}


def test_orders_are_sorted_once_and_the_oldest_forgotten() -> None:
    made: list[str] = []

    def maker(name: str) -> Any:
        def make() -> Any:
            made.append(name)
            return np.arange(100)

        return make

    orders = Orders(most_bytes=1000)
    for name in "aabacab":  # two of 400 bytes fit: c drives b out, and b then c
        orders.get((name,), maker(name))
    assert made == ["a", "b", "c", "b"] and len(orders) == 2 and orders.nbytes <= 1000
    assert np.array_equal(Orders(most_bytes=10).get(("a",), maker("a")), np.arange(100))


def test_classes_without_images_fill_no_memory(pages: VerdictPages) -> None:
    for number in range(MOST_ORDERS):
        pages.orders.get((str(number),), lambda: np.zeros(0, np.int64))
    assert pages.page(None, "p_value", 0, 10, label="none") == ([], 0)
    assert len(pages.orders) == MOST_ORDERS


def test_a_page_does_not_read_the_table(storage: LocalStorage) -> None:
    table(100_000).write(storage, KEY)
    pages = VerdictPages(storage, KEY, Orders())
    pages.page(None, "p_value", 0, 100)
    storage.path(KEY).unlink()  # what is read whole is not needed for a page
    began = time.process_time()
    for start in range(0, 10_000, 1000):
        assert len(pages.page(None, "p_value", start, 100)[0]) == 100
    assert time.process_time() - began < 1.0


DANGEROUS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"]


def test_no_cell_of_the_csv_is_a_formula() -> None:
    count = len(DANGEROUS)
    told = table(count, paths=DANGEROUS, labels=DANGEROUS)
    rows = list(csv.DictReader(io.StringIO(b"".join(told.csv()).decode(), newline="")))
    assert [row["path"] for row in rows] == ["'" + path for path in DANGEROUS] == [row["label"] for row in rows]


@deadlines(deadline=None)  # the first call starts Arrow's threads
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=5))
def test_the_csv_says_what_the_table_says(paths: list[str]) -> None:
    told = table(len(paths), paths=paths)
    order = np.arange(len(paths))[::-1].copy()
    rows = list(csv.DictReader(io.StringIO(b"".join(told.csv(order)).decode(), newline="")))
    assert [row["path"] for row in rows] == [
        "'" + path if path[:1] in tuple("=+-@\t\r\n") else path for path in reversed(paths)
    ]
    expected = told.table.to_pylist()[::-1]
    assert [row["reasons"] for row in rows] == [";".join(row["reasons"]) for row in expected]
    assert [float(row["score.label_loss"]) for row in rows] == [row["score.label_loss"] for row in expected]


@pytest.fixture
def client_and_job(settings: Settings, database: Database, storage: LocalStorage) -> Any:
    with database.transaction() as session:
        job = add_job(session, "sanitise", inputs={}, params={}, max_attempts=3)
        job.state, job.attempt = "succeeded", 1
        job_id = job.id
    table(500).write(storage, f"jobs/{job_id}/1/verdicts.parquet")
    assert storage.exists(paged_key(f"jobs/{job_id}/1/verdicts.parquet"))
    with serving(create_app(settings), key=ensure_admin_key(settings)) as client:
        yield client, job_id


def test_verdicts_over_http(client_and_job: tuple[Client, str]) -> None:
    client, job_id = client_and_job
    url = f"/v1/jobs/{job_id}/verdicts"
    rows, cursor = [], None
    while True:
        params = {"verdict": "quarantine", "sort": "p_value", "limit": "40"} | ({"cursor": cursor} if cursor else {})
        page = client.get(url, params=params).json()
        rows += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    expected = [row for row in table(500).table.to_pylist() if row["verdict"] == "quarantine"]
    expected.sort(key=lambda row: row["p_value"])
    assert len(rows) > 40 and [row["index"] for row in rows] == [row["index"] for row in expected]
    told = client.get(url, params={"verdict": "quarantine", "sort": "p_value"}, headers={"Accept": "text/csv"})
    assert [int(r["index"]) for r in csv.DictReader(io.StringIO(told.text))] == [row["index"] for row in rows]
    whole = client.get(url, headers={"Accept": "application/vnd.apache.parquet"}).content
    assert pq.read_table(pa.BufferReader(whole)).select(table(500).table.column_names).equals(table(500).table)
    one = client.get(url, params={"label": "class 3", "sort": "-p_value", "limit": "1000"}).json()["items"]
    assert {row["label"] for row in one} == {"class 3"} and len(one) == sum(i % 7 == 3 for i in range(500))
    assert client.get(url, params={"sort": "beauty"}).json()["code"] == "bad_sort"
