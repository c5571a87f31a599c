"""WebDataset: the files of one sample share a key, such as 0001.jpg with 0001.cls or 0001.json, in any order."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from service.datasets.archive import Archive, Member, Members
from service.datasets.decode import ImageRejected
from service.datasets.labelling import Labelled, Labelling
from service.datasets.members import is_clutter
from service.datasets.metadata import class_value, group_name
from service.errors import InvalidUpload

LABEL_SUFFIXES = ("cls", "json")
LABEL_KEYS, NAME_KEYS = ("label", "cls", "class"), ("class_name", "label_name")
MAX_LABEL_BYTES = 64 * 1024


def key_of(name: str) -> tuple[str, str]:
    """(key, suffix): a key ends at the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    key, _, suffix = base.partition(".")
    return f"{folder}{slash}{key}", suffix.lower()


def labels_of(members: Members, images: Members) -> dict[str, Member]:
    """The label file of every key that also has an image, `.json` before `.cls`: it may hold the class's name."""
    may_label = (name.lower().endswith(LABEL_SUFFIXES) and not is_clutter(name) for name in members.names())
    files = members.where(np.fromiter(may_label, np.bool_, len(members)))
    if not len(files):
        return {}
    keys = {key_of(name)[0] for name in images.names()}
    found: dict[str, Member] = {}
    for member in files:
        key, suffix = key_of(member.name)
        if key in keys and suffix in LABEL_SUFFIXES and (key not in found or suffix == "json"):
            found[key] = member
    return found


def are_labels(archive: Archive, images: Members, labels: dict[str, Member]) -> bool:
    """Whether these files label the images: most of them, and with what a label needs."""
    if not labels or 2 * len(labels) < len(images):
        return False
    first = next(iter(labels.values()))
    if first.name.lower().endswith("cls"):
        return True
    told = _content(archive, first)
    return not isinstance(told, dict) or any(told.get(key) is not None for key in LABEL_KEYS + NAME_KEYS)


def by_keys(archive: Archive, images: Members, labels: dict[str, Member]) -> Labelled:
    """The images in the order of their keys; one without a label is a row of the report."""
    numbers: dict[str | int, int] = {}
    seen: set[str] = set()
    labelling = Labelling(images)
    for path in images.names():
        key = key_of(path)[0]
        if key in seen:
            raise InvalidUpload(f"Two images of the archive share the key {key!r}.", code="duplicate_key")
        seen.add(key)
        if key not in labels:
            labelling.add(None, problem="no .cls or .json of its key gives it a label")
            continue
        name, number, group = _label(archive, labels[key])
        if number is not None and numbers.setdefault(name, number) != number:
            raise InvalidUpload(
                f"{labels[key].name} gives the class {name!r} another number than the files before it.",
                code="bad_metadata",
            )
        labelling.add(name, group)
    complete = len(numbers) == labelling.num_classes
    return labelling.numbered("webdataset", numbers if complete and numbers else None)


def _label(archive: Archive, member: Member) -> tuple[str | int, int | None, str | None]:
    """(class, its number where both are given, group). Raises InvalidUpload."""
    told = _content(archive, member)
    if not isinstance(told, dict):
        return class_value(told, member.name), None, None
    number = next((told[key] for key in LABEL_KEYS if told.get(key) is not None), None)
    name = next((told[key] for key in NAME_KEYS if told.get(key) is not None), None)
    group = group_name(told.get("group"), member.name)
    if number is None and name is None:
        raise InvalidUpload(
            f"{member.name} holds no label: it needs one of {', '.join((*LABEL_KEYS, *NAME_KEYS))}.",
            code="bad_metadata",
        )
    if name is None:
        return class_value(number, member.name), None, group
    place = number if isinstance(number, int) and not isinstance(number, bool) else None
    if not isinstance(name, str):
        return class_value(name, member.name), None, group
    class_value(name, member.name)
    return name, place, group


def _content(archive: Archive, member: Member) -> Any:
    try:
        text = archive.read(member, MAX_LABEL_BYTES).decode("utf-8")
        return json.loads(text) if member.name.lower().endswith("json") else text
    except (ImageRejected, ValueError, RecursionError) as error:
        raise InvalidUpload(f"{member.name} cannot be read: {error}.", code="bad_metadata") from error
