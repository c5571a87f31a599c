"""The filter from clean images: surrogates, perturbations, an autoencoder that learns to undo them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.batches import ShortEpochs
from models.filter_specs import BottleneckSpec, ConvolutionalSpec, FilterSpec, ResidualSpec
from models.filtering.losses import convolutional_loss, denoising_loss, residual_loss
from models.filtering.told_apart import told_apart
from models.filtering.trained import Filter, build
from models.images import Images, check_images
from models.perturbations import craft
from models.seeding import derive_seed, seeded
from models.specs import SanitiseSpec
from models.surrogates import Surrogate, check_labels, classify, fit_surrogates
from models.training import Checkpoints, FitResult, ImageBatches, Loss, Watch, fit

PATCH_SIDE = 64
"""The residual denoiser is fitted on patches of larger images: it is the same at every place."""
SAMPLES_AN_EPOCH = 4000
"""About as many in every epoch: a small reference is repeated, of a large one another part is drawn each time."""
CHECKPOINT = "denoiser"


class NoSurrogates(RuntimeError):
    """A filter that was fitted without surrogates was asked for the label of an image."""


@dataclass(frozen=True)
class Material:
    """What an autoencoder is fitted on. images: uint8 (m, h, w, c); deltas: int8 of the same shape, or None.

    source: int64 (m,), which image each row is of, so that none is both fitted on and held out; None: one row each.
    """

    images: Images
    deltas: npt.NDArray[np.int8] | None
    source: npt.NDArray[np.int64] | None = None

    @property
    def targets(self) -> tuple[npt.NDArray[np.int8], ...]:
        return () if self.deltas is None else (self.deltas,)


@dataclass(frozen=True, eq=False)
class FilterFit:
    """A fitted filter and how it came about; `notes` is JSON-able."""

    filter: Filter
    losses: FitResult
    surrogates: list[Surrogate]  # none where neither the autoencoder nor the policy wants them
    notes: dict[str, Any]

    def classify(self, images: Images) -> npt.NDArray[np.int64]:
        """The label (n,) that the surrogates, which know only the reference, give each image. Raises NoSurrogates."""
        if not self.surrogates:
            raise NoSurrogates("this filter was fitted without surrogates; ask for on_flag = reform")
        return classify(self.surrogates, images)


def fit_filter(
    images: Images,
    labels: npt.NDArray[np.int64],
    spec: SanitiseSpec,
    *,
    num_classes: int,
    watch_for: Callable[[str], Watch],
    checkpoints: Checkpoints,
) -> FilterFit:
    """Fit the filter on clean images; announces the phases "surrogates", "perturbing" and "denoiser".

    Autoencoders that learn from Gaussian noise alone pass over the second, and unless flagged images are to be
    reformed over the first too.
    images: uint8 (n, h, w, c); labels: int64 (n,) in [0, num_classes), classes may be missing. Hold back what is to
    calibrate. Everything random comes from `spec.seed`. Raises NotImages, UnfitLabels, Diverged, Stopped.
    """
    check_images(images)
    check_labels(images, labels, num_classes)
    clock = _Clock(watch_for)
    surrogates: list[Surrogate] = []
    if wants_perturbations(spec.filter) or spec.policy.on_flag == "reform":
        surrogates = fit_surrogates(
            images,
            labels,
            count=spec.perturbation.surrogates,
            epochs=spec.perturbation.surrogate_epochs,
            num_classes=num_classes,
            seed=spec.seed,
            watch=clock.enter("surrogates"),
            checkpoints=checkpoints,
        )
    material = Material(images, None)
    if wants_perturbations(spec.filter):
        material = perturbed(images, labels, surrogates, spec, clock.enter("perturbing"))
    fitted, losses = fit_autoencoder(material, _shape(images), spec, clock.enter("denoiser"), checkpoints)
    notes = {
        "images": len(images),
        "perturbations": 0 if material.deltas is None else len(material.deltas),
        "surrogates": {surrogate.name: surrogate.validation_accuracy for surrogate in surrogates},
        "told_apart": _told_apart(fitted, material, spec),
        "seconds": clock.close(),
    }
    return FilterFit(fitted, losses, surrogates, notes)


def wants_perturbations(spec: FilterSpec) -> bool:
    """Whether the autoencoder learns from perturbed images, not from noise alone."""
    return not isinstance(spec, ConvolutionalSpec)


def perturbed(
    images: Images, labels: npt.NDArray[np.int64], surrogates: list[Surrogate], spec: SanitiseSpec, watch: Watch
) -> Material:
    """The images with what attacks on the surrogates add to them. Raises Stopped."""
    made = craft(
        images,
        labels,
        [surrogate.network for surrogate in surrogates],
        spec.perturbation,
        largest_side=PATCH_SIDE if spec.filter.kind == "residual" else None,
        seed=spec.seed,
        watch=watch,
    )
    return Material(made.images, made.deltas, made.source)


def fit_autoencoder(
    material: Material, image_shape: tuple[int, int, int], spec: SanitiseSpec, watch: Watch, checkpoints: Checkpoints
) -> tuple[Filter, FitResult]:
    """Fit `spec.filter` for images of (h, w, c). Raises Diverged, Stopped."""
    own, seed = spec.filter, derive_seed(spec.seed, CHECKPOINT)
    layers = _layers(own, spec)
    with seeded(seed):
        network = build(own.kind, image_shape, layers)
    batches = ShortEpochs.of(_batches(material, spec), SAMPLES_AN_EPOCH, own.fit.batch_size)
    losses = fit(
        network, batches, loss_of(spec), own.fit, seed=seed, watch=watch, checkpoints=checkpoints, name=CHECKPOINT
    )
    return Filter(network, image_shape, layers), losses


def _batches(material: Material, spec: SanitiseSpec) -> ImageBatches:
    """The same images held out whenever it is asked."""
    seed, own = derive_seed(spec.seed, CHECKPOINT), spec.filter.fit
    return ImageBatches(
        material.images,
        *material.targets,
        spec=own,
        seed=seed,
        groups=material.source,
        samples_an_epoch=SAMPLES_AN_EPOCH,
    )


def _told_apart(fitted: Filter, material: Material, spec: SanitiseSpec) -> float | None:
    if material.deltas is None:
        return None
    return told_apart(fitted.network, _batches(material, spec), eps_linf=spec.perturbation.eps_linf)


def loss_of(spec: SanitiseSpec) -> Loss:
    """What the spec's autoencoder is trained to make small."""
    if isinstance(spec.filter, ResidualSpec):
        return residual_loss(spec.perturbation)
    if isinstance(spec.filter, BottleneckSpec):
        return denoising_loss(spec.perturbation)
    return convolutional_loss(spec.filter)


def _layers(own: FilterSpec, spec: SanitiseSpec) -> dict[str, Any]:
    if isinstance(own, ResidualSpec):
        return {"width": own.width, "depth": own.depth, "eps_linf": spec.perturbation.eps_linf}
    if isinstance(own, BottleneckSpec):
        return {"width": own.width, "latent": own.latent}
    return {
        "width": own.width,
        "latent": own.latent,
        "variational": own.variational,
        "latent_scale": own.latent_scale,
        "noise_seed": derive_seed(spec.seed, "code") if own.sample else None,
    }


def _shape(images: Images) -> tuple[int, int, int]:
    height, width, channels = images.shape[1:]
    return height, width, channels


class _Clock:
    """Enters phases, and gathers how long each took."""

    def __init__(self, watch_for: Callable[[str], Watch]) -> None:
        self._watch_for = watch_for
        self._entered: list[tuple[str, float]] = []

    def enter(self, phase: str) -> Watch:
        self._entered.append((phase, time.monotonic()))
        return self._watch_for(phase)

    def close(self) -> dict[str, float]:
        ends = [*(start for _, start in self._entered[1:]), time.monotonic()]
        return {phase: round(end - start, 3) for (phase, start), end in zip(self._entered, ends, strict=True)}
