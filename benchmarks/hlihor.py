"""Hlihor's grid: `python -m benchmarks.hlihor --data FOLDER [--images 1000] [--seeds 0,1,2] [--only PART,…] [--quick]`.

Autoencoders before a classifier, the two attacked as one by Carlini-Wagner in an L∞ box; the paper's figures 1 to 5.
Traffic signs are GTSRB's, which the paper's Belgian ones are kin to.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import attackers, datasets, hlihor_figures
from benchmarks.datasets import ImageSet
from benchmarks.detection_record import Measured, Record, Run, at_least, share
from models.attacks.carlini_wagner import carlini_wagner
from models.autoencoders.convolutional import ConvolutionalAutoencoder
from models.filter_specs import ConvolutionalSpec
from models.filtering import Filter
from models.filtering.fitting import Material, fit_autoencoder
from models.filtering.trained import build
from models.images import to_float
from models.seeding import derive_seed
from models.specs import SanitiseSpec
from models.training import Forgetful, Silent

NAME = "hlihor"
DATA_SETS = ("mnist", "fashion-mnist", "gtsrb")
EPS = {"gtsrb": (0.005, 0.01, 0.02, 0.03)}
EPS_OF_DIGITS = (0.05, 0.1, 0.2, 0.3)
LATENT_EPS = {"gtsrb": 0.02}
LATENT_EPS_OF_DIGITS = 0.1
"""Where accuracy begins to fall: there the codes of clean and attacked images are compared."""

NOISES = (0.1, 0.2, 0.3, 0.4)
SCALES = (0.0, 1.0, 5.0, 25.0, 100.0)
PENALTIES = (0.0, 0.1, 1.0, 10.0)
STEPS, LR = 100, 0.1
BATCH = 250
TRAIN_IMAGES = 8000


@dataclass(frozen=True, eq=False)
class Setting:
    """One data set under one seed: the classifier that every autoencoder stands before, and what is attacked."""

    data: ImageSet
    seed: int
    steps: int
    noises: tuple[float, ...]
    eps: tuple[float, ...]
    train: np.ndarray
    classifier: nn.Module
    x: torch.Tensor
    y: torch.Tensor

    @property
    def latent_eps(self) -> float:
        asked = LATENT_EPS.get(self.data.name, LATENT_EPS_OF_DIGITS)
        return min(self.eps, key=lambda eps: abs(eps - asked))

    def claim(self, *parts: str) -> str:
        return "/".join((NAME, self.data.name, *parts))


class FourConvolutions(nn.Module):
    """Four 3×3 convolutions, two of them halving the sides, and a fully connected layer."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((channels, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (-(-size // 4)) ** 2, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x - 0.5)
        return logits


class Stacked(nn.Module):
    """What is attacked: the classifier of the reconstruction."""

    def __init__(self, autoencoder: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.autoencoder, self.classifier = autoencoder, classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.autoencoder(x))
        return logits


def deterministic(setting: Setting) -> Iterator[Measured]:
    """Figure 1, and of figure 5 what is without a variational code."""
    yield from _alone(setting)
    yield from _families(setting, variational=False)


def variational(setting: Setting) -> Iterator[Measured]:
    """Figures 2 and 3, and the rest of figure 5."""
    yield from _families(setting, variational=True)


def contractive(setting: Setting) -> Iterator[Measured]:
    """Figure 4: the least noise, growing penalties."""
    for family, is_variational in (("cae", False), ("cvae", True)):
        for weight in PENALTIES:
            spec = ConvolutionalSpec(
                variational=is_variational,
                sample=is_variational,
                noise_std=setting.noises[0],
                contractive_weight=weight,
            )
            yield from _attacked(setting, _fitted(setting, spec), (family, f"penalty-{weight:g}"))


PARTS = {"deterministic": deterministic, "variational": variational, "contractive": contractive}


def _alone(setting: Setting) -> Iterator[Measured]:
    yield from _attacked(setting, None, ("none", "alone"))


def _families(setting: Setting, *, variational: bool) -> Iterator[Measured]:
    names = ("vae", "dvae") if variational else ("ae", "dae")
    curves: dict[tuple[str, float], list[float]] = {}
    for family, denoising in zip(names, (False, True), strict=True):
        for noise in setting.noises:
            spec = ConvolutionalSpec(variational=variational, sample=variational, denoising=denoising, noise_std=noise)
            fitted = _fitted(setting, spec)
            found = list(_attacked(setting, fitted, (family, f"noise-{noise:g}"), latent=True))
            curves[family, noise] = [each.value for each in found if "/accuracy/" in each.claim][1:]
            yield from found
            if variational and noise == setting.noises[-1]:
                for scale in SCALES:
                    yield from _attacked(setting, _scaled(fitted, scale), (family, f"scale-{scale:g}"))
    plain, other = names
    pairs = [(curves[plain, noise], curves[other, noise]) for noise in setting.noises]
    yield _mostly(setting.claim(f"{other}-at-least-{plain}"), pairs)
    for family in names:
        least, most = curves[family, setting.noises[0]], curves[family, setting.noises[-1]]
        yield _mostly(setting.claim(f"{family}-more-noise-at-least-less"), [(least, most)])


def _mostly(claim: str, pairs: list[tuple[list[float], list[float]]]) -> Measured:
    """The share of the points of two curves at which the second is not below the first: wanted at most of them."""
    apart = np.concatenate([np.subtract(second, first) for first, second in pairs])
    return Measured(claim, float((apart >= 0).mean()), at_least(0.5 + 1e-9), n=len(apart))


def _fitted(setting: Setting, spec: ConvolutionalSpec) -> Filter:
    asked = SanitiseSpec(filter=spec, seed=setting.seed)
    images = setting.data.images[setting.train]
    return fit_autoencoder(Material(images, None), setting.data.image_shape, asked, Silent(), Forgetful())[0]


def _scaled(fitted: Filter, scale: float) -> Filter:
    layers = {**fitted.layers, "latent_scale": scale}
    network = build("convolutional", fitted.image_shape, layers)
    network.load_state_dict(fitted.network.state_dict())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Filter(network.eval(), fitted.image_shape, layers)


def _attacked(
    setting: Setting, fitted: Filter | None, name: tuple[str, str], *, latent: bool = False
) -> Iterator[Measured]:
    """Accuracy by ε. An image fooled within a box stays fooled within a larger one, and is not attacked again."""
    stack = setting.classifier if fitted is None else Stacked(fitted.network, setting.classifier)
    right, count, found = _right(stack, setting.x, setting.y), len(setting.y), setting.x.clone()
    yield share(setting.claim("accuracy", *name, "eps-0"), int(right.sum()), count)
    for eps in setting.eps:
        for rows in right.nonzero().squeeze(1).split(BATCH):
            x, y = setting.x[rows], setting.y[rows]
            found[rows] = carlini_wagner(stack, x, y, eps_linf=eps, steps=setting.steps, lr=LR)
        right = right & _right(stack, found, setting.y)
        yield share(setting.claim("accuracy", *name, f"eps-{eps:g}"), int(right.sum()), count)
        if latent and fitted is not None and eps == setting.latent_eps:
            yield from _codes(setting, fitted, found, name)


def _codes(setting: Setting, fitted: Filter, x_adv: torch.Tensor, name: tuple[str, str]) -> Iterator[Measured]:
    """How the attack moves the code's mean: the cosine with the clean one, and the ratio of norms."""
    network = fitted.network
    assert isinstance(network, ConvolutionalAutoencoder)
    with torch.inference_mode():
        clean, moved = network.encode(setting.x).mean, network.encode(x_adv).mean
    cosine = torch.nn.functional.cosine_similarity(clean, moved).mean()
    ratio = (moved.norm(dim=1) / clean.norm(dim=1)).mean()
    for what, value in (("cosine", cosine), ("norm-ratio", ratio)):
        yield Measured(setting.claim("code", *name, what), float(value), n=len(clean))


def _right(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        answers = [network(part).argmax(1) for part in x.split(BATCH)]
    return torch.cat(answers) == y


def _setting(data: ImageSet, seed: int, *, images: int, quick: bool) -> Setting:
    rng = np.random.default_rng((seed, 5))
    train = np.sort(rng.choice(len(data.labels), 2000 if quick else TRAIN_IMAGES, replace=False))
    torch.manual_seed(derive_seed(seed, "hlihor"))
    network = FourConvolutions(data.image_shape[2], data.image_shape[0], data.num_classes)
    epochs = 6 if quick else 12
    classifier = attackers.train(network, data.images[train], data.labels[train], epochs=epochs, seed=seed)
    for parameter in classifier.parameters():
        parameter.requires_grad_(False)
    first = np.arange(len(data.test_labels)) if data.groups is None else rng.permutation(len(data.test_labels))
    chosen = first[:images]
    eps, noises = EPS.get(data.name, EPS_OF_DIGITS), NOISES
    return Setting(
        data,
        seed,
        30 if quick else STEPS,
        (noises[0], noises[-1]) if quick else noises,
        eps[1::2] if quick else eps,
        train,
        classifier,
        to_float(data.test_images[chosen]),
        torch.from_numpy(data.test_labels[chosen]),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist.npz, fashion-mnist.npz, gtsrb.npz")
    parser.add_argument("--images", type=int, default=1000, help="test images attacked; the paper takes 1,000")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--data-sets", default=",".join(DATA_SETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--quick", action="store_true", help="a smaller run for a first look; writes no file")
    asked = parser.parse_args()
    record = Record.open(NAME, quick=asked.quick)
    images = min(asked.images, 50) if asked.quick else asked.images
    for data_set in asked.data_sets.split(","):
        for seed in map(int, asked.seeds.split(",")):
            setting = _setting(datasets.load(asked.data, data_set), seed, images=images, quick=asked.quick)
            for part in asked.only.split(","):
                print(f"{time.strftime('%H:%M:%S')} {part} {data_set} seed {seed}", flush=True)
                began = time.monotonic()
                measured = list(PARTS[part](setting))
                run = Run.of(part, data_set, seed, measured, time.monotonic() - began, NAME)
                record.add(run, quick=asked.quick)
    if not asked.quick:
        hlihor_figures.draw(record.rows())
    return 0 if record.print() else 1


if __name__ == "__main__":
    sys.exit(main())
