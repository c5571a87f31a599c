"""Which images of an archive count, and the labels that class folders and splits give them. Names only, no pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from service.datasets.archive import Members
from service.datasets.labelling import Labelled, Labelling
from service.datasets.members import is_clutter, is_image
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

Folders = tuple[str, ...]
"""The folders that a file lies in, from the outermost."""


def images_of(members: Members) -> Members:
    """The image files in the order of their paths. Raises InvalidUpload where there are none."""
    are_images = (is_image(name) and not is_clutter(name) for name in members.names())
    found = members.where(np.fromiter(are_images, np.bool_, len(members)))
    if not len(found):
        raise InvalidUpload("The archive holds no images in class folders.", code="no_images")
    return found.by_name()


def chosen(members: Members, split: str | None) -> Members:
    """The members of that split. Raises InvalidUpload where there is no such split."""
    if split is None or split == "all":
        return members
    depth, splits = split_folders(set(_folders_of(members)))
    wanted = SPLITS.get(split, split)
    if wanted not in splits:
        raise no_such_split(split, splits)
    are_wanted = (SPLITS.get(folders[depth].lower()) == wanted for folders in _folders_of(members))
    return members.where(np.fromiter(are_wanted, np.bool_, len(members)))


def no_such_split(split: str, splits: Iterable[str]) -> InvalidUpload:
    there = ", ".join(sorted(splits)) or "no splits at all"
    return InvalidUpload(f"The upload has no split {split!r}: it has {there}.", code="no_such_split")


def split_folders(places: set[Folders]) -> tuple[int, set[str]]:
    """(how many folders are around them, the splits): empty where the folders are not all named for splits.

    places: where there are images.
    """
    depth = outer_folders(places)
    if depth and next(iter(places))[0].lower() in SPLITS:
        depth = 0  # the one folder is itself a split
    found = {folders[depth].lower() for folders in places if len(folders) > depth}
    flat = any(len(folders) <= depth for folders in places)
    if flat or not found or not found <= SPLITS.keys():
        return depth, set()
    return depth, {SPLITS[folder] for folder in found}


def outer_folders(places: set[Folders]) -> int:
    """1 where a single folder holds all the others, else 0."""
    return int(all(len(folders) > 1 for folders in places) and len({folders[0] for folders in places}) == 1)


def by_folder(images: Members) -> Labelled:
    """A class a folder; one folder around all of them, and a folder a split, are looked through."""
    places = set(_folders_of(images))
    if () in places:
        loose = next(name for name in images.names() if "/" not in name)
        raise InvalidUpload(
            f"{loose!r} lies in no class folder. Put every image in a folder named for its class.",
            code="no_class_folder",
        )
    depth, splits = split_folders(places)
    if splits and all(len(folders) > depth + 1 for folders in places):
        depth += 1
    elif splits:
        depth = outer_folders(places)
    labelling = Labelling(images)
    for folders in _folders_of(images):
        labelling.add(folders[depth])
    return labelling.numbered("imagefolder")


def _folders_of(members: Members) -> Iterator[Folders]:
    return (tuple(name.split("/")[:-1]) for name in members.names())
