"""Labels from `metadata.csv` or `metadata.jsonl` beside the images, as Hugging Face's imagefolder reads them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from service.datasets.archive import Archive, Member, Members
from service.datasets.decode import ImageRejected
from service.datasets.labelling import Labelled, Labelling
from service.datasets.members import checked_name, printable
from service.datasets.sample import MAX_NAME_BYTES
from service.errors import InvalidUpload

TABLES = ("metadata.csv", "metadata.jsonl")
MAX_TABLE_BYTES = 128 * 1024 * 1024
MAX_LINE_BYTES = 1024 * 1024
FREE_TABLE_BYTES, MAX_ROW_BYTES = 2 * 1024 * 1024, 4096  # of all tables, and more for each image
FILE_COLUMN, LABEL_COLUMNS, GROUP_COLUMNS = "file_name", ("label", "labels", "class"), ("group", "groups")
MAX_LABEL_CHARS = 200
MAX_COLUMNS = 1000


def tables_of(members: Members) -> list[Member]:
    are_tables = (name.rsplit("/", 1)[-1] in TABLES for name in members.names())
    return list(members.where(np.fromiter(are_tables, np.bool_, len(members))))


def check_sizes(tables: list[Member], images: int) -> None:
    """Raises InvalidUpload where the tables are far larger than that many images need."""
    size = sum(table.size for table in tables)
    allowed = min(MAX_TABLE_BYTES, FREE_TABLE_BYTES + MAX_ROW_BYTES * images)
    if size > allowed:
        raise InvalidUpload(
            f"The label tables are {size} bytes for {images} images; at most {allowed} are accepted. "
            "Leave out the columns that hold no labels.",
            code="bad_metadata",
        )


def has_labels(archive: Archive, table: Member) -> bool:
    """Whether its rows carry labels; without them the folders do."""
    first = next(_rows(archive, table), {})
    return _first(first, LABEL_COLUMNS) is not None


def by_tables(archive: Archive, tables: list[Member], images: Members) -> Labelled:
    """The images in the order of their paths; one that no table names is a row of the report, and so is the reverse."""
    told: dict[str, tuple[str | int, str | None]] = {}
    for table in tables:
        folder = table.name.rpartition("/")[0]
        for number, row in enumerate(_rows(archive, table), start=1):
            name, label, group = _parsed(table, number, row)
            told[f"{folder}/{name}" if folder else name] = label, group
    labelling = Labelling(images)
    for path in images.names():
        labelled = told.pop(path, None)
        if labelled is None:
            labelling.add(None, problem="no table names it, so it has no label")
        else:
            labelling.add(*labelled)
    if told:  # what is no image may still be there
        for path in archive.members.names():
            told.pop(path, None)
    for path, (label, group) in told.items():
        labelling.add_missing(path, label, group, "a table names it, but the archive does not hold it")
    return labelling.numbered("metadata")


def _rows(archive: Archive, table: Member) -> Iterator[dict[str, Any]]:
    try:
        data = io.BytesIO(archive.read(table, MAX_TABLE_BYTES))
    except ImageRejected as error:
        raise InvalidUpload(f"{table.name} cannot be read: {error}.", code="bad_metadata") from error
    try:
        if table.name.endswith(".csv"):
            rows = csv.DictReader(_lines(data), strict=True)
            if len(rows.fieldnames or ()) > MAX_COLUMNS:
                raise ValueError(f"it has over {MAX_COLUMNS} columns")
            yield from rows
        else:
            yield from (_object(json.loads(line)) for line in _lines(data) if line.strip())
    except UnicodeDecodeError as error:
        raise InvalidUpload(f"{table.name} is not UTF-8. Save it again as UTF-8.", code="bad_metadata") from error
    except (csv.Error, ValueError, RecursionError) as error:
        raise InvalidUpload(f"{table.name} is damaged ({error}).", code="bad_metadata") from error


def _lines(data: io.BytesIO) -> Iterator[str]:
    encoding = "utf-8-sig"
    while line := data.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES:
            raise ValueError(f"a line is over {MAX_LINE_BYTES} bytes")
        yield line.decode(encoding)
        encoding = "utf-8"


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a line is not an object")
    return value


def _parsed(table: Member, number: int, row: dict[str, Any]) -> tuple[str, str | int, str | None]:
    """(file name, label, group) of a row. Raises InvalidUpload."""
    name, label, group = row.get(FILE_COLUMN), _first(row, LABEL_COLUMNS), _first(row, GROUP_COLUMNS)
    if not isinstance(name, str) or not name:
        raise InvalidUpload(f"Row {number} of {table.name} names no {FILE_COLUMN}.", code="bad_metadata")
    if label is None:
        raise InvalidUpload(
            f"Row {number} of {table.name} has no label: a column named {' or '.join(LABEL_COLUMNS)} is needed.",
            code="bad_metadata",
        )
    path = checked_name(name)
    return (
        path.removeprefix("./"),
        class_value(label, f"Row {number} of {table.name}"),
        group_name(group, f"Row {number} of {table.name}"),
    )


def group_name(group: object, where: str) -> str | None:
    """Raises InvalidUpload for what is no name."""
    if group is None:
        return None
    text = str(group)
    if len(text) > MAX_NAME_BYTES or not printable(text):
        raise InvalidUpload(f"{where}: {text[:60]!r} cannot name a group.", code="bad_metadata")
    return text


def class_value(label: object, where: str) -> str | int:
    """A label as a class's name, or as its number where it is one. Raises InvalidUpload."""
    if isinstance(label, bool) or not isinstance(label, int | float | str):
        raise InvalidUpload(f"{where}: a label must be a number or a name, not {label!r:.60}.", code="bad_metadata")
    if isinstance(label, float):
        if not math.isfinite(label) or label != int(label):
            raise InvalidUpload(
                f"{where}: {label} is not a class. Labels are whole numbers or names.", code="bad_metadata"
            )
        return int(label)
    text = str(label).strip()
    if isinstance(label, str) and (not text or len(text) > MAX_LABEL_CHARS or not text.isprintable()):
        raise InvalidUpload(f"{where}: {text[:60]!r} cannot name a class.", code="bad_metadata")
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdecimal() and len(digits) < 19 and str(int(text)) == text:
        return int(text)
    return text


def _first(row: dict[str, Any], columns: tuple[str, ...]) -> Any:
    found = (row.get(column) for column in columns)
    return next((value for value in found if value is not None and value != ""), None)
