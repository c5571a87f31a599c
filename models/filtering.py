"""The filter as a whole: surrogates, perturbations, a denoising autoencoder, and the score of an image.

It tells whether an image was perturbed, not whether anybody meant harm: benign noise as strong is flagged too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoders.bottleneck import BottleneckAutoencoder
from models.autoencoders.residual import ResidualDenoiser
from models.detectors.reconstruction_error import reconstruction_error
from models.detectors.residual_energy import residual_energy
from models.device import device_of, exact_convolutions, pick_device
from models.images import Images, check_images, chunks, to_float
from models.perturbations import Perturbations, add, craft
from models.seeding import derive_seed, seeded
from models.specs import BottleneckSpec, PerturbationSpec, SanitiseSpec
from models.surrogates import Surrogate, check_labels, classify, fit_surrogates
from models.training import Batch, Checkpoints, FitResult, ImageBatches, Loss, Watch, fit

PATCH_SIDE = 64
"""The residual denoiser is fitted on patches of larger images: it is the same at every place."""
SAMPLES_AN_EPOCH = 4000
PIXELS_A_BATCH = 2**17
CHECKPOINT = "denoiser"
FAINTEST = 0.2
"""Mean square, in ε², of a perturbation that counts for little more than a clean image: one level of 256."""

Network = ResidualDenoiser | BottleneckAutoencoder


class OtherShape(ValueError):
    """Images of another shape than those that the filter was fitted on."""


class UnknownFilter(ValueError):
    """Meta data of a filter that this version cannot build."""


class FilterModule(nn.Module):
    """images uint8 (n, h, w, c) to (scores float32 (n,), reconstructions uint8 (n, h, w, c))."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_nhwc: Tensor) -> tuple[Tensor, Tensor]:
        x = to_float(images_nhwc, images_nhwc.device)
        if isinstance(self.network, ResidualDenoiser):
            perturbation = self.network(x)
            scores, x_hat = residual_energy(perturbation), self.network.remove(x, perturbation)
        else:
            x_hat = self.network(x)
            scores = reconstruction_error(x, x_hat)
        return scores, (x_hat * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@dataclass(frozen=True, eq=False)
class Filter:
    """A fitted autoencoder with its score. image_shape: (h, w, c) of what it was fitted on, and takes."""

    network: Network
    image_shape: tuple[int, int, int]
    layers: dict[
        str, Any
    ]  # what builds the network: width and depth, or width and latent; eps_linf of the residual one

    @property
    def kind(self) -> str:
        return "residual" if isinstance(self.network, ResidualDenoiser) else "bottleneck"

    @property
    def score_name(self) -> str:
        return "residual_energy" if self.kind == "residual" else "reconstruction_error"

    def score(self, images: Images) -> npt.NDArray[np.float32]:
        """How suspicious each image is, (n,); the same whatever the images beside it. Raises NotImages, OtherShape."""
        return self._run(images)[0]

    def reconstruct(self, images: Images) -> Images:
        """The images as the autoencoder gives them back, rounded to 8 bits. Raises NotImages, OtherShape."""
        return self._run(images)[1]

    def _run(self, images: Images) -> tuple[npt.NDArray[np.float32], Images]:
        """Batches of one fixed size, filled up with black images: kernels are chosen by the size of a batch."""
        check_images(images)
        if images.shape[1:] != self.image_shape:
            raise OtherShape(f"the filter takes images of shape {self.image_shape}, not {images.shape[1:]}")
        size = max(1, min(128, PIXELS_A_BATCH // (self.image_shape[0] * self.image_shape[1])))
        scores, rebuilt = np.empty(len(images), np.float32), np.empty_like(images)
        module, device = self.as_module(), device_of(self.network)
        batch = np.zeros((size, *self.image_shape), np.uint8)
        with torch.inference_mode(), exact_convolutions():
            for rows in chunks(len(images), size):
                count = rows.stop - rows.start
                batch[:count], batch[count:] = images[rows], 0
                got = module(torch.from_numpy(batch).to(device))
                scores[rows], rebuilt[rows] = (part[:count].cpu().numpy() for part in got)
        return scores, rebuilt

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The weights, by name; together with `meta` all that `load` wants."""
        return {name: value.cpu().contiguous().numpy() for name, value in self.network.state_dict().items()}

    def meta(self) -> dict[str, Any]:
        """What the weights belong to, JSON-able."""
        return {"kind": self.kind, "image_shape": list(self.image_shape), "layers": self.layers}

    @classmethod
    def load(cls, state: dict[str, npt.NDArray[Any]], meta: dict[str, Any]) -> Filter:
        """The filter that gave `state` and `meta`, on `pick_device()`. Raises UnknownFilter."""
        try:
            height, width, channels = meta["image_shape"]
            network = _build(meta["kind"], (height, width, channels), meta["layers"])
            network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UnknownFilter(f"these weights and meta data make no filter: {error}") from error
        network.to(device=pick_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(network.eval(), (height, width, channels), meta["layers"])

    def as_module(self) -> nn.Module:
        """The whole of it as one module on the network's device, for export: see FilterModule."""
        return FilterModule(self.network).eval()


@dataclass(frozen=True, eq=False)
class FilterFit:
    """A fitted filter and how it came about; `notes` is JSON-able."""

    filter: Filter
    losses: FitResult
    surrogates: list[Surrogate]
    notes: dict[str, Any]

    def classify(self, images: Images) -> npt.NDArray[np.int64]:
        """The label (n,) that the surrogates, which know only the reference, give each image."""
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

    images: uint8 (n, h, w, c); labels: int64 (n,) in [0, num_classes), classes may be missing. Hold back what is to
    calibrate. Everything random comes from `spec.seed`. Raises NotImages, UnfitLabels, Diverged, Stopped.
    """
    check_images(images)
    check_labels(images, labels, num_classes)
    clock = _Clock(watch_for)
    surrogates = fit_surrogates(
        images,
        labels,
        count=spec.perturbation.surrogates,
        num_classes=num_classes,
        seed=spec.seed,
        watch=clock.enter("surrogates"),
        checkpoints=checkpoints,
    )
    perturbations = craft(
        images,
        labels,
        [surrogate.network for surrogate in surrogates],
        spec.perturbation,
        largest_side=PATCH_SIDE if spec.filter.kind == "residual" else None,
        seed=spec.seed,
        watch=clock.enter("perturbing"),
    )
    height, width, channels = images.shape[1:]
    fitted, losses = _fit_autoencoder(
        perturbations, (height, width, channels), spec, clock.enter("denoiser"), checkpoints
    )
    notes = {
        "images": len(images),
        "perturbations": len(perturbations.images),
        "surrogates": {surrogate.name: surrogate.validation_accuracy for surrogate in surrogates},
        "seconds": clock.close(),
    }
    return FilterFit(fitted, losses, surrogates, notes)


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


def _fit_autoencoder(
    perturbations: Perturbations,
    image_shape: tuple[int, int, int],
    spec: SanitiseSpec,
    watch: Watch,
    checkpoints: Checkpoints,
) -> tuple[Filter, FitResult]:
    own, seed = spec.filter, derive_seed(spec.seed, CHECKPOINT)
    layers: dict[str, Any]
    if isinstance(own, BottleneckSpec):
        layers, loss = {"width": own.width, "latent": own.latent}, _denoising_loss(spec.perturbation)
    else:
        layers = {"width": own.width, "depth": own.depth, "eps_linf": spec.perturbation.eps_linf}
        loss = _residual_loss(spec.perturbation)
    with seeded(seed):
        network = _build(own.kind, image_shape, layers)
    batches = ImageBatches(
        perturbations.images, perturbations.deltas, spec=own.fit, seed=seed, samples_an_epoch=SAMPLES_AN_EPOCH
    )
    losses = fit(network, batches, loss, own.fit, seed=seed, watch=watch, checkpoints=checkpoints, name=CHECKPOINT)
    return Filter(network, image_shape, layers), losses


def _build(kind: str, image_shape: tuple[int, int, int], layers: dict[str, Any]) -> Network:
    height, width, channels = image_shape
    if kind == "residual":
        return ResidualDenoiser(channels=channels, **layers)
    if kind == "bottleneck":
        return BottleneckAutoencoder(image_shape=(channels, height, width), **layers)
    raise UnknownFilter(f"no filter is of kind {kind!r}")


def _residual_loss(spec: PerturbationSpec) -> Loss:
    """Squared error between n(x) and the perturbation in units of ε, of batches (x, deltas), by the image's strength.

    An image's error is divided by FAINTEST plus its perturbation's own mean square: otherwise strong perturbations,
    which anything can see, make up nearly all of the loss, and the score of clean images is left to chance.
    """

    def loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        x, deltas = batch
        x_adv = add(x, deltas, spec, rng)
        target = ((x_adv - x) / spec.eps_linf).flatten(1)
        error = (model(x_adv).flatten(1) - target).square().mean(dim=1)
        weighted: Tensor = error / (FAINTEST + target.square().mean(dim=1))
        return weighted.mean()

    return loss


def _denoising_loss(spec: PerturbationSpec) -> Loss:
    """Mean squared error between the reconstruction and the clean image, of batches (x, deltas)."""

    def loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        x, deltas = batch
        return F.mse_loss(model(add(x, deltas, spec, rng)), x)

    return loss
