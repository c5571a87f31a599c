"""What an archive says of its images, gathered one by one: their classes, which are then numbered, and their groups."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.datasets.archive import Member, Members
from service.errors import InvalidUpload

MAX_CLASSES = 10_000
NONE = -1

Codes = NDArray[np.int32]
T = TypeVar("T")


class Entry(NamedTuple):
    """One image of an archive. `member` is None where a table names a file that is not there."""

    path: str
    member: Member | None
    label: int
    group: str | None = None
    problem: str | None = None


@dataclass(frozen=True, eq=False)
class Labelled:
    """The images of an archive in order, with their classes; an object of each only while it is asked for."""

    classes: list[str]
    form: str  # imagefolder, metadata or webdataset
    _images: Members
    _labels: Codes
    _groups: Codes
    _group_names: list[str]
    _problems: dict[int, str]  # by place
    _missing: list[Entry]  # after the images

    def __len__(self) -> int:
        return len(self._images) + len(self._missing)

    def between(self, start: int, stop: int) -> Iterator[Entry]:
        """Those places from `start` up to `stop`, as far as there are any."""
        count = len(self._images)
        for place, member in enumerate(self._images.between(start, min(stop, count)), start):
            group = int(self._groups[place])
            name = self._group_names[group] if group != NONE else None
            yield Entry(member.name, member, int(self._labels[place]), name, self._problems.get(place))
        yield from self._missing[max(0, start - count) : max(0, stop - count)]


class Labelling:
    """The classes and groups of the images of an archive, added in the images' order."""

    def __init__(self, images: Members) -> None:
        self._images = images
        self._classes, self._groups = _Coded[str | int](), _Coded[str]()
        self._problems: dict[int, str] = {}
        self._missing: list[tuple[str, int, str | None, str]] = []

    def add(self, name: str | int | None, group: str | None = None, problem: str | None = None) -> None:
        """Of the next image; name: of its class. An image without one has a problem."""
        if problem is not None:
            self._problems[len(self._classes)] = problem
        self._classes.add(name)
        self._groups.add(group)

    def add_missing(self, path: str, name: str | int, group: str | None, problem: str) -> None:
        """A file that is not there."""
        self._missing.append((path, self._classes.code(name), group, problem))

    @property
    def num_classes(self) -> int:
        return len(self._classes.values)

    def numbered(self, form: str, order: dict[str | int, int] | None = None) -> Labelled:
        """Classes in sorted order, integers by their value; or in the order that the labels themselves give."""
        names = self._classes.values
        if not names:
            raise InvalidUpload("No image of the archive has a label.", code="no_labels")
        texts = [name for name in names if isinstance(name, str)]
        if texts and len(texts) < len(names):
            names = [str(name) for name in names]
        _refuse_many(len(set(names)))
        ordered = sorted(set(names), key=order.__getitem__) if order is not None else sorted(set(names))
        place = {name: index for index, name in enumerate(ordered)}
        numbers = np.array([*(place[name] for name in names), 0], np.int32)  # the last of those without a class
        missing = [
            Entry(path, None, int(numbers[code]), group, problem) for path, code, group, problem in self._missing
        ]
        labels, groups = numbers[self._classes.codes], self._groups
        classes = [str(name) for name in ordered]
        return Labelled(classes, form, self._images, labels, groups.codes, groups.values, self._problems, missing)


def _refuse_many(classes: int) -> None:
    if classes > MAX_CLASSES:
        raise InvalidUpload(
            f"The archive holds {classes} classes; at most {MAX_CLASSES} are accepted. Is each image in a folder of "
            "its own?"
        )


class _Coded(Generic[T]):
    """A column in which values come again and again: each is kept once, in the order in which they first came."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._of: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def values(self) -> list[T]:
        return list(self._of)

    @property
    def codes(self) -> Codes:
        """The place of each among the values, NONE where it has none. Nothing can be added while it is in use."""
        return np.frombuffer(self._codes, np.int32)

    def code(self, value: T) -> int:
        return self._of.setdefault(value, len(self._of))

    def add(self, value: T | None) -> None:
        self._codes.append(NONE if value is None else self.code(value))
