"""Hostile label tables and Parquet files: rows without end, pages and dictionaries beyond memory, columns in columns."""
# ruff: noqa: E501 (tables of bytes, a file an entry)

from __future__ import annotations

import io
import json
import struct
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.cases import TAKEN, Case, cut_at, zipped
from tests.service.uploads import FILES, LABELS, UPLOADS, parquet_of

PICTURES = {f"{i}.png": FILES[i] for i in range(4)}
ROWS = b"file_name,label\n0.png,a\n1.png,b\n2.png,a\n3.png,b\n"
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def csv(table: bytes, kind: str = "csv") -> bytes:
    return zipped({f"metadata.{kind}": table, **PICTURES})


def jsonl(line: bytes) -> bytes:
    return csv(b'{"file_name": "0.png", "label": "a"}\n' + line, "jsonl")


def many_rows(count: int) -> bytes:
    return ROWS + b"".join(b"%x,a\n" % i for i in range(count))


def many_tables() -> bytes:
    return zipped(
        {**{f"{i}/metadata.csv": bytes(120 << 20) if i == 0 else b"\n" * (60 << 20) for i in range(4)}, **PICTURES}
    )


TABLES = {
    "nul": ROWS + b"a\0b.png,a\n", "nul-label": ROWS.replace(b",a", b",\0"), "nul-file": bytes(4096), "utf-16": ROWS.decode().encode("utf-16"),
    "not-utf8": ROWS + b"\xff,a\n", "line-2-mib": ROWS + b"x" * (2 << 20), "field-200-kib": ROWS + b'"' + b"x" * 200_000 + b'",a\n',
    "quote-open": ROWS + b'"0.png,a\n' * 50, "out": ROWS + b"../../0.png,a\n", "absolute": ROWS + b"/etc/passwd,a\n", "backslash": ROWS + b"..\\0.png,a\n",
    "no-header": b"0.png,a\n1.png,b\n", "header-only": b"file_name,label\n", "empty": b"", "header-200000-columns": b"file_name,label" + b"," * 200_000 + b"\n0.png,a\n",
    "header-named-columns": b"file_name,label," + b",".join(b"%d" % i for i in range(100_000)) + b"\n" + (b"0.png,a" + b"," * 900_000 + b"\n") * 12,
    "label-300": ROWS + b"0.png," + b"x" * 300 + b"\n", "label-control": ROWS + b"0.png,\x1b[2J\n", "label-nan": ROWS + b"0.png,nan\n",
    "label-long-number": ROWS + b"0.png,1" + b"0" * 5000 + b"\n", "carriage-returns": ROWS.replace(b"\n", b"\r") * 9, "bom-twice": b"\xef\xbb\xbf" * 2 + ROWS,
    "rows-of-commas": ROWS + (b"," * 1_000_000 + b"\n") * 60, "group-control": b"file_name,label,group\n0.png,a,\x1b\n1.png,b,x\n",
}  # fmt: skip
FORMULA = {
    "formula": b"file_name,label\n0.png,\"=cmd|' /C calc'!A0\"\n1.png,@SUM(1)\n2.png,+1\n3.png,-1+1\n",
    "markup": b"file_name,label\n0.png,<img src=x onerror=alert(1)>\n1.png,b\n2.png,b\n3.png,b\n",
    "same-file-twice": ROWS + b"0.png,b\n",
    "unknown-column": ROWS.replace(b"label", b"label,__class__"),
}
LINES = {
    "deep": b"[" * 500_000, "array": b"[]", "number": b"1" * 5000, "name-number": b'{"file_name": 1, "label": "a"}', "label-object": b'{"file_name": "1.png", "label": {}}',
    "cut": b'{"file_name"', "surrogate-name": b'{"file_name": "\\ud800", "label": "a"}', "surrogate-label": b'{"file_name": "1.png", "label": "\\ud800"}',
    "surrogate-group": b'{"file_name": "1.png", "label": "b", "group": "\\ud800"}', "group-object": b'{"file_name": "1.png", "label": "b", "group": {"a": "\\u0000"}}',
    "nan": b'{"file_name": "1.png", "label": NaN}', "infinity": b'{"file_name": "1.png", "label": 1e999}', "true": b'{"file_name": "1.png", "label": true}',
    "same-key-twice": b'{"file_name": "../x", "file_name": "1.png", "label": "b"}', "nul": b"\0", "2-mib": b" " * (2 << 20) + b"{}",
}  # fmt: skip


def parquet(table: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def images(files: list[bytes], labels: Any = None, **more: Any) -> Any:
    pictures = pa.array([{"bytes": data, "path": "../../x"} for data in files], STRUCT)
    return pa.table(
        {"image": pictures, "label": [i % 2 for i in range(len(files))] if labels is None else labels, **more}
    )


def wide_pages(count: int, size: int) -> bytes:
    """Every image a page of its own that unfolds to next to nothing but its length."""
    sink = io.BytesIO()
    table = images([bytes(size)])
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", use_dictionary=False, write_statistics=False
    ) as writer:
        for _ in range(count):
            writer.write_table(table)
    return sink.getvalue()


def one_word(rows: int, size: int) -> bytes:
    """Rows that all mean one entry of the dictionary, which is long."""
    codes = pa.array([0] * rows, pa.int32())
    pictures = pa.DictionaryArray.from_arrays(codes, pa.array([bytes(size)], pa.binary()))
    table = pa.table({"image": pictures, "label": [i % 2 for i in range(rows)]})
    return parquet(
        table, compression="zstd", dictionary_pagesize_limit=1 << 30, write_statistics=False, store_schema=False
    )


def tiny_pages(rows: int) -> bytes:
    return parquet(
        images([FILES[0]] * rows), data_page_size=1, write_batch_size=1, use_dictionary=False, write_statistics=False
    )


def many_groups(rows: int) -> bytes:
    return parquet(images([FILES[0]] * rows), row_group_size=1)


def nested(depth: int) -> bytes:
    kind, value = pa.int8(), 1
    for _ in range(depth):
        kind, value = pa.struct([("a", kind)]), {"a": value}  # type: ignore[assignment]
    return parquet(images(FILES, deep=pa.array([value] * 8, kind)))


def named(names: object) -> bytes:
    told = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
    return parquet(images(FILES).replace_schema_metadata({"huggingface": json.dumps(told)}))


def not_text(column: str) -> bytes:
    bad = pa.Array.from_buffers(
        pa.string(), 8, [None, pa.py_buffer(struct.pack("<9i", *range(9))), pa.py_buffer(b"\xff" * 8)]
    )
    return parquet(images(FILES, bad) if column == "label" else images(FILES, **{column: bad}))


def footer(data: bytes, length: int) -> bytes:
    return data[:-8] + struct.pack("<L", length) + b"PAR1"


PARQUET = UPLOADS["parquet"]
CASES = [
    *(Case(f"csv-{key}", partial(csv, data)) for key, data in TABLES.items()),
    *(Case(f"csv-{key}", partial(csv, data), (TAKEN,)) for key, data in FORMULA.items()),
    *(Case(f"jsonl-{key}", partial(jsonl, line)) for key, line in LINES.items()),
    Case("csv-3-million-rows", lambda: csv(many_rows(3_000_000)), ("bad_metadata",)),
    Case("csv-many-tables", many_tables, ("bad_metadata",)),
    *(Case(f"parquet-cut-{percent}", lambda percent=percent: cut_at(PARQUET, percent / 100), ("broken_parquet",)) for percent in (1, 25, 50, 75, 99)),
    *(Case(f"parquet-footer-{length}", partial(footer, PARQUET, length), ("broken_parquet",)) for length in (0, 1, 100, 1 << 20, 0xFFFFFFFF)),
    Case("parquet-encrypted-magic", lambda: PARQUET[:-4] + b"PARE", ("broken_parquet",)),
    Case("parquet-zeros", lambda: b"PAR1" + bytes(1 << 20) + b"PAR1", ("broken_parquet",)),
    Case("parquet-pages-60-mib", partial(wide_pages, 64, 60 << 20)),
    Case("parquet-pages-190-mib", partial(wide_pages, 4, 190 << 20)),
    Case("parquet-dictionary-60-mib", partial(one_word, 2_000, 60 << 20)),
    Case("parquet-dictionary-1-mib", partial(one_word, 200_000, 1 << 20)),
    Case("parquet-8000-pages", partial(tiny_pages, 8_000), (TAKEN,)),
    Case("parquet-2000-row-groups", partial(many_groups, 2_000), (TAKEN,)),
    Case("parquet-nested-50", partial(nested, 50), (TAKEN,)),
    Case("parquet-nested-500", partial(nested, 500)),
    Case("parquet-2000-columns", lambda: parquet(images(FILES, **{f"c{i}": [0] * 8 for i in range(2000)})), ("broken_parquet",)),
    Case("parquet-names-surrogate", partial(named, ["\ud800", "\udfff"])),
    Case("parquet-names-control", partial(named, ["a\0", "\x1b[2J"])),
    Case("parquet-names-deep", partial(named, json.loads("[" * 400 + "]" * 400))),
    Case("parquet-names-object", partial(named, {"0": "a"})),
    Case("parquet-label-not-utf8", partial(not_text, "label")),
    Case("parquet-group-not-utf8", partial(not_text, "group")),
    Case("parquet-group-control", lambda: parquet(images(FILES, group=["\x1b\0"] * 8))),
    Case("parquet-label-bytes", lambda: parquet(images(FILES, [b"\xff"] * 8)), ("labels_not_integers",)),
    Case("parquet-label-extreme", lambda: parquet(images(FILES, pa.array([0, (1 << 64) - 1] * 4, pa.uint64())))),
    Case("parquet-no-rows", lambda: parquet(images([])), ("no_images",)),
    Case("parquet-image-not-bytes", lambda: parquet(pa.table({"image": ["/etc/passwd"] * 8, "label": LABELS})), ("missing_column",)),
    Case("parquet-path-only", lambda: parquet_of(files=[None] * 8), ("too_many_rejected",)),
    Case("parquet-column-twice", lambda: parquet(pa.table([pa.array(FILES), pa.array(LABELS), pa.array(LABELS)], names=["image", "label", "label"]))),
]  # fmt: skip
