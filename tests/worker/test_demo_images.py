"""The demo's images: real digits, and poison that keeps to its bounds and really attacks."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from worker.demo import CANDIDATE_IMAGES, EPS_LINF, REFERENCE_IMAGES, SIZE, digits, make, split

Images = dict[str, npt.NDArray[np.uint8]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("demo")
    make(folder, seed=3)
    return folder, json.loads((folder / "truth.json").read_text())


def images_in(path: Path) -> Images:
    with zipfile.ZipFile(path) as archive:
        return {name: np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}


def test_the_split_gives_every_digit_to_one_set() -> None:
    everything = digits()
    parts = split(everything, np.random.default_rng(0))
    assert [len(part.labels) for part in parts] == [REFERENCE_IMAGES, CANDIDATE_IMAGES, 297]
    given = sorted(image.tobytes() for part in parts for image in part.images)
    assert given == sorted(image.tobytes() for image in everything.images)


def test_the_zips_hold_class_folders_of_grey_images(made: tuple[Path, dict[str, Any]]) -> None:
    folder, truth = made
    sets = {name: images_in(folder / f"{name}.zip") for name in ("trusted", "candidate", "test")}
    assert [len(found) for found in sets.values()] == list(truth["counts"].values())
    for found in sets.values():
        assert {path.split("/")[0] for path in found} == set("0123456789")
        assert all(image.shape == (SIZE, SIZE) and image.dtype == np.uint8 for image in found.values())


def test_each_poison_is_what_it_says_and_the_rest_is_untouched(made: tuple[Path, dict[str, Any]]) -> None:
    folder, truth = made
    _, candidate, _ = split(digits(), np.random.default_rng(3))
    kinds = list(truth["poisoned"].values())
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"fgsm": 50, "ifgsm": 50, "trigger": 20, "flip": 20}
    for index, (path, image) in enumerate(images_in(folder / "candidate.zip").items()):
        change = np.abs(image.astype(int) - candidate.images[index, ..., 0].astype(int))
        same_label = path.split("/")[0] == str(candidate.labels[index])
        kind = truth["poisoned"].get(path)
        if kind in ("fgsm", "ifgsm"):
            assert 0 < change.max() <= np.ceil(EPS_LINF * 255)
        elif kind == "trigger":
            assert 0 < np.count_nonzero(change) <= 9
        else:
            assert change.max() == 0
        assert same_label == (kind not in ("trigger", "flip"))


def test_the_attack_hurts_the_network_it_was_made_with(made: tuple[Path, dict[str, Any]]) -> None:
    folder, truth = made
    accuracy = truth["attacker_accuracy"]
    assert accuracy["clean"] > 0.95
    assert accuracy["attacked"] < accuracy["clean"]
    clean, attacked = (np.load(folder / f"{kind}.npz")["images"].astype(int) for kind in ("clean", "attacked"))
    assert clean.shape == attacked.shape == (297, SIZE, SIZE, 1)
    assert 0 < np.abs(clean - attacked).max() <= np.ceil(EPS_LINF * 255)


def test_foreign_images_are_no_digits(made: tuple[Path, dict[str, Any]]) -> None:
    foreign = np.load(made[0] / "foreign.npz")["images"]
    assert foreign.shape == (300, SIZE, SIZE, 1) and foreign.dtype == np.uint8
    assert len(np.unique(foreign.reshape(300, -1), axis=0)) == 300
