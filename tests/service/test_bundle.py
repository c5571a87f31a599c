"""Bundles are refused unless every byte is what was published; versions, references and aliases in the database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pytest
from tiny_model import (
    CLASSES,
    SHAPE,
    bundle_files,
    calibration,
    card,
    publish_version,
    reformed_onnx,
    samples,
    served_onnx,
)

from models.abstention import InvalidCalibration
from service.db import Database
from service.errors import InvalidReference, NotFound
from service.jobs.create import add_job
from service.registry import bundle, repository
from service.registry.bundle import CALIBRATION, CARD, DETECTOR, HELD_OUT, PARITY, REFORMED, SERVED, STUDENT
from service.registry.calibration import ServingCalibration
from service.registry.errors import AliasNotFound, BundleCorrupt, ModelNotFound
from service.registry.samples import HeldOut
from service.storage import LocalStorage

PREFIX = "models/signs/job-1"


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(f"sqlite:///{tmp_path / 'winnow.db'}")
    database.create_all()
    yield database
    database.close()


def digests_of(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_a_published_bundle_comes_back_as_it_was(storage: LocalStorage) -> None:
    files = bundle_files()
    digests = bundle.publish(storage, PREFIX, files)
    assert digests == digests_of(files)
    loaded = bundle.load(storage, PREFIX, digests)
    assert (loaded.served, loaded.read(REFORMED)) == (served_onnx(), reformed_onnx())
    assert loaded.has_detector
    np.testing.assert_array_equal(loaded.held_out().labels, HeldOut.from_bytes(samples()[HELD_OUT]).labels)
    assert (loaded.classes, loaded.image_shape, loaded.card) == (CLASSES, SHAPE, card())
    assert loaded.digest == bundle.bundle_digest(digests)


@pytest.mark.parametrize("name", sorted(bundle_files()))
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_flipped_bit_in_any_file_is_refused(storage: LocalStorage, name: str, place: str) -> None:
    files = bundle_files()
    digests = bundle.publish(storage, PREFIX, files)
    damaged = bytearray(files[name])
    damaged[{"first": 0, "middle": len(damaged) // 2, "last": -1}[place]] ^= 1
    storage.write(f"{PREFIX}/{name}", bytes(damaged))
    with pytest.raises(BundleCorrupt, match="is not what was published") as refusal:
        bundle.load(storage, PREFIX, digests)
    assert refusal.value.details["file"] == name
    assert name in refusal.value.message


@pytest.mark.parametrize("name", sorted(bundle_files()))
def test_a_missing_or_shortened_file_is_refused(storage: LocalStorage, name: str) -> None:
    files = bundle_files()
    digests = bundle.publish(storage, PREFIX, files)
    storage.write(f"{PREFIX}/{name}", files[name][:-1])
    with pytest.raises(BundleCorrupt, match=name):
        bundle.load(storage, PREFIX, digests)
    storage.delete_prefix(f"{PREFIX}/{name}")
    with pytest.raises(BundleCorrupt, match=f"{name}.*missing"):
        bundle.load(storage, PREFIX, digests)


def test_nothing_is_parsed_before_all_is_checked(storage: LocalStorage) -> None:
    """The calibration is malformed and the detector damaged: the damage must be what is reported."""
    files = {**bundle_files(), CALIBRATION: b"{", CARD: b"["}
    digests = bundle.publish(storage, PREFIX, files)
    storage.write(f"{PREFIX}/{DETECTOR}", b"damaged")
    with pytest.raises(BundleCorrupt, match="is not what was published") as refusal:
        bundle.load(storage, PREFIX, digests)
    assert refusal.value.details["file"] == DETECTOR


def without(document: bytes, field: str) -> bytes:
    return orjson.dumps({key: value for key, value in orjson.loads(document).items() if key != field})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (CALIBRATION, b"no json", "malformed"),
        (CALIBRATION, without(bundle_files()[CALIBRATION], "mc"), "mc"),
        (CALIBRATION, without(bundle_files()[CALIBRATION], "kl_scores"), "kl_scores"),
        (CALIBRATION, calibration(detector=False).to_bytes(), "come together"),
        (PARITY, b"no npz", "malformed"),
        (PARITY, samples(detector=False)[PARITY], "exactly where"),
        (PARITY, samples()[HELD_OUT], "unexpected keyword"),
        (CARD, b"[]", "not an object"),
        (CARD, orjson.dumps({**card(), "classes": [1, 2, 3]}), "list of names"),
        (CARD, orjson.dumps({**card(), "image_shape": [8, 9, 3]}), "image_shape"),
        (CARD, orjson.dumps({**card(), "image_shape": [8, 8, 4]}), "image_shape"),
        (CARD, without(orjson.dumps(card()), "image_shape"), "image_shape"),
    ],
)
def test_a_part_that_cannot_be_understood_is_named(storage: LocalStorage, name: str, change: bytes, said: str) -> None:
    digests = bundle.publish(storage, PREFIX, {**bundle_files(), name: change})
    with pytest.raises(BundleCorrupt, match=said) as refusal:
        bundle.load(storage, PREFIX, digests)
    assert refusal.value.details["file"] == name


def test_calibration_and_card_must_be_of_one_model(storage: LocalStorage) -> None:
    other = orjson.dumps({**card(), "classes": ["red", "green"]})
    digests = bundle.publish(storage, PREFIX, {**bundle_files(), CARD: other})
    with pytest.raises(BundleCorrupt, match="profiles 3 classes, the card names 2"):
        bundle.load(storage, PREFIX, digests)


def test_a_bundle_needs_what_serving_needs(storage: LocalStorage) -> None:
    files = bundle_files()
    del files[SERVED]
    with pytest.raises(ValueError, match=r"served\.onnx"):
        bundle.publish(storage, PREFIX, files)
    assert not storage.exists(f"{PREFIX}/{CARD}")
    with pytest.raises(BundleCorrupt, match=r"served\.onnx"):
        bundle.load(storage, PREFIX, digests_of(files))


def test_the_digest_of_a_bundle_tells_names_and_contents_but_not_their_order() -> None:
    digests = digests_of(bundle_files())
    whole = bundle.bundle_digest(digests)
    assert bundle.bundle_digest(dict(reversed(digests.items()))) == whole
    assert bundle.bundle_digest({**digests, CARD: "0" * 64}) != whole
    swapped = {**digests, STUDENT: digests[DETECTOR], DETECTOR: digests[STUDENT]}
    assert bundle.bundle_digest(swapped) != whole


@pytest.mark.parametrize("detector", [True, False])
def test_calibration_keeps_every_bit(detector: bool) -> None:
    made = calibration(detector=detector)
    back = ServingCalibration.from_bytes(made.to_bytes())
    assert (back.mc, back.alpha) == (made.mc, made.alpha)
    np.testing.assert_array_equal(back.mc.masks(), made.mc.masks())
    for field in ("profiles", "kl_scores", "detector_scores"):
        np.testing.assert_array_equal(getattr(back.abstention, field), getattr(made.abstention, field))


def test_masks_that_cannot_be_made_are_a_malformed_calibration() -> None:
    document = orjson.loads(calibration().to_bytes())
    document["mc"]["dropout"] = 1.5
    with pytest.raises(InvalidCalibration, match="dropout"):
        ServingCalibration.from_bytes(orjson.dumps(document))


def test_versions_count_up_by_name(database: Database, storage: LocalStorage) -> None:
    made = [publish_version(database, storage, name) for name in ("signs", "digits", "signs")]
    assert made == ["signs@1", "digits@1", "signs@2"]


def test_a_job_registers_once(database: Database) -> None:
    with database.transaction() as session:
        job = add_job(session, "distill", inputs={}, params={}, max_attempts=1)
    found = []
    for prefix in ("models/signs/a-1", "models/signs/a-2"):
        with database.transaction() as session:
            files, told = {STUDENT: "0" * 64}, {"note": prefix}
            found.append(repository.register(session, "signs", job_id=job.id, prefix=prefix, files=files, card=told))
    assert [row.version for row in found] == [1, 1]
    assert found[1].prefix == "models/signs/a-1"
    with database.session() as session:
        assert repository.describe(session, "signs").versions == [1]


def test_versions_registered_at_once_get_different_numbers(database: Database, storage: LocalStorage) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: publish_version(database, storage, "signs"), range(16)))
    assert sorted(made) == sorted(f"signs@{number}" for number in range(1, 17))


def test_a_version_that_is_rolled_back_leaves_no_gap(database: Database) -> None:
    def register_and_fail() -> None:
        with database.transaction() as session:
            job = add_job(session, "distill", inputs={}, params={}, max_attempts=1)
            repository.register(session, "signs", job_id=job.id, prefix="p", files={}, card={})
            raise RuntimeError("the job's end fails")

    with pytest.raises(RuntimeError, match="the job's end fails"):
        register_and_fail()
    with database.session() as session, pytest.raises(ModelNotFound):
        repository.resolve(session, "signs")


def test_a_bare_name_means_the_champion_or_else_the_latest(database: Database, storage: LocalStorage) -> None:
    for _ in range(3):
        publish_version(database, storage, "signs")

    def resolved(reference: str) -> str:
        with database.session() as session:
            return repository.reference_of(repository.resolve(session, reference))

    assert resolved("signs") == "signs@3"
    assert resolved("signs@1") == "signs@1"
    for version in (2, 1, 2):
        with database.transaction() as session:
            repository.set_alias(session, "signs", "champion", version=version)
        assert resolved("signs") == resolved("signs:champion") == f"signs@{version}"
    with database.transaction() as session:
        repository.set_alias(session, "signs", "challenger", version=3)
    assert (resolved("signs"), resolved("signs:challenger")) == ("signs@2", "signs@3")


@pytest.mark.parametrize(
    ("reference", "error", "said"),
    [
        ("nothing", ModelNotFound, "no model nothing"),
        ("signs@7", ModelNotFound, "newest version is signs@1"),
        ("signs:old", AliasNotFound, "champion"),
        ("Signs", InvalidReference, "does not name a model"),
        ("signs@0", InvalidReference, "does not name a model"),
        ("../signs", InvalidReference, "does not name a model"),
    ],
)
def test_what_a_wrong_reference_is_told(
    database: Database, storage: LocalStorage, reference: str, error: type[Exception], said: str
) -> None:
    publish_version(database, storage, "signs")
    with database.transaction() as session:
        repository.set_alias(session, "signs", "champion", version=1)
    with database.session() as session, pytest.raises(error, match=said):
        repository.resolve(session, reference)


@pytest.mark.parametrize(("name", "alias", "version"), [("signs", "champion", 2), ("nothing", "champion", 1)])
def test_an_alias_points_at_what_is_there(
    database: Database, storage: LocalStorage, name: str, alias: str, version: int
) -> None:
    publish_version(database, storage, "signs")
    with database.transaction() as session, pytest.raises(NotFound):
        repository.set_alias(session, name, alias, version=version)


def test_pages_cover_all_models_once(database: Database, storage: LocalStorage) -> None:
    names = [f"m{number}" for number in range(5)]
    for name in names:
        publish_version(database, storage, name)
    seen: list[str] = []
    after: str | None = None
    with database.session() as session:
        while True:
            page = repository.page(session, after=after, limit=2)
            seen += [model.name for model in page.models]
            after = page.next_after
            if after is None:
                break
    assert seen == names
