"""Better hyperparameters for a filter: a seeded search that is judged on images no trial was fitted on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import optuna
import torch
import torch.nn.functional as F
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from models.device import device_of
from models.filter_specs import ConvolutionalSpec, FilterSpec, ResidualSpec
from models.filtering.fitting import Material, fit_autoencoder, loss_of, perturbed, wants_perturbations
from models.filtering.losses import noisy
from models.filtering.trained import Network
from models.images import Images, check_images, chunks, to_float
from models.seeding import derive_seed
from models.specs import SanitiseSpec
from models.surrogates import check_labels, fit_surrogates
from models.training import Checkpoints, Diverged, Forgetful, Piece, Watch

HELD_OUT_SHARE = 0.2
CHECKPOINT = "search"
RANDOM_TRIALS = 5
"""Drawn at random before the sampler learns from what it saw."""

Params = dict[str, Any]
State = Literal["complete", "out_of_time", "diverged"]


class TooFewToSearch(ValueError):
    """Too few images to hold some out of the trials."""


@dataclass(frozen=True)
class Trial:
    """One setting tried. value: the loss on the held-out images, smaller is better; None where there is none."""

    params: Params
    value: float | None
    seconds: float
    state: State


@dataclass(frozen=True)
class SearchResult:
    """spec: what to fit with, its `search` done and empty; trials: in the order they ran, JSON-able by `asdict`."""

    spec: SanitiseSpec
    trials: list[Trial]


class _OutOfTime(Exception):
    """The search's seconds are up."""


def search_filter(
    images: Images,
    labels: npt.NDArray[np.int64],
    spec: SanitiseSpec,
    *,
    num_classes: int,
    watch_for: Callable[[str], Watch],
    checkpoints: Checkpoints,
) -> SearchResult:
    """Try `spec.search.trials` settings of `spec.filter`, the given one first; announces the phase "search".

    images, labels: what the filter may be fitted on, never what calibrates it; a fifth is held out of every trial.
    The value of a trial is `spec`'s own loss on them, or for Hlihor's autoencoders the squared error against the clean
    image under `spec`'s own noise: it means the same whatever is tried. Weights of a loss's terms are not searched, a
    loss cannot judge them.
    No trial begins after `spec.search.seconds`, and the one under way is dropped; a search that goes on from its
    checkpoint has spent the time its finished trials took. Which settings are tried depends on `spec.seed` and on the
    values seen before alone.
    Raises NotImages, UnfitLabels, TooFewToSearch, Stopped, ValueError where `spec.search` is None.
    Source: Bergstra et al. 2011 (TPE), by Optuna.
    """
    if spec.search is None:
        raise ValueError("the spec asks for no search")
    check_images(images)
    check_labels(images, labels, num_classes)
    watch, limits = watch_for("search"), spec.search
    began = time.monotonic()
    prepared = _prepare(images, labels, spec, num_classes, Piece(watch, 0, limits.trials + 1), checkpoints)
    trials = _kept(checkpoints, spec)
    spent = sum(trial.seconds for trial in trials) + time.monotonic() - began
    while len(trials) < limits.trials and spent < limits.seconds:
        params = _own_params(spec.filter) if not trials else _suggest(trials, spec)
        clock = _Deadline(Piece(watch, len(trials) + 1, limits.trials + 1), limits.seconds - spent)
        trials.append(_try(params, spec, prepared, clock))
        spent += trials[-1].seconds
        checkpoints.save(CHECKPOINT, json.dumps([_identity(spec), [asdict(trial) for trial in trials]]).encode())
    watch.advance(1, 1)
    complete = [trial for trial in trials if trial.value is not None]
    best = min(complete, key=lambda trial: trial.value or 0.0).params if complete else {}
    return SearchResult(spec.model_copy(update={"filter": _with(spec.filter, best), "search": None}), trials)


@dataclass(frozen=True)
class _Prepared:
    fitted_on: Material
    held_out: Material
    image_shape: tuple[int, int, int]


@dataclass(frozen=True)
class _Deadline:
    """A watch that ends a trial where its time is up."""

    whole: Watch
    seconds: float
    began: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "began", time.monotonic())

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def advance(self, done: int, total: int) -> None:
        self.whole.advance(done, total)
        if self.elapsed > self.seconds:
            raise _OutOfTime


def _prepare(
    images: Images,
    labels: npt.NDArray[np.int64],
    spec: SanitiseSpec,
    num_classes: int,
    watch: Watch,
    checkpoints: Checkpoints,
) -> _Prepared:
    """The two parts, perturbed once for all trials. The surrogates are those that the fit afterwards wants."""
    held_count = round(HELD_OUT_SHARE * len(images))
    if held_count < 1 or len(images) - held_count < 1:
        raise TooFewToSearch(f"a search holds out a fifth of the images, and there are {len(images)}")
    order = np.random.default_rng(derive_seed(spec.seed, "search")).permutation(len(images))
    parts = [np.sort(order[held_count:]), np.sort(order[:held_count])]
    height, width, channels = images.shape[1:]
    if not wants_perturbations(spec.filter):
        fitted_on, held_out = (Material(images[rows], None) for rows in parts)
        return _Prepared(fitted_on, held_out, (height, width, channels))
    surrogates = fit_surrogates(
        images,
        labels,
        count=spec.perturbation.surrogates,
        epochs=spec.perturbation.surrogate_epochs,
        num_classes=num_classes,
        seed=spec.seed,
        watch=Piece(watch, 0, 3),
        checkpoints=checkpoints,
    )
    fitted_on, held_out = (
        perturbed(images[rows], labels[rows], surrogates, spec, Piece(watch, number, 3))
        for number, rows in enumerate(parts, start=1)
    )
    return _Prepared(fitted_on, held_out, (height, width, channels))


def _try(params: Params, spec: SanitiseSpec, prepared: _Prepared, clock: _Deadline) -> Trial:
    own = _with(spec.filter, params)
    tried = spec.model_copy(update={"filter": own})
    try:
        fitted, _ = fit_autoencoder(prepared.fitted_on, prepared.image_shape, tried, clock, Forgetful())
        value = _value(fitted.network, prepared.held_out, spec)
    except _OutOfTime:
        return Trial(params, None, round(clock.elapsed, 3), "out_of_time")
    except Diverged:
        return Trial(params, None, round(clock.elapsed, 3), "diverged")
    return Trial(params, value, round(clock.elapsed, 3), "complete" if np.isfinite(value) else "diverged")


def _value(network: Network, held_out: Material, spec: SanitiseSpec) -> float:
    """The mean loss over the held-out images, all trials under the same perturbations and the same noise."""
    device, loss, total = device_of(network), loss_of(spec), 0.0
    rng = torch.Generator(device).manual_seed(derive_seed(spec.seed, "search", "held out"))
    with torch.no_grad():
        for rows in chunks(len(held_out.images), 128):
            x = to_float(held_out.images[rows], device)
            if isinstance(spec.filter, ConvolutionalSpec):
                value = F.mse_loss(network(noisy(x, spec.filter.noise_std, rng)), x)
            else:
                deltas = (torch.from_numpy(target[rows]).to(device) for target in held_out.targets)
                value = loss(network, (x, *deltas), rng)
            total += float(value) * len(x)
    return total / len(held_out.images)


def _space(own: FilterSpec) -> dict[str, BaseDistribution]:
    """What is tried for each kind of filter. The one-cycle schedule stands rates far above the usual ones."""
    rate = own.fit.peak_lr
    space: dict[str, BaseDistribution] = {"peak_lr": FloatDistribution(rate / 5, min(10.0, rate * 3), log=True)}
    if isinstance(own, ResidualSpec):
        return {**space, "width": IntDistribution(16, 32, step=4), "depth": IntDistribution(4, 7)}
    space |= {"width": IntDistribution(16, 48, step=8), "latent": CategoricalDistribution((32, 64, 128, 256))}
    if isinstance(own, ConvolutionalSpec) and own.noise_std:
        space["noise_std"] = FloatDistribution(own.noise_std / 2, min(1.0, own.noise_std * 2))
    return space


def _own_params(own: FilterSpec) -> Params:
    """The given setting; what lies outside the space is tried all the same, the sampler does not learn from it."""
    values = own.model_dump()
    return {name: own.fit.peak_lr if name == "peak_lr" else values[name] for name in _space(own)}


def _with(own: FilterSpec, params: Params) -> FilterSpec:
    values = {**own.model_dump(), **{name: value for name, value in params.items() if name != "peak_lr"}}
    if "peak_lr" in params:
        values["fit"] = {**values["fit"], "peak_lr": params["peak_lr"]}
    return type(own).model_validate(values)


def _suggest(trials: list[Trial], spec: SanitiseSpec) -> Params:
    """The next setting, a pure function of the seed and of the trials so far."""
    space = _space(spec.filter)
    sampler = optuna.samplers.TPESampler(
        seed=derive_seed(spec.seed, "search", len(trials)) % 2**32, n_startup_trials=RANDOM_TRIALS
    )
    study = optuna.study.create_study(sampler=sampler, direction="minimize")
    study.add_trials([_as_seen(trial, space) for trial in trials if _within(trial.params, space)])
    return dict(study.ask(space).params)


def _as_seen(trial: Trial, space: dict[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    state = optuna.trial.TrialState.FAIL if trial.value is None else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(state=state, value=trial.value, params=trial.params, distributions=space)


def _within(params: Params, space: dict[str, BaseDistribution]) -> bool:
    for name, part in space.items():
        if isinstance(part, CategoricalDistribution):
            inside = params[name] in part.choices
        elif isinstance(part, IntDistribution):
            inside = params[name] in range(part.low, part.high + 1, part.step)
        else:
            inside = isinstance(part, FloatDistribution) and part.low <= params[name] <= part.high
        if not inside:
            return False
    return True


def _kept(checkpoints: Checkpoints, spec: SanitiseSpec) -> list[Trial]:
    """The finished trials of the same search, cut short before."""
    data = checkpoints.load(CHECKPOINT)
    if data is None:
        return []
    identity, trials = json.loads(data)
    return [Trial(**trial) for trial in trials] if identity == _identity(spec) else []


def _identity(spec: SanitiseSpec) -> str:
    return spec.model_dump_json(include={"filter", "perturbation", "seed"})
