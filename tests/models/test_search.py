"""The search: seeded, bounded, judged on images that no trial saw, and gone on with where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from models import search
from models.filter_specs import PRESETS
from models.filtering import fitting
from models.images import Images
from models.search import SearchResult, TooFewToSearch, search_filter
from models.specs import SanitiseSpec
from models.training import Stopped, Watch

TINY: dict[str, Any] = {
    "preset": "hlihor-dae",
    "filter": {"width": 4, "latent": 8, "fit": {"epochs": 1, "peak_lr": 5e-3}},
    "search": {"trials": 4, "seconds": 60},
    "seed": 2,
}


@dataclass
class Journal:
    """Keeps checkpoints in memory, and stops after so many reports."""

    stop_after: int = 10**9
    kept: dict[str, bytes] = field(default_factory=dict)
    phases: list[str] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)

    def enter(self, phase: str) -> Watch:
        self.phases.append(phase)
        return self

    def advance(self, done: int, total: int) -> None:
        self.fractions.append(done / total)
        if len(self.fractions) >= self.stop_after:
            raise Stopped

    def load(self, name: str) -> bytes | None:
        return self.kept.get(name)

    def save(self, name: str, data: bytes) -> None:
        self.kept[name] = data


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("models.filtering.fitting.SAMPLES_AN_EPOCH", 200)
    monkeypatch.setattr("models.surrogates.IMAGES_AN_EPOCH", 60)
    monkeypatch.setattr("models.perturbations.ROWS", 60)
    yield


def blobs(count: int = 60) -> tuple[Images, npt.NDArray[np.int64]]:
    """Squares of any brightness at two places: what an autoencoder of few numbers can learn."""
    rng = np.random.default_rng(0)
    images, labels = np.zeros((count, 8, 8, 1), np.uint8), rng.integers(0, 2, count)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] = rng.integers(100, 256)
    return images, labels.astype(np.int64)


def searched(given: dict[str, Any], journal: Journal | None = None) -> SearchResult:
    journal = journal or Journal()
    spec = SanitiseSpec.model_validate(given)
    return search_filter(*blobs(), spec, num_classes=2, watch_for=journal.enter, checkpoints=journal)


def untimed(result: SearchResult) -> list[dict[str, Any]]:
    return [{**asdict(trial), "seconds": 0} for trial in result.trials]


def test_the_best_trial_is_chosen_and_the_given_setting_is_the_first() -> None:
    journal = Journal()
    result = searched(TINY, journal)
    values = [trial.value for trial in result.trials]
    assert [trial.state for trial in result.trials] == ["complete"] * 4
    best = result.trials[int(np.argmin(np.array(values, float)))]
    chosen = result.spec.filter.model_dump()
    assert {**chosen, "peak_lr": chosen["fit"]["peak_lr"]}.items() >= best.params.items()
    first = result.trials[0].params
    assert first == {"peak_lr": 5e-3, "width": 4, "latent": 8, "noise_std": 0.1}
    assert len({json.dumps(trial.params) for trial in result.trials}) == 4
    assert result.spec.search is None
    assert result.spec.calibration == SanitiseSpec.model_validate(TINY).calibration
    assert SanitiseSpec.model_validate(json.loads(result.spec.model_dump_json())) == result.spec
    assert journal.phases == ["search"]
    assert journal.fractions == sorted(journal.fractions)
    assert journal.fractions[-1] == 1
    json.dumps([asdict(trial) for trial in result.trials])


def test_a_seed_is_a_search_and_another_is_another() -> None:
    once, again, other = searched(TINY), searched(TINY), searched(TINY | {"seed": 3})
    assert untimed(once) == untimed(again)
    assert once.trials[1].params != other.trials[1].params


def test_a_search_stopped_goes_on_as_if_it_had_not_been() -> None:
    whole, counted = searched(TINY), Journal()
    searched(TINY, counted)
    journal = Journal(stop_after=round(0.7 * len(counted.fractions)))
    with pytest.raises(Stopped):
        searched(TINY, journal)
    done = json.loads(journal.kept["search"])[1]
    assert 1 <= len(done) <= 3
    journal.stop_after = 10**9
    resumed = searched(TINY, journal)
    assert untimed(resumed) == untimed(whole)
    assert resumed.trials[0].seconds == done[0]["seconds"]  # kept, not run again
    assert untimed(searched(TINY | {"seed": 9}, journal))[1:] != untimed(whole)[1:]  # of another search: ignored


def test_seconds_end_a_search_within_a_trial() -> None:
    given = TINY | {"filter": {"width": 32, "fit": {"epochs": 500}}, "search": {"trials": 50, "seconds": 0.3}}
    began = time.monotonic()
    result = searched(given)
    assert time.monotonic() - began < 3
    assert [trial.state for trial in result.trials] == ["out_of_time"]
    assert result.spec.filter == SanitiseSpec.model_validate(given).filter  # nothing better is known


def test_a_trial_that_diverges_is_told_and_not_chosen() -> None:
    given = TINY | {"filter": {"width": 4, "latent": 8, "fit": {"epochs": 3, "optimizer": "sgd", "peak_lr": 10}}}
    given["filter"]["contractive_weight"] = 1e6
    result = searched(given | {"search": {"trials": 2, "seconds": 60}})
    assert result.trials[0].state == "diverged"
    assert result.trials[0].value is None


def test_the_value_is_that_of_images_no_trial_was_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Images] = []
    judged: list[Images] = []
    fit_autoencoder, value_of = fitting.fit_autoencoder, search._value

    def fitting_spied(material: fitting.Material, *rest: Any) -> Any:
        fitted.append(material.images)
        return fit_autoencoder(material, *rest)

    def judging_spied(network: Any, held_out: fitting.Material, spec: SanitiseSpec) -> float:
        judged.append(held_out.images)
        return value_of(network, held_out, spec)

    monkeypatch.setattr(search, "fit_autoencoder", fitting_spied)
    monkeypatch.setattr(search, "_value", judging_spied)
    images = np.random.default_rng(1).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    spec = SanitiseSpec.model_validate(TINY | {"search": {"trials": 1}})
    journal = Journal()
    search_filter(images, np.arange(50) % 2, spec, num_classes=2, watch_for=journal.enter, checkpoints=journal)
    assert (len(fitted[0]), len(judged[0])) == (40, 10)
    assert not {image.tobytes() for image in fitted[0]} & {image.tobytes() for image in judged[0]}


@pytest.mark.parametrize("kind", ["residual", "bottleneck"])
def test_filters_that_learn_from_perturbations_are_searched_too(kind: str) -> None:
    given = {
        "filter": {"kind": kind, "width": 4, "fit": {"epochs": 1}},
        "perturbation": {"surrogates": 1, "steps": 1},
        "search": {"trials": 2},
    }
    journal = Journal()
    result = searched(given, journal)
    assert [trial.state for trial in result.trials] == ["complete"] * 2
    assert set(result.trials[1].params) == {"peak_lr", "width", "depth" if kind == "residual" else "latent"}
    assert any(name.startswith("surrogate-") for name in journal.kept)  # the fit afterwards need not make them again


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_sampler_learns_from_every_preset_s_own_setting(preset: str) -> None:
    own = SanitiseSpec.model_validate({"preset": preset}).filter
    assert search._within(search._own_params(own), search._space(own))
    assert search._with(own, search._own_params(own)) == own


def test_what_cannot_be_searched_is_refused() -> None:
    journal = Journal()
    images, labels = blobs(2)
    spec = SanitiseSpec.model_validate(TINY)
    with pytest.raises(TooFewToSearch, match="2"):
        search_filter(images, labels, spec, num_classes=2, watch_for=journal.enter, checkpoints=journal)
    with pytest.raises(ValueError, match="no search"):
        searched(TINY | {"search": None})
