"""Which image of an archive has which label: class folders, metadata tables, WebDataset keys. Names only, no pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from service.datasets.members import Member, is_clutter, is_image
from service.errors import InvalidUpload

SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "t10k": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
}


MAX_CLASSES = 10_000


class Entry(NamedTuple):
    """One image of an archive. `member` is None where a table names a file that is not there."""

    path: str
    member: Member | None
    label: int
    group: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Labelled:
    """The images of an archive in order, with their classes."""

    entries: list[Entry]
    classes: list[str]
    form: str  # imagefolder, metadata or webdataset


class Given(NamedTuple):
    """What an archive says of one image before classes are numbered."""

    path: str
    member: Member | None
    name: str | int | None  # of its class
    group: str | None = None
    problem: str | None = None


def images_of(members: Iterable[Member]) -> list[Member]:
    """The image files in the order of their paths. Raises InvalidUpload where there are none."""
    found = [member for member in members if is_image(member.name) and not is_clutter(member.name)]
    if not found:
        raise InvalidUpload("The archive holds no images in class folders.", code="no_images")
    return sorted(found, key=attrgetter("name"))


def chosen(members: list[Member], split: str | None) -> list[Member]:
    """The members of that split. Raises InvalidUpload where there is no such split."""
    if split is None or split == "all":
        return members
    depth, splits = split_folders([member.name.split("/") for member in members])
    wanted = SPLITS.get(split, split)
    if wanted not in splits:
        raise no_such_split(split, splits)
    return [member for member in members if SPLITS.get(member.name.split("/")[depth].lower()) == wanted]


def no_such_split(split: str, splits: Iterable[str]) -> InvalidUpload:
    there = ", ".join(sorted(splits)) or "no splits at all"
    return InvalidUpload(f"The upload has no split {split!r}: it has {there}.", code="no_such_split")


def split_folders(paths: list[list[str]]) -> tuple[int, set[str]]:
    """(how many folders are around them, the splits): empty where the folders are not all named for splits."""
    depth = outer_folders(paths)
    if depth and paths[0][0].lower() in SPLITS:
        depth = 0  # the one folder is itself a split
    folders = {path[depth].lower() for path in paths if len(path) > depth + 1}
    flat = any(len(path) <= depth + 1 for path in paths)
    if flat or not folders or not folders <= SPLITS.keys():
        return depth, set()
    return depth, {SPLITS[folder] for folder in folders}


def outer_folders(paths: list[list[str]]) -> int:
    """1 where a single folder holds all the others, else 0."""
    return int(len({path[0] for path in paths}) == 1 and all(len(path) > 2 for path in paths))


def by_folder(images: list[Member]) -> Labelled:
    """A class a folder; one folder around all of them, and a folder a split, are looked through."""
    paths = [image.name.split("/") for image in images]
    for path in paths:
        if len(path) < 2:
            raise InvalidUpload(
                f"{'/'.join(path)!r} lies in no class folder. Put every image in a folder named for its class.",
                code="no_class_folder",
            )
    depth, splits = split_folders(paths)
    if splits and all(len(path) > depth + 2 for path in paths):
        depth += 1
    elif splits:
        depth = outer_folders(paths)
    given = [Given(image.name, image, path[depth]) for image, path in zip(images, paths, strict=True)]
    return numbered(given, "imagefolder")


def numbered(given: list[Given], form: str, order: dict[str | int, int] | None = None) -> Labelled:
    """Classes in sorted order, integers by their value; or in the order that the labels themselves give."""
    names = {one.name for one in given if one.name is not None}
    if not names:
        raise InvalidUpload("No image of the archive has a label.", code="no_labels")
    if len(names) > MAX_CLASSES:
        raise InvalidUpload(
            f"The archive holds {len(names)} classes; at most {MAX_CLASSES} are accepted. Is each image in a folder "
            "of its own?"
        )
    texts = {name for name in names if isinstance(name, str)}
    if texts and len(texts) < len(names):
        names = {str(name) for name in names}
        given = [one if one.name is None else one._replace(name=str(one.name)) for one in given]
    ordered = sorted(names, key=order.__getitem__) if order is not None else sorted(names)
    place = {name: index for index, name in enumerate(ordered)}
    entries = [
        Entry(one.path, one.member, place[one.name] if one.name is not None else 0, one.group, one.problem)
        for one in given
    ]
    return Labelled(entries, [str(name) for name in ordered], form)
