"""What attacks do to one of Papernot's networks: his own through the softmax, and those it cannot blind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.datasets import ImageSet
from models.attacks.carlini_wagner import carlini_wagner
from models.attacks.gradient import fgsm, ifgsm, pgd
from models.attacks.saliency import Output, jsma
from models.calibration import wilson_interval
from models.classifiers import Classifier
from models.images import chunks, to_float
from models.robustness import zero_gradient_share

MAX_FEATURES = 112
EPS_LINF = {"mnist": 0.3, "cifar10": 0.03}
BATCH = 90


@dataclass(frozen=True)
class Size:
    """How many test images each measurement takes."""

    accuracy: int
    targets: int  # images; each is sent to the nine other classes
    untargeted: int


class AtTemperature(nn.Module):
    """The network's logits over T: its softmax no longer saturates."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x) / self.temperature
        return logits


def measure(given: ImageSet, network: Classifier, *, temperature: float, size: Size, full: bool) -> dict[str, Any]:
    """Accuracy, JSMA on the probabilities, amplitude of the gradients; and where `full` all that blindness hides."""
    x, y = _right(given, network, max(size.targets, size.untargeted))
    found: dict[str, Any] = {
        "accuracy": _accuracy(given, network, size.accuracy),
        **_jsma(network, x[: size.targets], y[: size.targets], "probabilities"),
        "zero_gradients": _zero(given, network, size.untargeted),
        "gradient_amplitude": gradient_amplitude(network, x[: size.targets]),
    }
    if full:
        found |= {
            f"logits_{key}": value
            for key, value in _jsma(network, x[: size.targets], y[: size.targets], "logits").items()
        }
        few = slice(0, size.untargeted)
        for name, attack in _attacks(given.name, network, temperature).items():
            found[name] = fooled(network, attack(x[few], y[few]), y[few])
    return found


def transferred(given: ImageSet, source: Classifier, target: Classifier, size: Size) -> dict[str, Any]:
    """Images made against the source's logits, shown to the target; of those that the target had right."""
    x, y = _right(given, target, size.untargeted)
    return fooled(target, _margin_attack(source, EPS_LINF[given.name])(x, y), y)


def gradient_amplitude(network: Classifier, x: Tensor) -> dict[str, float]:
    """Mean |∂F_j/∂x_i| over classes and features of the softmax F at T = 1, in float64, over the images.

    In float32 most of them are exactly 0 after distillation at high T. Source: Papernot et al. 2016, section V-C.
    """
    double = _double(network)
    amplitudes = []
    for part in chunks(len(x), 25):
        z = x[part].double().requires_grad_(True)
        probabilities = double(z).softmax(1)
        total = torch.zeros(len(z), dtype=torch.float64)
        for label in range(probabilities.shape[1]):
            (gradient,) = torch.autograd.grad(probabilities[:, label].sum(), z, retain_graph=True)
            total += gradient.abs().flatten(1).mean(1)
        amplitudes.append((total / probabilities.shape[1]).numpy())
    each = np.concatenate(amplitudes)
    return {"median": float(np.median(each)), "mean": float(each.mean()), "smallest": float(each.min()), "n": len(each)}


def fooled(network: nn.Module, x_adv: Tensor, y: Tensor) -> dict[str, Any]:
    """Of images that were right."""
    with torch.no_grad():
        return share(int((network(x_adv).argmax(1) != y).sum()), len(y))


def share(count: int, n: int) -> dict[str, Any]:
    low, high = wilson_interval(count, n)
    return {"share": count / n, "low": low, "high": high, "n": n}


def _attacks(name: str, network: Classifier, temperature: float) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The first two see what the softmax lets through, the others the logits."""
    eps_linf = EPS_LINF[name]
    cooled = AtTemperature(network, temperature)
    return {
        "fgsm": lambda x, y: fgsm(network, x, y, eps_linf=eps_linf),
        "ifgsm": lambda x, y: ifgsm(network, x, y, eps_linf=eps_linf, step_linf=eps_linf / 4, steps=10),
        "ifgsm_at_temperature": lambda x, y: ifgsm(cooled, x, y, eps_linf=eps_linf, step_linf=eps_linf / 4, steps=10),
        "pgd_margin": _margin_attack(network, eps_linf),
        "carlini_wagner": lambda x, y: carlini_wagner(cooled, x, y, eps_linf=None, search_steps=2),
    }


def _margin_attack(network: nn.Module, eps_linf: float) -> Callable[[Tensor, Tensor], Tensor]:
    def attack(x: Tensor, y: Tensor) -> Tensor:
        return pgd(
            network,
            x,
            y,
            eps_linf=eps_linf,
            step_linf=eps_linf / 8,
            steps=20,
            restarts=1,
            loss="margin",
            rng=torch.Generator().manual_seed(0),
        )

    return attack


def _jsma(network: Classifier, x: Tensor, y: Tensor, output: Output) -> dict[str, Any]:
    """Every image towards each of the other classes. Robustness: the least share of features that turns the image.

    An image that no target turns counts with the whole budget, as the paper's 14 % of MNIST's features shows it does.
    """
    classes = network.num_classes
    origin = torch.arange(len(x)).repeat_interleave(classes - 1)
    targets = torch.stack([torch.arange(classes)[torch.arange(classes) != label] for label in y]).flatten()
    parts = [
        jsma(network, x[origin[rows]], targets[rows], max_features=MAX_FEATURES, output=output)
        for rows in chunks(len(origin), BATCH)
    ]
    x_adv = torch.cat(parts)
    with torch.no_grad():
        reached = network(x_adv).argmax(1) == targets
    features = (x_adv != x[origin]).flatten(1).sum(1).float().where(reached, torch.tensor(float(MAX_FEATURES)))
    least = features.view(len(x), classes - 1).amin(1) / x[0].numel()
    return {
        "jsma_success": share(int(reached.sum()), len(targets)),
        "robustness": {"mean": float(least.mean()), "sd": float(least.std()), "n": len(x)},
        "moved": float((x_adv != x[origin]).flatten(1).any(1).float().mean()),
    }


def _right(given: ImageSet, network: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """The first test images that the network has right."""
    images, y = given.test_images[: 4 * count], torch.from_numpy(given.test_labels[: 4 * count])
    x = to_float(images)
    with torch.no_grad():
        right = torch.cat([network(x[rows]).argmax(1) for rows in chunks(len(x), 256)]) == y
    return x[right][:count], y[right][:count]


def _accuracy(given: ImageSet, network: nn.Module, count: int) -> dict[str, Any]:
    right = 0
    with torch.no_grad():
        for rows in chunks(min(count, len(given.test_labels)), 256):
            found = network(to_float(given.test_images[rows])).argmax(1).numpy()
            right += int((found == given.test_labels[rows]).sum())
    return share(right, min(count, len(given.test_labels)))


def _zero(given: ImageSet, network: Classifier, count: int) -> dict[str, Any]:
    found = zero_gradient_share(network, given.test_images[:count], given.test_labels[:count])
    return share(found.count, found.n)


def _double(network: Classifier) -> nn.Module:
    return copy.deepcopy(network).double()
