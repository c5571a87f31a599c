"""The panel on drawn shapes with a backdoor and with flipped labels: what it finds, and that it repeats itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save

from models.attacks.triggers import Patch
from models.calibration import conformal_p_values
from models.encoder import Encoder
from models.images import Images
from models.panel import purification
from models.panel.detectors import Means, Reconstruct, fit_detector
from models.panel.packing import pack_panel, unpack_panel
from models.panel.panel import Panel, PanelFit, fit_panel
from models.panel.pool import Labels, Pool, folds_of
from models.panel.purification import purify, without_lost_classes
from models.panel.views import View
from models.specs import DetectorName, PanelSpec
from models.training import Forgetful, Silent, Stopped
from tests.encoders import line_encoder

SIDE, CLASSES, TRUSTED = 12, 3, 240
SPEC = PanelSpec(
    detectors=("label_loss", "poison_gain", "label_agreement", "spectral_signature"),
    rounds=2,
    steps=30,
    final_steps=60,
    width=8,
)


def shapes(count: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Bars: across, down or aslant, somewhere, on noise."""
    labels = rng.integers(0, CLASSES, count)
    images = rng.integers(0, 60, (count, SIDE, SIDE, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        at, light = rng.integers(2, SIDE - 2), rng.integers(120, 250)
        if label == 0:
            image[at - 1 : at + 1, 1:-1] = light
        elif label == 1:
            image[1:-1, at - 1 : at + 1] = light
        else:
            for step in range(1, SIDE - 1):
                image[step, (at + step) % SIDE] = light
    return images, labels


@dataclass(frozen=True, eq=False)
class Case:
    pool: Pool
    poison: NDArray[np.bool_]  # over the pool


def case(kind: str) -> Case:
    rng = np.random.default_rng(7)
    images, labels = shapes(1100, rng)
    trusted = np.arange(1100) < TRUSTED
    free = np.flatnonzero(~trusted & (labels != 0))
    poison = np.zeros(1100, np.bool_)
    poison[rng.choice(free, 40, replace=False)] = True
    if kind == "backdoor":
        images[poison, -3:, -3:] = 255
    labels[poison] = 0
    return Case(Pool(images, labels, folds_of(1100, seed=0, what="test"), trusted, CLASSES), poison)


def unchanged(images: Images, _folds: Labels) -> Images:
    return images


def negative(images: Images, _folds: Labels) -> Images:
    return 255 - images


def fitted(given: Case, spec: PanelSpec = SPEC, reconstruct: Reconstruct = unchanged) -> PanelFit:
    return fit_panel(
        given.pool,
        np.arange(len(given.pool)),
        spec,
        reconstruct=reconstruct,
        seed=3,
        watch_for=lambda _: Silent(),
        checkpoints=Forgetful(),
    )


@pytest.fixture(scope="module")
def backdoor() -> tuple[Case, PanelFit]:
    given = case("backdoor")
    return given, fitted(given)


def scores_of(panel: Panel, pool: Pool) -> NDArray[np.float32]:
    return panel.score(pool.images, pool.labels, pool.folds, np.arange(len(pool)))


def found(given: Case, scores: NDArray[np.float32], alpha: float) -> tuple[float, float]:
    """(share of the poison, share of the clean candidates) whose p-value is at most alpha."""
    p = conformal_p_values(scores, scores[given.pool.trusted])
    clean = ~given.pool.trusted & ~given.poison
    return float((p[given.poison] <= alpha).mean()), float((p[clean] <= alpha).mean())


def test_a_backdoor_is_found_by_the_label_loss_and_by_the_gain(backdoor: tuple[Case, PanelFit]) -> None:
    given, fit = backdoor
    scores = scores_of(fit.panel, given.pool)
    for column in (0, 1):
        hit, lost = found(given, scores[:, column], 0.05)
        assert hit >= 0.9
        assert lost <= 0.12
    assert fit.confirmed[~given.poison].mean() > 0.9
    assert fit.confirmed[given.poison].mean() < 0.1


def test_flipped_labels_are_found_by_the_label_loss() -> None:
    given = case("flip")
    spec = SPEC.model_copy(update={"detectors": ("label_loss",)})
    hit, lost = found(given, scores_of(fitted(given, spec).panel, given.pool)[:, 0], 0.05)
    assert hit >= 0.9
    assert lost <= 0.12


def test_a_score_does_not_depend_on_the_images_beside_it(backdoor: tuple[Case, PanelFit]) -> None:
    given, fit = backdoor
    everything = scores_of(fit.panel, given.pool)
    some = np.random.default_rng(1).permutation(len(given.pool))[:37]
    pool = given.pool
    alone = fit.panel.score(pool.images[some], pool.labels[some], pool.folds[some], some)
    np.testing.assert_array_equal(alone, everything[some])


ALL = PanelSpec(
    detectors=(
        *("label_loss", "unchecked_loss", "poison_gain", "label_agreement", "spectral_signature"),
        *("activation_clustering", "recurring_patch", "recurring_pattern", "duplicates", "reconstruction_divergence"),
    ),
    rounds=1,
    steps=10,
    final_steps=10,
    width=4,
)


def test_a_panel_that_was_packed_scores_every_image_exactly_as_before() -> None:
    given = case("flips")
    before = fitted(given, ALL, negative).panel
    arrays, notes = pack_panel(before)
    after = unpack_panel(
        load(save(arrays)),
        json.loads(json.dumps(notes)),
        image_shape=(SIDE, SIDE, 1),
        reconstruct=negative,
    )
    pool, rows = given.pool, np.arange(len(given.pool))
    seen = [panel.score(pool.images, pool.labels, pool.folds, rows) for panel in (before, after)]
    assert np.isfinite(seen[0]).all()
    np.testing.assert_array_equal(*seen)


def test_what_an_encoder_knows_finds_flips_where_the_panels_own_classifiers_learnt_nothing() -> None:
    """Ten steps for each classifier: all that is known of bars is the encoder's."""
    given, encoder = case("flip"), Encoder(line_encoder(), name="lines")
    pool, rows = replace(given.pool, encoded=encoder.encode(given.pool.images)), np.arange(len(given.pool))
    spec = PanelSpec(encoder="lines", detectors=("label_loss",), rounds=1, steps=10, final_steps=10, width=4)
    assert spec.detectors == ("label_loss", "encoder_loss")
    panel = fit_panel(
        pool,
        rows,
        spec,
        reconstruct=unchanged,
        encode=encoder.encode,
        seed=3,
        watch_for=lambda _: Silent(),
        checkpoints=Forgetful(),
    ).panel
    scores = scores_of(panel, pool)
    hit, lost = found(given, scores[:, 1], 0.05)
    assert hit >= 0.9 and lost <= 0.12
    assert found(given, scores[:, 0], 0.05)[0] < 0.5
    few = rows[5:9]
    beside_few = panel.score(pool.images[few], pool.labels[few], pool.folds[few], few)
    np.testing.assert_array_equal(beside_few, scores[few])
    arrays, notes = pack_panel(panel)
    arrays, notes = load(save(arrays)), json.loads(json.dumps(notes))
    again = unpack_panel(arrays, notes, image_shape=(SIDE, SIDE, 1), reconstruct=unchanged, encode=encoder.encode)
    np.testing.assert_array_equal(scores_of(again, pool), scores)
    with pytest.raises(ValueError, match="needs an encoder"):
        unpack_panel(arrays, notes, image_shape=(SIDE, SIDE, 1), reconstruct=unchanged)


def small_pool(labels: NDArray[np.int64], folds: NDArray[np.int64]) -> Pool:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), SIDE, SIDE, 1), dtype=np.uint8)
    return Pool(images, labels, folds, np.zeros(len(labels), np.bool_), 2)


def test_a_class_that_is_lost_in_a_fold_is_taught_again_what_it_started_from() -> None:
    pool = small_pool(np.repeat([0, 1], 20), np.tile(np.repeat([0, 1], 10), 2))
    start = np.tile(np.arange(10) < 4, 4)
    taught = np.ones(40, np.bool_)
    taught[20:30] = np.arange(10) < 2  # half of what the second class started from in its first fold
    taught[30:] = np.arange(10) == 9  # lost in the other
    found = without_lost_classes(taught, start, pool)
    assert found[:30].tolist() == taught[:30].tolist()
    assert np.flatnonzero(found[30:]).tolist() == [0, 1, 2, 3, 9]


def test_the_rounds_go_back_to_what_a_lost_class_started_from(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = small_pool(np.arange(80) % 2, np.arange(80) // 2 % 2)
    start, taught = np.arange(80) < 40, {}
    monkeypatch.setattr(purification, "_confirmed", lambda fitted, pool: pool.labels == 0)  # noqa: ARG005
    whole = purification._Trainer.cross_fit

    def noted(self: purification._Trainer, name: str, rows: NDArray[np.bool_], stretch: purification._Stretch) -> Any:
        taught[name] = rows.copy()
        return whole(self, name, rows, stretch)

    monkeypatch.setattr(purification._Trainer, "cross_fit", noted)
    spec = PanelSpec(rounds=2, steps=10, final_steps=10, width=4)
    purify(pool, start, spec, seed=0, watch_for=lambda _: Silent(), checkpoints=Forgetful())
    for name in ("checking-0", "checking-1"):
        np.testing.assert_array_equal(taught[name], (pool.labels == 0) | start)


def test_what_recurs_counts_where_it_is_not_judged_and_not_where_it_was_known() -> None:
    """A patch in many surprising images of fold 1 speaks against an image of fold 0, and not of its own fold."""
    rng, side = np.random.default_rng(6), 12
    images = rng.integers(100, 140, (400, side, side, 1), dtype=np.uint8)
    labels, folds, patched = np.arange(400) % 2, np.arange(400) // 200, np.arange(400) >= 385
    patched[0] = True
    images[patched] = Patch().stamp(images[patched])
    answers = np.log(np.full((400, 2), 0.02))
    answers[np.arange(400), labels] = np.log(np.where(patched, 0.02, 0.98))
    nothing = np.zeros((400, 1), np.float32)
    view = View(images, labels, folds, np.arange(400), answers, nothing, answers, nothing, 2)

    def scored(name: DetectorName, known: NDArray[np.bool_]) -> NDArray[np.float32]:
        means = Means(view, np.zeros(400, np.bool_), known, 0, unchanged, lambda images, folds: nothing)  # noqa: ARG005
        return fit_detector(name, means).score(view)

    half = np.arange(400) % 4 < 2
    patch = scored("recurring_patch", half & ~patched)
    assert patch[0] > 2 * np.delete(patch, 0).max()
    assert scored("recurring_patch", half | patched)[0] < patch[0] / 2
    pattern = scored("recurring_pattern", half)
    assert pattern[0] > 2 * np.abs(np.delete(pattern, 0)).max()


def test_no_classifier_has_seen_what_it_judges(backdoor: tuple[Case, PanelFit]) -> None:
    """A label flipped in one fold must not change the networks that judge that fold."""
    given, _ = backdoor
    small = PanelSpec(detectors=("label_loss",), rounds=1, steps=10, final_steps=10, width=4)
    pool = given.pool
    labels = pool.labels.copy()
    one = int(np.flatnonzero(~pool.trusted & (pool.folds == 0))[0])
    labels[one] = (labels[one] + 1) % CLASSES
    changed = Pool(pool.images, labels, pool.folds, pool.trusted, CLASSES)
    before = fitted(given, small).panel.purified.believing.networks
    after = fitted(Case(changed, given.poison), small).panel.purified.believing.networks
    same = [
        all(bool((a == b).all()) for a, b in zip(x.parameters(), y.parameters(), strict=True))
        for x, y in zip(before, after, strict=True)
    ]
    assert same == [True, False]


@pytest.mark.slow
def test_a_class_with_trusted_images_in_one_fold_is_learnt_in_both() -> None:
    """Only what judges fold 1 may start from them; what judges fold 0 learns from the images that it confirms."""
    given = case("flip")
    pool = given.pool
    trusted = pool.trusted & ((pool.labels != 2) | (pool.folds == 0))
    spec = PanelSpec(detectors=("label_loss",), rounds=2, steps=30, final_steps=60, width=8)
    fit = fitted(Case(Pool(pool.images, pool.labels, pool.folds, trusted, CLASSES), given.poison), spec)
    log_p, _ = fit.panel.purified.checked.see(pool.images, pool.folds)
    clean = ~given.poison & (pool.labels == 2)
    right = log_p.argmax(axis=1) == 2
    for fold in (0, 1):
        assert right[clean & (pool.folds == fold)].mean() > 0.8


def test_groups_stay_in_a_fold_unless_one_would_fill_it() -> None:
    groups = np.repeat(np.arange(50), 4)
    folds = folds_of(200, groups, seed=1, what="test")
    assert all(len(set(folds[groups == group])) == 1 for group in range(50))
    assert abs(folds.mean() - 0.5) <= 0.02
    greedy = np.where(np.arange(200) < 190, 0, np.arange(200))
    assert abs(folds_of(200, greedy, seed=1, what="test").mean() - 0.5) <= 0.01


def test_it_stops_when_asked() -> None:
    class Stopping:
        def advance(self, done: int, total: int) -> None:  # noqa: ARG002
            raise Stopped

    given = case("flip")
    with pytest.raises(Stopped):
        fit_panel(
            given.pool,
            np.arange(len(given.pool)),
            SPEC,
            reconstruct=unchanged,
            seed=3,
            watch_for=lambda _: Stopping(),
            checkpoints=Forgetful(),
        )


def test_nothing_to_start_from_is_refused() -> None:
    given = case("flip")
    with pytest.raises(ValueError, match="start from"):
        fit_panel(
            given.pool,
            np.arange(len(given.pool)),
            SPEC,
            start=np.zeros(len(given.pool), np.bool_),
            reconstruct=unchanged,
            seed=3,
            watch_for=lambda _: Silent(),
            checkpoints=Forgetful(),
        )
