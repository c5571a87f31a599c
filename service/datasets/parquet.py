"""Reads Parquet with encoded images, as Hugging Face writes it. Rows are read in order, a few at a time.

`parquet_process` runs this apart from everything else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.datasets.labelling import MAX_CLASSES
from service.datasets.layouts import no_such_split
from service.datasets.members import printable
from service.datasets.metadata import class_value, group_name
from service.datasets.parquet_pages import check_pages
from service.datasets.sample import MAX_NAME_BYTES, Limits, Sample
from service.datasets.unpack import FREE_BYTES, MAX_STREAM_RATIO
from service.errors import InvalidUpload, TooLarge

MAGIC = b"PAR1"  # at both ends
IMAGE_COLUMNS, LABEL_COLUMNS, GROUP_COLUMNS = ("image", "img"), ("label", "labels", "class", "cls"), ("group", "groups")
BATCH_ROWS = 64
BATCH_BYTES = 64 * 1024 * 1024
LABEL_BATCH_ROWS = 16_384
BUFFER_BYTES = 256 * 1024
MAX_FOOTER_BYTES = 64 * 1024 * 1024
MAX_COLUMNS = 1000
NO_LABEL = -1
# What pyarrow raises on a damaged or hostile file.
BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, IndexError, TypeError, KeyError, AttributeError)


@dataclass(frozen=True)
class Columns:
    """Which columns hold what."""

    image: str
    label: str
    group: str | None
    class_names: list[str] | None  # of ClassLabel: label i is called so


class ParquetFile:
    """A column of encoded images (a struct {bytes, path}, or bare bytes) and a column of labels."""

    def __init__(self, file: BinaryIO, limits: Limits, split: str | None = None) -> None:
        if split is not None and split != "all":
            raise no_such_split(split, ())
        self._limits = limits
        self._file = _open(file)
        self.num_samples = self._file.metadata.num_rows
        if self.num_samples > limits.max_images:
            raise TooLarge(f"The Parquet file holds {self.num_samples} rows; at most {limits.max_images} are accepted.")
        if self.num_samples < 1:
            raise InvalidUpload("The Parquet file holds no rows.", code="no_images")
        self._columns = _columns(self._file.schema_arrow)
        names = {self._columns.image, self._columns.label, *filter(None, [self._columns.group])}
        try:
            largest = check_pages(file, self._file.metadata, names, limits.max_unpacked_bytes)
        except BROKEN as error:
            raise _broken(error) from error
        self._batch_rows = min(BATCH_ROWS, max(1, BATCH_BYTES // largest))  # each row may be a whole page, or word
        self._most_bytes = max(FREE_BYTES, MAX_STREAM_RATIO * file.seek(0, 2))
        self._labels, self.classes = self._read_labels()

    def samples(self) -> Iterator[Sample]:
        names = [self._columns.image, *filter(None, [self._columns.group])]
        row = given = 0
        for batch in self._batches(names, self._batch_rows):
            images = batch.column(0)
            paths = [None] * len(images)
            if pa.types.is_struct(images.type):
                if images.type.get_field_index("path") >= 0:
                    paths = pc.struct_field(images, "path").to_pylist()
                images = pc.struct_field(images, "bytes")
            given += images.nbytes
            if given > self._most_bytes:
                raise TooLarge(
                    f"The Parquet file unfolds to more than {MAX_STREAM_RATIO} times its size. Nothing was kept.",
                    code="archive_bomb",
                )
            groups = self._groups(batch) if self._columns.group else [None] * len(images)
            for image, path, group in zip(images, paths, groups, strict=True):
                yield self._sample(row, image, path, group)
                row += 1

    def _groups(self, batch: Any) -> list[str | None]:
        try:
            return [group_name(value, str(self._columns.group)) for value in batch.column(1).to_pylist()]
        except UnicodeDecodeError as error:
            raise _broken(error) from error

    def _sample(self, row: int, image: Any, path: object, group: str | None) -> Sample:
        label = int(self._labels[row])
        name = f"[{row}]{path}" if _is_name(path) else f"[{row}]"
        problem = None
        limit = self._limits.max_image_bytes
        if not image.is_valid:
            problem = "the row holds no bytes (a path to a file elsewhere is not followed)"
        elif image.as_buffer().size > limit:
            problem = f"it is {image.as_buffer().size} bytes; at most {limit} are accepted"
        elif label == NO_LABEL:
            problem = "the row has no label"
        data = b"" if problem is not None else image.as_buffer().to_pybytes()
        return Sample(name, max(label, 0), data, group, problem)

    def _batches(self, names: list[str], rows: int) -> Iterator[Any]:
        try:
            for batch in self._file.iter_batches(batch_size=rows, columns=names, use_threads=False):
                yield batch.select(names)
        except BROKEN as error:
            raise _broken(error) from error

    def _read_labels(self) -> tuple[NDArray[np.int64], list[str]]:
        """(index of each row's class, classes): the ones that have images, in the order of their numbers or names."""
        found: list[NDArray[np.int64]] = []
        places: dict[Any, int] = {}
        for batch in self._batches([self._columns.label], LABEL_BATCH_ROWS):
            encoded = pc.dictionary_encode(_plain(batch.column(0)))
            mapping = np.array(
                [
                    NO_LABEL if _unlabelled(value) else places.setdefault(value, len(places))
                    for value in encoded.dictionary.to_pylist()
                ]
                + [NO_LABEL],
                np.int64,
            )
            codes = pc.fill_null(encoded.indices, len(mapping) - 1).to_numpy(zero_copy_only=False)
            found.append(mapping[codes])
            if len(places) > MAX_CLASSES:
                raise InvalidUpload(f"{self._columns.label} holds over {MAX_CLASSES} different values.")
        if not places:
            raise InvalidUpload(f"No row has a label in {self._columns.label!r}.", code="no_labels")
        labels = np.concatenate(found)
        if len(labels) != self.num_samples:
            raise _broken("its rows are not as many as its footer says")
        return self._in_order(labels, list(places))

    def _in_order(self, labels: NDArray[np.int64], values: list[Any]) -> tuple[NDArray[np.int64], list[str]]:
        names = self._columns.class_names
        if names is not None and all(isinstance(value, int) for value in values):
            if max(values) >= len(names):
                raise InvalidUpload(
                    f"A label is {max(values)}, but the metadata names only {len(names)} classes.",
                    code="labels_do_not_match",
                )
        else:
            values = [class_value(value, self._columns.label) for value in values]
            names = None
        if len({type(value) for value in values}) > 1:
            values = [str(value) for value in values]
        ordered = sorted(set(values))
        index_of = {value: index for index, value in enumerate(ordered)}
        mapping = np.array([*(index_of[value] for value in values), NO_LABEL], np.int64)
        return mapping[labels], [names[value] if names is not None else str(value) for value in ordered]


def _open(file: BinaryIO) -> Any:
    total = file.seek(0, 2)
    file.seek(max(0, total - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if total < 12 or tail[4:] != MAGIC or length + 12 > total:
        raise _broken("it has no footer; it may be cut short")
    if length > MAX_FOOTER_BYTES:
        raise TooLarge(f"The Parquet file's footer is {length} bytes; at most {MAX_FOOTER_BYTES} are accepted.")
    file.seek(0)
    try:
        opened = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        if opened.metadata.num_columns > MAX_COLUMNS:
            raise _broken(f"it has over {MAX_COLUMNS} columns")
        _ = opened.schema_arrow
    except BROKEN as error:
        raise _broken(error) from error
    return opened


def _columns(schema: Any) -> Columns:
    """By Hugging Face's metadata where there is some, else by name, else by type. Raises InvalidUpload."""
    features = _features(schema)
    usable = [field.name for field in schema if _holds_images(field.type)]
    told = [name for name, feature in features.items() if _kind(feature) == "Image" and name in usable]
    named = [name for name in IMAGE_COLUMNS if name in usable]
    image = next(iter([*told, *named, *(usable if len(usable) == 1 else [])]), None)
    names = set(schema.names)
    told = [name for name, feature in features.items() if _kind(feature) == "ClassLabel" and name in names]
    label = next(iter([*told, *(name for name in LABEL_COLUMNS if name in names)]), None)
    if image is None or label is None:
        raise InvalidUpload(
            f"The Parquet file has no column of {'encoded images' if image is None else 'labels'}: it needs `image` "
            f"(a struct with bytes, or bytes) and `label`, and has {', '.join(schema.names[:20])}.",
            code="missing_column",
        )
    if not _holds_labels(schema.field(label).type):
        raise InvalidUpload(
            f"{label!r} is {schema.field(label).type}; labels must be integers or names.", code="labels_not_integers"
        )
    group = next((name for name in GROUP_COLUMNS if name in names and _holds_labels(schema.field(name).type)), None)
    return Columns(image, label, group, _class_names(features.get(label)))


def _features(schema: Any) -> dict[str, Any]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _kind(feature: object) -> object:
    return feature.get("_type") if isinstance(feature, dict) else None


def _class_names(feature: object) -> list[str] | None:
    names = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(names, list) or not names or len(names) > MAX_CLASSES:
        return None
    fit = all(isinstance(name, str) and 0 < len(name) <= MAX_NAME_BYTES and printable(name) for name in names)
    return names if fit and len(set(names)) == len(names) else None


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: Any) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(inner) or pa.types.is_string(inner) or pa.types.is_large_string(inner))


def _plain(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _unlabelled(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, int) and value < 0)


def _is_name(path: object) -> bool:
    return isinstance(path, str) and 0 < len(path) <= MAX_NAME_BYTES // 4 and path.isprintable()


def _broken(why: object) -> InvalidUpload:
    return InvalidUpload(f"The Parquet file is damaged ({why}). Upload it again.", code="broken_parquet")
