"""Perturbed images of attackers whose networks the filter never saw: which attacks its score finds, and which not."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import nn

from benchmarks import attackers
from benchmarks.attackers import Attack
from benchmarks.datasets import split
from benchmarks.detection_record import SHOWN, Bar, Measured, at_least, share
from benchmarks.detection_setting import Setting, fitted_filter, shown
from models.attacks.adaptive import adaptive_attack
from models.attacks.carlini_wagner import carlini_wagner
from models.attacks.deepfool import deepfool
from models.attacks.gradient import fgsm, ifgsm, pgd
from models.attacks.guarded import Guarded
from models.attacks.saliency import jsma_untargeted
from models.calibration import auroc, conformal_p_values, threshold_at_fpr
from models.detectors.residual_energy import residual_energy
from models.filtering import Filter
from models.seeding import derive_seed

ALPHA = 0.01
TRUSTED, CANDIDATES, CLEAN = 4000, 8000, 2000
PGD_STEPS = 10
JPEG_QUALITY, BLUR_PX = 95, 0.5
MOST_FEATURES = 112
"""Of JSMA, as in Papernot et al. 2016."""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scene:
    """A fitted filter, its calibration scores, clean images with their scores, and the attackers' networks."""

    setting: Setting
    filter: Filter
    calibration: NDArray[np.float32]
    images: Images
    labels: Labels
    clean: NDArray[np.float32]
    networks: dict[str, nn.Module]

    @property
    def count(self) -> int:
        """Of images attacked by what is quick."""
        return 100 if self.setting.quick else 500

    @property
    def few(self) -> int:
        """Of images attacked by what is slow."""
        return 40 if self.setting.quick else 200

    def flagged(self, scores: NDArray[np.float32]) -> int:
        return int((conformal_p_values(scores, self.calibration) <= ALPHA).sum())

    def rows(
        self, name: tuple[str, ...], images: Images, bars: tuple[Bar, Bar], against: NDArray[np.float32] | None = None
    ) -> Iterator[Measured]:
        """How well the images' scores are told from clean ones, and what share is flagged at α."""
        scores = self.filter.score(images)
        value = auroc(scores, self.clean if against is None else against)
        yield Measured(self.setting.claim("detect", *name, "auroc"), value, bars[0], n=len(scores))
        yield share(self.setting.claim("detect", *name, "tpr-at-1%"), self.flagged(scores), len(scores), bars[1])

    def fooled(self, name: tuple[str, ...], network: nn.Module, images: Images, labels: Labels) -> Measured:
        wrong = ~attackers.right(network, images, labels)
        return share(self.setting.claim("detect", *name, "fooled"), int(wrong.sum()), len(wrong))


def measure(setting: Setting) -> Iterator[Measured]:
    scene = _scene(setting)
    yield share(setting.claim("detect", "clean", "fpr-at-1%"), scene.flagged(scene.clean), len(scene.clean))
    for name, network in scene.networks.items():
        yield from _signs(scene, name, network)
    for name in ("mixer", "bottlenecks"):
        yield from _least(scene, name, scene.networks[name])
    yield from _processed(scene)
    yield from _adaptive(scene)


def _scene(setting: Setting) -> Scene:
    data = setting.data
    trusted, candidates, clean = (1000, 3000, 500) if setting.quick else (TRUSTED, CANDIDATES, CLEAN)
    parts = split(data, trusted=trusted, candidates=candidates, seed=setting.seed)
    fitted = fitted_filter(shown(data, parts.fit), setting.spec, data.num_classes).filter
    order = np.random.default_rng((setting.seed, 1)).permutation(parts.candidates)
    test, own = order[:clean], order[clean:]
    networks = {}
    for number, (name, build) in enumerate(attackers.ARCHITECTURES.items()):
        torch.manual_seed(derive_seed(setting.seed, "attacker", name))
        network = build(data.image_shape[2], data.image_shape[0], data.num_classes)
        epochs = 6 if setting.quick else 12
        networks[name] = attackers.train(
            network, data.images[own], data.labels[own], epochs=epochs, seed=setting.seed + number
        )
    return Scene(
        setting,
        fitted,
        fitted.score(data.images[parts.calibrate]),
        data.images[test],
        data.labels[test],
        fitted.score(data.images[test]),
        networks,
    )


def sign_attacks(eps: float, seed: int) -> dict[str, Attack]:
    def started_anywhere(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        rng = torch.Generator().manual_seed(seed)
        return pgd(
            network, x, y, eps_linf=eps, step_linf=eps / 4, steps=PGD_STEPS, restarts=1, loss="cross_entropy", rng=rng
        )

    return {
        "fgsm": lambda network, x, y: fgsm(network, x, y, eps_linf=eps),
        "ifgsm": lambda network, x, y: ifgsm(network, x, y, eps_linf=eps, step_linf=eps, steps=PGD_STEPS),
        "pgd": started_anywhere,
    }


def _signs(scene: Scene, name: str, network: nn.Module) -> Iterator[Measured]:
    images, labels = scene.images[: scene.count], scene.labels[: scene.count]
    accuracy = int(attackers.right(network, scene.images, scene.labels).sum())
    yield share(scene.setting.claim("detect", "attacker", name, "accuracy"), accuracy, len(scene.images))
    for eps, bars in ((0.01, (at_least(0.998), at_least(0.97))), (0.005, (at_least(0.97), SHOWN))):
        for attack, make in sign_attacks(eps, scene.setting.seed).items():
            made = attackers.attacked(network, images, labels, make)
            claim = (f"{attack}-{eps}", name)
            yield from scene.rows(claim, made, bars)
            yield scene.fooled(claim, network, made, labels)


def _least(scene: Scene, name: str, network: nn.Module) -> Iterator[Measured]:
    """Attacks that change as little as fools, on images that the network had right; how little is told with them."""
    able = np.flatnonzero(attackers.right(network, scene.images, scene.labels))[: scene.few]
    images, labels = scene.images[able], scene.labels[able]
    rng = torch.Generator().manual_seed(scene.setting.seed)
    attacks: dict[str, Attack] = {
        "cw-l2": partial(carlini_wagner, eps_linf=None, lr=0.02, steps=60),
        "deepfool": deepfool,
        "jsma": partial(jsma_untargeted, max_features=MOST_FEATURES, rng=rng),
    }
    for attack, make in attacks.items():
        made = attackers.attacked(network, images, labels, make)
        fooled = ~attackers.right(network, made, labels)
        claim = (attack, name)
        yield scene.fooled(claim, network, made, labels)
        if fooled.any():
            yield from scene.rows(claim, made[fooled], (at_least(0.95), SHOWN))
            yield from _size(scene, claim, images[fooled], made[fooled])


def _size(scene: Scene, claim: tuple[str, ...], before: Images, after: Images) -> Iterator[Measured]:
    """What the attack changed, and how that decides whether it is found."""
    change = (after.astype(np.int64) - before).reshape(len(before), -1)
    l2, touched, largest = np.sqrt((change**2).sum(1)), (change != 0).mean(1), np.abs(change).max(1)
    scores, setting = scene.filter.score(after), scene.setting
    for what, values in (("l2-levels", l2), ("touched", touched), ("linf-levels", largest)):
        yield Measured(setting.claim("detect", *claim, f"median-{what}"), float(np.median(values)), n=len(values))
    strong = l2 >= np.median(l2)
    for what, part in (("larger-half", strong), ("smaller-half", ~strong)):
        if part.any():
            value = auroc(scores[part], scene.clean)
            yield Measured(setting.claim("detect", *claim, f"auroc-{what}"), value, n=int(part.sum()))


def _processed(scene: Scene) -> Iterator[Measured]:
    """I-FGSM at ε = 0.01, then what a codec or a filter leaves of it; clean images that went the same way beside it."""
    network = scene.networks["bottlenecks"]
    images, labels = scene.images[: scene.count], scene.labels[: scene.count]
    made = attackers.attacked(network, images, labels, sign_attacks(0.01, scene.setting.seed)["ifgsm"])
    for name, process in PROCESSES.items():
        after, clean = process(made), process(scene.images)
        claim, clean_scores = (f"ifgsm-0.01-{name}", "bottlenecks"), scene.filter.score(clean)
        yield from scene.rows(claim, after, (SHOWN, SHOWN))
        value = auroc(scene.filter.score(after), clean_scores)
        yield Measured(scene.setting.claim("detect", *claim, "auroc-against-clean-alike"), value, n=len(after))
        yield scene.fooled(claim, network, after, labels)
        yield share(
            scene.setting.claim("detect", *claim, "clean-alike-fpr-at-1%"), scene.flagged(clean_scores), len(clean)
        )
        yield share(
            scene.setting.claim("detect", *claim, "clean-alike-fooled"),
            int((~attackers.right(network, clean[: scene.count], labels)).sum()),
            len(labels),
        )


def _adaptive(scene: Scene) -> Iterator[Measured]:
    """The detector in the loss, its weights known to the attacker: what is flagged, and what fools unflagged."""
    network = scene.networks["bottlenecks"]
    able = np.flatnonzero(attackers.right(network, scene.images, scene.labels))[: scene.few]
    images, labels = scene.images[able], scene.labels[able]
    threshold = threshold_at_fpr(scene.calibration, fpr=ALPHA)

    def detector(x: torch.Tensor) -> torch.Tensor:
        return residual_energy(scene.filter.network(x))

    defence = Guarded(network, detector, threshold)
    for restarts in (1, 3, 9):

        def attack(_: nn.Module, x: torch.Tensor, y: torch.Tensor, restarts: int = restarts) -> torch.Tensor:
            return adaptive_attack(
                *(defence, x, y),
                eps_linf=0.01,
                steps=10 if scene.setting.quick else 40,
                restarts=restarts,
                rng=torch.Generator().manual_seed(scene.setting.seed),
            )

        made = attackers.attacked(network, images, labels, attack)
        claim = (f"adaptive-0.01-restarts-{restarts}", "bottlenecks")
        yield from scene.rows(claim, made, (SHOWN, SHOWN))
        yield scene.fooled(claim, network, made, labels)
        silent = conformal_p_values(scene.filter.score(made), scene.calibration) > ALPHA
        both = silent & ~attackers.right(network, made, labels)
        yield share(scene.setting.claim("detect", *claim, "fooled-unflagged"), int(both.sum()), len(both))


def jpeg(images: Images, quality: int = JPEG_QUALITY) -> Images:
    """The images after a JPEG file of this quality."""
    return _each(images, lambda image: _through_jpeg(image, quality))


def blurred(images: Images) -> Images:
    return _each(images, lambda image: image.filter(ImageFilter.GaussianBlur(BLUR_PX)))


def resized(images: Images) -> Images:
    """Through a size a quarter larger and back, as a scraper's thumbnails are."""
    side = images.shape[1]
    bilinear = Image.Resampling.BILINEAR
    larger = round(1.25 * side)
    return _each(images, lambda image: image.resize((larger, larger), bilinear).resize((side, side), bilinear))


PROCESSES: dict[str, Callable[[Images], Images]] = {"jpeg-95": jpeg, "blur-0.5px": blurred}


def _each(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    grey = images.shape[3] == 1
    found = [np.asarray(change(Image.fromarray(image[..., 0] if grey else image))) for image in images]
    return np.stack(found).reshape(images.shape)


def _through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)
