"""An examiner as one value: what other workers are given judges as the first does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from models.autoencoders.residual import ResidualDenoiser
from models.filtering import CrossFilter, Filter
from models.panel.detectors import Encode
from models.seeding import seeded
from worker.examiner import Examiner, Listing
from worker.examiner_file import pack_examiner, unpack_examiner

SHAPE, LAYERS = (8, 8, 3), {"width": 4, "depth": 2, "eps_linf": 0.05}


def a_filter(seed: int) -> Filter:
    with seeded(seed):
        return Filter(ResidualDenoiser(channels=3, **LAYERS).eval(), SHAPE, LAYERS)


def nobody(facts: Mapping[str, Any]) -> Encode:
    raise AssertionError(f"nobody named an encoder, and {facts} is asked for")


def test_it_scores_the_same_and_numbers_of_any_size_come_back() -> None:
    examiner = Examiner(CrossFilter((a_filter(0), a_filter(1))), None)
    folds = np.arange(6) % 2
    listing = Listing(np.array([0, 1, 2, 9999, 300, 5]), folds, 4_999_994 + np.arange(6))
    data = pack_examiner(examiner, listing)
    again, listed = unpack_examiner(data, nobody)
    for name in ("labels", "folds", "rows"):
        found = getattr(listed, name)
        assert found.dtype == np.int64 and found.tolist() == getattr(listing, name).tolist()
    images = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
    expected = examiner.score(images, listing.labels, folds, listing.rows)
    assert (again.score(images, listed.labels, listed.folds, listed.rows) == expected).all()
    assert len(set(expected[:, 0].tolist())) == 6, "equal scores would agree with anything"
    assert pack_examiner(again, listed) == data


def test_a_listing_takes_as_many_bytes_as_its_numbers_need() -> None:
    examiner, blank = Examiner(CrossFilter((a_filter(0),)), None), np.zeros(0, np.int64)
    empty = len(pack_examiner(examiner, Listing(blank, blank, blank)))
    numbers = np.arange(100_000)
    whole = len(pack_examiner(examiner, Listing(numbers % 43, numbers % 2, numbers)))
    assert whole - empty < 100_000 * (1 + 1 + 4) + 1000


def test_one_of_before_there_were_encoders_is_read_as_having_none() -> None:
    examiner, blank = Examiner(CrossFilter((a_filter(0),)), None), np.zeros(0, np.int64)
    arrays = load(pack_examiner(examiner, Listing(blank, blank, blank)))
    notes = json.loads(arrays["notes"].tobytes())
    del notes["encoder"]
    arrays["notes"] = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    assert unpack_examiner(save(arrays), nobody)[0].encoder is None
