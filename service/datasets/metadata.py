"""Labels from `metadata.csv` or `metadata.jsonl` beside the images, as Hugging Face's imagefolder reads them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from service.datasets.decode import ImageRejected
from service.datasets.layouts import Given, Labelled, numbered
from service.datasets.members import Archive, Member, checked_name
from service.errors import InvalidUpload

TABLES = ("metadata.csv", "metadata.jsonl")
MAX_TABLE_BYTES = 128 * 1024 * 1024
MAX_LINE_BYTES = 1024 * 1024
FILE_COLUMN, LABEL_COLUMNS, GROUP_COLUMNS = "file_name", ("label", "labels", "class"), ("group", "groups")
MAX_LABEL_CHARS = 200


def tables_of(members: Iterable[Member]) -> list[Member]:
    return [member for member in members if member.name.rsplit("/", 1)[-1] in TABLES]


def has_labels(archive: Archive, table: Member) -> bool:
    """Whether its rows carry labels; without them the folders do."""
    first = next(_rows(archive, table), {})
    return _first(first, LABEL_COLUMNS) is not None


def by_tables(archive: Archive, tables: list[Member], images: list[Member]) -> Labelled:
    """The images in the order of their paths; one that no table names is a row of the report, and so is the reverse."""
    told: dict[str, tuple[str | int, str | None]] = {}
    for table in tables:
        folder = table.name.rpartition("/")[0]
        for number, row in enumerate(_rows(archive, table), start=1):
            name, label, group = _parsed(table, number, row)
            told[f"{folder}/{name}" if folder else name] = label, group
    there = {member.name for member in archive.members}
    given = []
    for image in images:
        labelled = told.pop(image.name, None)
        if labelled is None:
            given.append(Given(image.name, image, None, None, "no table names it, so it has no label"))
        else:
            given.append(Given(image.name, image, *labelled))
    given += [
        Given(name, None, known, whole, "a table names it, but the archive does not hold it")
        for name, (known, whole) in told.items()
        if name not in there
    ]
    return numbered(given, "metadata")


def _rows(archive: Archive, table: Member) -> Iterator[dict[str, Any]]:
    try:
        data = io.BytesIO(archive.read(table, MAX_TABLE_BYTES))
    except ImageRejected as error:
        raise InvalidUpload(f"{table.name} cannot be read: {error}.", code="bad_metadata") from error
    try:
        if table.name.endswith(".csv"):
            yield from csv.DictReader(_lines(data), strict=True)
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
        None if group is None else str(group),
    )


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
