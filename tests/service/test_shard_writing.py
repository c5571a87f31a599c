"""Versions written sample by sample or in parts, and read back."""

from __future__ import annotations

import numpy as np
import pytest

from service.datasets.shard_writing import PartWriter, ShardWriter, unite
from service.datasets.shards import MANIFEST, SHARD_IMAGES, Row, ShardReader
from service.storage import LocalStorage

SHAPE, COUNT = (1, 2, 3), 9 * SHARD_IMAGES + 5  # more than the manifest has in memory
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)


def row(index: int) -> Row:
    """Seven objects, images of each in every part."""
    return Row(f"{index:064x}", f"{index % 3}/{index}.png", index % 3, 2, 1, f"object {index % 7}")


def test_a_version_written_alone_is_the_one_of_parts(storage: LocalStorage) -> None:
    with ShardWriter(storage, "alone", SHAPE, 3) as writer:
        for index, image in enumerate(PIXELS):
            writer.add(image, row(index))
        alone = writer.close()
    parts, half = [], COUNT // 2
    for number, bounds in enumerate((range(half), range(half, COUNT))):
        part = PartWriter(storage, "parts", f"part-{number}", SHAPE)
        for index in bounds:
            part.add(PIXELS[index], row(index))
        parts.append(part.close())
    assert unite(storage, "parts", parts, 3) == alone
    assert alone.num_groups == 7
    assert alone.num_samples == COUNT and alone.class_counts == np.bincount(np.arange(COUNT) % 3).tolist()
    first, second = (ShardReader(storage, prefix, COUNT, SHAPE) for prefix in ("alone", "parts"))
    assert first.manifest() == second.manifest() and first.rows()[COUNT - 1] == row(COUNT - 1)
    assert (first.images(np.arange(COUNT)) == PIXELS).all() and (second.images(np.arange(COUNT)) == PIXELS).all()
    assert [len(part) for part in first.manifest_parts(10_000, ["path"])] == [10_000, COUNT - 10_000]


@pytest.mark.parametrize("nameless", [0, COUNT - 1])
def test_where_one_sample_names_no_group_there_are_none(storage: LocalStorage, nameless: int) -> None:
    with ShardWriter(storage, "set", SHAPE, 3) as writer:
        for index in range(COUNT):
            writer.add(PIXELS[index], row(index)._replace(group=None) if index == nameless else row(index))
        assert writer.close().num_groups is None


def test_what_ends_in_an_error_has_no_manifest(storage: LocalStorage) -> None:
    with pytest.raises(RuntimeError), ShardWriter(storage, "set", SHAPE, 3) as writer:
        for index in range(COUNT):
            writer.add(PIXELS[index], row(index))
        raise RuntimeError
    assert not storage.exists(f"set/{MANIFEST}")
