"""An archive of image files as an upload, whichever archive it is and however its labels are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from service.datasets import metadata, webdataset
from service.datasets.archive import Archive, Member
from service.datasets.decode import ImageRejected, decode_image
from service.datasets.labelling import Entry, Labelled
from service.datasets.layouts import by_folder, chosen, images_of
from service.datasets.members import too_much
from service.datasets.sample import Layout, Limits, Sample


class EncodedUpload:
    """Image files with labels; `samples` reads them one by one."""

    def __init__(self, archive: Archive, limits: Limits, split: str | None = None) -> None:
        self.archive = archive
        self._limits = limits
        labelled = _labelled(archive, limits, split)
        self.source_format = f"{labelled.form}-{archive.kind}"
        self.classes = labelled.classes
        self.num_samples = len(labelled)
        self.labelled = labelled

    def layout(self) -> Layout | None:
        """Only decoding tells."""
        return None

    def samples(self, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
        limit = self._limits.max_image_bytes
        some = self.labelled.between(start, self.num_samples if stop is None else stop)
        return (sample_of(entry, lambda member: self.archive.read(member, limit)) for entry in some)

    def pixels(self, sample: Sample, *, size: int, channels: int) -> NDArray[np.uint8]:
        if not isinstance(sample.data, bytes):
            raise TypeError("an archive of images gives encoded files")
        return decode_image(sample.data, size=size, channels=channels, max_pixels=self._limits.max_image_pixels)


def sample_of(entry: Entry, read: Callable[[Member], bytes]) -> Sample:
    problem = entry.problem
    if problem is None and entry.member is not None:
        try:
            return Sample(entry.path, entry.label, read(entry.member), entry.group)
        except ImageRejected as error:
            problem = str(error)
    return Sample(entry.path, entry.label, b"", entry.group, problem)


def _labelled(archive: Archive, limits: Limits, split: str | None) -> Labelled:
    """Tables of labels first, then keys with label files, then folders."""
    images = chosen(images_of(archive.members), split)
    if len(images) > limits.max_images or images.sizes.sum(dtype=np.float64) > limits.max_unpacked_bytes:
        raise too_much(limits.max_images, limits.max_unpacked_bytes)
    tables = metadata.tables_of(archive.members)
    metadata.check_sizes(tables, len(images))
    if tables and any(metadata.has_labels(archive, table) for table in tables):
        return metadata.by_tables(archive, tables, images)
    labels = webdataset.labels_of(archive.members, images)
    if webdataset.are_labels(archive, images, labels):
        return webdataset.by_keys(archive, images, labels)
    return by_folder(images)
