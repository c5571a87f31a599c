"""The filter on digits: it finds what a network it never saw perturbed, and says the same wherever it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from models.attacks.gradient import fgsm, to_8bit
from models.calibration import auroc
from models.filtering import CrossFit, Filter, FilterFit, OtherShape, UnknownFilter, cross_fit_filter, fit_filter
from models.images import Images, NotImages, to_float, to_uint8
from models.perturbations import add, craft
from models.seeding import seeded
from models.specs import PerturbationSpec, SanitiseSpec
from models.surrogates import ARCHITECTURES, UnfitLabels, fit_surrogates
from models.training import Forgetful, Silent, Stopped, Watch

SIDE = 32
FIT = 400
QUICK: dict[str, Any] = {
    "filter": {"kind": "residual", "width": 12, "depth": 4, "fit": {"epochs": 4, "peak_lr": 6e-3}},
    "perturbation": {"surrogate_epochs": 5},
    "seed": 4,
}
BADJIE: dict[str, Any] = {
    "preset": "badjie",
    "filter": {"width": 8, "latent": 16, "fit": {"epochs": 1, "optimizer": "sgd", "peak_lr": 0.1}},
    "perturbation": {"surrogate_epochs": 2},
}


@dataclass
class Journal:
    """Watches every phase, keeps checkpoints in memory, and stops at a step of a phase."""

    stop_in: str = ""
    stop_at: int = 0
    kept: dict[str, bytes] = field(default_factory=dict)
    phases: list[str] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)

    def enter(self, phase: str) -> Watch:
        self.phases.append(phase)
        self.steps = []
        return self

    def advance(self, done: int, total: int) -> None:
        self.steps.append((done, total))
        if self.phases[-1] == self.stop_in and done >= self.stop_at:
            raise Stopped

    def load(self, name: str) -> bytes | None:
        return self.kept.get(name)

    def save(self, name: str, data: bytes) -> None:
        self.kept[name] = data


@pytest.fixture(scope="module", autouse=True)
def short_epochs() -> Iterator[None]:
    """Epochs and perturbations for digits: a few seconds in all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.surrogates.IMAGES_AN_EPOCH", 400)
        patch.setattr("models.perturbations.ROWS", 800)
        patch.setattr("models.filtering.fitting.SAMPLES_AN_EPOCH", 1600)
        yield


@pytest.fixture(scope="module")
def digits() -> tuple[Images, npt.NDArray[np.int64]]:
    data = load_digits()
    x = torch.from_numpy(data.images / 16).float()[:, None]
    large = F.interpolate(x, size=(SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
    return to_uint8(large), data.target.astype(np.int64)


def _fitted(
    images: Images, labels: npt.NDArray[np.int64], given: dict[str, Any], journal: Journal | None = None
) -> FilterFit:
    journal = journal or Journal()
    spec = SanitiseSpec.model_validate(given)
    return fit_filter(images, labels, spec, num_classes=10, watch_for=journal.enter, checkpoints=journal)


@pytest.fixture(scope="module")
def fitted(digits: tuple[Images, npt.NDArray[np.int64]]) -> FilterFit:
    return _fitted(digits[0][:FIT], digits[1][:FIT], QUICK)


@pytest.fixture(scope="module")
def badjie(digits: tuple[Images, npt.NDArray[np.int64]]) -> FilterFit:
    return _fitted(digits[0][:100], digits[1][:100], BADJIE)


@pytest.fixture(scope="module")
def poisoned(digits: tuple[Images, npt.NDArray[np.int64]]) -> Images:
    """200 digits perturbed by FGSM against a fully connected network; no surrogate is built like it."""
    x, y = to_float(digits[0][600:]), torch.from_numpy(digits[1][600:])
    with seeded(9):
        attacker = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(attacker.parameters(), lr=2e-3)
        for _ in range(60):
            rows = torch.randint(0, len(x), (64,))
            optimizer.zero_grad()
            F.cross_entropy(attacker(x[rows]), y[rows]).backward()
            optimizer.step()
    return to_uint8(to_8bit(fgsm(attacker, x[:200], y[:200], eps_linf=0.01)))


def test_a_fit_is_checked_on_images_held_out_of_it(
    fitted: FilterFit, badjie: FilterFit, digits: tuple[Images, npt.NDArray[np.int64]]
) -> None:
    """The residual filter tells; a reconstruction error does not see what is a hundred times smaller than itself."""
    assert fitted.notes["told_apart"] > 0.95
    assert 0.2 < badjie.notes["told_apart"] < 0.75  # of five images
    nothing_held_out = {**QUICK, "filter": {**QUICK["filter"], "fit": {"epochs": 1, "validation_share": 0}}}
    assert _fitted(digits[0][:100], digits[1][:100], nothing_held_out).notes["told_apart"] is None


def test_a_fit_that_ran_away_is_told(digits: tuple[Images, npt.NDArray[np.int64]]) -> None:
    """At a rate this high the network soon gives every pixel the same answer, and its loss stays a finite number."""
    runaway = {**QUICK["filter"], "fit": {"epochs": 2, "peak_lr": 0.3, "validation_share": 0.2}}
    assert _fitted(digits[0][:FIT], digits[1][:FIT], {**QUICK, "filter": runaway}).notes["told_apart"] < 0.75


def test_it_finds_what_an_unseen_network_perturbed(
    fitted: FilterFit, digits: tuple[Images, npt.NDArray[np.int64]], poisoned: Images
) -> None:
    clean = fitted.filter.score(digits[0][800:1200])
    assert auroc(fitted.filter.score(poisoned), clean) > 0.95
    assert clean.dtype == np.float32
    assert fitted.filter.score_name == "residual_energy"


def test_its_reconstruction_is_nearer_to_the_clean_image(
    fitted: FilterFit, digits: tuple[Images, npt.NDArray[np.int64]], poisoned: Images
) -> None:
    clean = digits[0][600:800].astype(np.float64)
    rebuilt = fitted.filter.reconstruct(poisoned)
    assert rebuilt.dtype == np.uint8
    before, after = (np.square(images - clean).mean() for images in (poisoned, rebuilt))
    assert after < 0.97 * before
    untouched = fitted.filter.reconstruct(digits[0][800:1000]).astype(np.float64)
    assert np.square(untouched - digits[0][800:1000]).mean() < 0.5 * before


@pytest.mark.parametrize("kind", ["fitted", "badjie"])
def test_a_score_is_the_same_in_any_batch(
    kind: str, digits: tuple[Images, npt.NDArray[np.int64]], request: pytest.FixtureRequest
) -> None:
    judge: Filter = request.getfixturevalue(kind).filter
    images = digits[0][800:1000]
    together = judge.score(images)
    assert np.array_equal(np.concatenate([judge.score(images[i : i + 1]) for i in range(6)]), together[:6])
    order = np.random.default_rng(0).permutation(len(images))
    assert np.array_equal(judge.score(images[order]), together[order])
    assert judge.score(images[:0]).shape == (0,)
    assert judge.reconstruct(images[:0]).shape == (0, SIDE, SIDE, 1)


@pytest.mark.parametrize("kind", ["fitted", "badjie"])
def test_a_filter_comes_back_from_its_state(
    kind: str, digits: tuple[Images, npt.NDArray[np.int64]], request: pytest.FixtureRequest
) -> None:
    judge: Filter = request.getfixturevalue(kind).filter
    again = Filter.load(judge.state(), json.loads(json.dumps(judge.meta())))
    images = digits[0][800:900]
    assert np.array_equal(again.score(images), judge.score(images))
    assert np.array_equal(again.reconstruct(images), judge.reconstruct(images))
    assert (again.kind, again.score_name) == (judge.kind, judge.score_name)


@pytest.mark.parametrize("kind", ["fitted", "badjie"])
def test_the_module_agrees_with_the_filter(
    kind: str, digits: tuple[Images, npt.NDArray[np.int64]], request: pytest.FixtureRequest
) -> None:
    judge: Filter = request.getfixturevalue(kind).filter
    images = digits[0][800:833]
    with torch.no_grad():
        scores, rebuilt = judge.as_module()(torch.from_numpy(images))
    assert scores.shape == (33,)
    assert np.allclose(scores.numpy(), judge.score(images), rtol=1e-5)
    assert np.abs(rebuilt.numpy().astype(int) - judge.reconstruct(images)).max() <= 1
    assert rebuilt.dtype == torch.uint8


def test_the_bottleneck_scores_by_its_reconstruction(
    badjie: FilterFit, digits: tuple[Images, npt.NDArray[np.int64]]
) -> None:
    images = digits[0][800:900]
    error = np.square((images - badjie.filter.reconstruct(images).astype(np.float64)) / 255).mean((1, 2, 3))
    assert badjie.filter.score_name == "reconstruction_error"
    assert np.allclose(badjie.filter.score(images), error, rtol=0.02)


def test_notes_and_losses_tell_how_it_went(fitted: FilterFit, badjie: FilterFit) -> None:
    notes = json.loads(json.dumps(fitted.notes))
    assert notes["images"] == FIT
    assert notes["perturbations"] == 2 * FIT
    assert set(notes["seconds"]) == {"surrogates", "perturbing", "denoiser"}
    assert min(notes["surrogates"].values()) > 0.8
    assert len(fitted.losses.train_loss) == len(fitted.losses.validation_loss) == 4
    assert fitted.losses.train_loss[-1] < fitted.losses.train_loss[0]
    assert len(badjie.losses.train_loss) == 1


def test_the_reference_s_classifier_knows_the_digits(
    fitted: FilterFit, digits: tuple[Images, npt.NDArray[np.int64]]
) -> None:
    assert (fitted.classify(digits[0][800:1100]) == digits[1][800:1100]).mean() > 0.75


SHORT: dict[str, Any] = {
    "filter": {"kind": "residual", "width": 4, "depth": 2, "fit": {"epochs": 2, "batch_size": 128}},
    "perturbation": {"surrogates": 1, "steps": 2},
}


def test_a_filter_stopped_in_any_phase_ends_as_if_it_had_not_been(
    digits: tuple[Images, npt.NDArray[np.int64]],
) -> None:
    images, labels = digits[0][:60, ::2, ::2], digits[1][:60]
    whole = Journal()
    wanted = _fitted(images, labels, SHORT, whole)
    assert whole.phases == ["surrogates", "perturbing", "denoiser"]
    journal = Journal()
    for phase, step in (("surrogates", 40), ("perturbing", 1), ("denoiser", 15)):
        journal.stop_in, journal.stop_at = phase, step
        with pytest.raises(Stopped):
            _fitted(images, labels, SHORT, journal)
        assert sum(done >= step for done, _ in journal.steps) == 1  # not one batch more
    journal.stop_in = ""
    got = _fitted(images, labels, SHORT, journal)
    assert got.losses == wanted.losses
    assert all(np.array_equal(value, got.filter.state()[name]) for name, value in wanted.filter.state().items())


@pytest.mark.slow
def test_another_seed_is_another_filter(digits: tuple[Images, npt.NDArray[np.int64]]) -> None:
    images, labels = digits[0][:40, ::2, ::2], digits[1][:40]
    one, other = (_fitted(images, labels, SHORT | {"seed": seed}) for seed in (0, 1))
    assert not np.array_equal(one.filter.score(images), other.filter.score(images))


@pytest.mark.slow
def test_of_crossed_filters_each_judges_the_fold_that_it_has_not_seen(
    digits: tuple[Images, npt.NDArray[np.int64]],
) -> None:
    images, labels = digits[0][:160], digits[1][:160]
    folds = np.arange(160) % 2
    spec = SanitiseSpec.model_validate(BADJIE)

    def crossed(shown: Images) -> CrossFit:
        return cross_fit_filter(
            shown,
            labels,
            folds,
            spec,
            num_classes=10,
            watch_for=lambda phase, fold: Silent(),  # noqa: ARG005
            checkpoints_for=lambda fold: Forgetful(),  # noqa: ARG005
        )

    changed = images.copy()
    changed[folds == 0] = 255 - changed[folds == 0]
    before, after = crossed(images).filter, crossed(changed).filter
    one = images[:1]
    for fold, same in ((0, True), (1, False)):
        own = np.array([fold])
        assert (before.score(one, own) == after.score(one, own)).all() == same
        assert (before.reconstruct(one, own) == before.filters[fold].reconstruct(one)).all()
    alone = [before.score(images[place : place + 1], folds[place : place + 1]) for place in range(40)]
    np.testing.assert_array_equal(before.score(images[:40], folds[:40]), np.concatenate(alone))


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 3), (41, 20, 3), (100, 80, 3)])
@pytest.mark.parametrize("kind", ["residual", "bottleneck"])
def test_it_takes_every_shape_and_labels_that_miss_classes(
    shape: tuple[int, int, int], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.filtering.fitting.SAMPLES_AN_EPOCH", 16)
    monkeypatch.setattr("models.surrogates.IMAGES_AN_EPOCH", 16)
    images = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    given = {"filter": {"kind": kind, "width": 4, "fit": {"epochs": 1}}, "perturbation": {"steps": 1}}
    fit = _fitted(images, np.array([0, 7] * 6), given)
    assert np.isfinite(fit.filter.score(images)).all()
    assert fit.filter.reconstruct(images).shape == images.shape


def test_what_does_not_fit_is_refused(fitted: FilterFit, digits: tuple[Images, npt.NDArray[np.int64]]) -> None:
    images, labels = digits[0][:20], digits[1][:20]
    with pytest.raises(UnfitLabels, match="0 to 9"):
        _fitted(images, labels + 5, QUICK)
    with pytest.raises(UnfitLabels, match="as many"):
        _fitted(images, labels[:-1], QUICK)
    with pytest.raises(NotImages, match="uint8"):
        _fitted(images.astype(np.float32), labels, QUICK)  # type: ignore[arg-type]
    with pytest.raises(OtherShape, match="28"):
        fitted.filter.score(images[:, :28, :28])
    with pytest.raises(UnknownFilter):
        Filter.load(fitted.filter.state(), fitted.filter.meta() | {"kind": "magic"})
    with pytest.raises(UnknownFilter):
        Filter.load({}, fitted.filter.meta())


def test_perturbations_are_what_the_attacks_make(digits: tuple[Images, npt.NDArray[np.int64]]) -> None:
    images, labels, spec = digits[0][:50], digits[1][:50], PerturbationSpec(eps_linf=0.02, steps=3)
    surrogates = fit_surrogates(
        images, labels, count=1, num_classes=10, seed=0, watch=Silent(), checkpoints=Forgetful()
    )
    network = surrogates[0].network
    made = craft(images, labels, [network], spec, largest_side=None, seed=0, watch=Silent())
    assert made.images.shape == made.deltas.shape == (100, SIDE, SIDE, 1)
    x, y = to_float(images[:1]), torch.from_numpy(labels[:1])
    wanted = ((fgsm(network, x, y, eps_linf=0.02) - x) / 0.02).permute(0, 2, 3, 1)[0].numpy()
    of_first = made.deltas[(made.images == images[0]).all((1, 2, 3))] / 127
    assert min(np.abs(delta - wanted).max() for delta in of_first) < 0.01
    patches = craft(images, labels, [network], spec, largest_side=10, seed=0, watch=Silent())
    assert patches.images.shape == patches.deltas.shape == (100, 10, 10, 1)


def test_half_of_a_batch_is_perturbed_within_the_scales() -> None:
    x = to_float(np.full((400, 8, 8, 1), 128, np.uint8))
    deltas = torch.full((400, 8, 8, 1), 127, dtype=torch.int8)
    spec = PerturbationSpec(eps_linf=0.04, scale_low=0.5, scale_high=2.0)
    change = (add(x, deltas, spec, torch.Generator().manual_seed(0)) - x).flatten(1)
    strength = change.amax(1)
    assert torch.equal(change.amin(1), strength)
    touched = strength[strength > 0]
    assert 150 < len(touched) < 250
    assert touched.min() >= 0.02 - 1 / 255
    assert touched.max() <= 0.08 + 1 / 255
    assert (touched < 0.04).float().mean() == pytest.approx(0.5, abs=0.1)  # log-uniform
    assert torch.allclose(change * 255, (change * 255).round(), atol=1e-3)


def test_the_surrogates_differ() -> None:
    assert len(ARCHITECTURES) == 4
    kinds = [{type(part).__name__ for part in build(3, 1, 5).modules()} for build in ARCHITECTURES.values()]
    assert len({frozenset(kind) for kind in kinds}) == 4
