"""What sifting starts from, where nobody is trusted: poison that is a third of its class does not get in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.attacks.triggers import Patch
from models.encoder import Encoder
from models.panel.pool import Pool, folds_of
from models.panel.sifting import Start, least_in_class, ranks, ranks_in_class, starting_set
from models.specs import PanelSpec
from models.training import Forgetful, Silent
from tests.encoders import line_encoder
from tests.models.test_panel import CLASSES, shapes

COUNT, POISONED, TARGET = 1200, 150, 0


def backdoored() -> tuple[Pool, np.ndarray]:
    """Bars of three classes, of which 150 of the others carry a patch and the first one's label."""
    images, labels = shapes(COUNT, np.random.default_rng(11))
    poison = np.zeros(COUNT, np.bool_)
    poison[np.flatnonzero(labels != TARGET)[:POISONED]] = True
    images[poison], labels[poison] = Patch().stamp(images[poison]), TARGET
    folds = folds_of(COUNT, seed=0, what="test")
    return Pool(images, labels, folds, np.zeros(COUNT, np.bool_), CLASSES), poison


def started(pool: Pool) -> Start:
    spec = PanelSpec(rounds=1, steps=60, final_steps=120, width=8)
    return starting_set(pool, spec, seed=1, watch_for=lambda _: Silent(), checkpoints=Forgetful())


def test_a_patch_that_is_a_quarter_of_its_class_is_not_started_from() -> None:
    pool, poison = backdoored()
    start = started(pool)
    for label in range(CLASSES):
        own = pool.labels == label
        assert start.chosen[own].mean() == np.round(own.sum() / 2) / own.sum()
    assert start.chosen[poison].sum() <= 1
    assert (start.suspicion > 0).all()
    assert start.suspicion.max() <= 1


def test_an_encoder_keeps_flips_out_that_the_panels_own_classifiers_do_not_see() -> None:
    images, labels = shapes(COUNT, np.random.default_rng(12))
    poison = np.arange(COUNT) < POISONED
    labels[poison] = (labels[poison] + 1) % CLASSES
    pool = Pool(images, labels, folds_of(COUNT, seed=0, what="test"), np.zeros(COUNT, np.bool_), CLASSES)
    encoded = replace(pool, encoded=Encoder(line_encoder(), name="lines").encode(images))
    spec = PanelSpec(rounds=1, steps=10, final_steps=10, width=4)

    def poison_in(given: Pool) -> int:
        start = starting_set(given, spec, seed=1, watch_for=lambda _: Silent(), checkpoints=Forgetful())
        return int(start.chosen[poison].sum())

    assert poison_in(pool) > 20
    assert poison_in(encoded) <= 3


def test_what_has_no_evidence_ranks_low_among_all() -> None:
    scores = np.array([0.0, 0.0, 0.0, 3.0, 1.0])
    assert ranks(scores).tolist() == [0.0, 0.0, 0.0, 0.8, 0.6]


def test_ranks_in_a_class_and_what_is_least_in_it() -> None:
    pool, _ = backdoored()
    scores = np.arange(COUNT, dtype=np.float64)
    found = ranks_in_class(scores, pool)
    chosen = least_in_class(np.where(pool.labels == 1, np.inf, found), pool, 0.25)
    assert not chosen[pool.labels == 1].any()
    for label in (0, 2):
        own = np.flatnonzero(pool.labels == label)
        assert found[own[-1]] == 1
        assert np.flatnonzero(chosen & (pool.labels == label)).tolist() == own[: round(len(own) / 4)].tolist()
