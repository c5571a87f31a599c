"""Attackers' networks, of architectures that no filter is trained on, and the poison they make."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from models.attacks.gradient import fgsm, ifgsm, to_8bit
from models.images import to_float, to_uint8

EPS_LINF, STEP_LINF, STEPS = 0.01, 0.01, 10
BATCH = 256

Attack = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
"""A network, x (n, c, h, w) and the labels y to leave, to x as the attack changes it."""


class PatchMixer(nn.Module):
    """4×4 patches, mixed across places and channels in turn by small perceptrons (Tolstikhin et al. 2021)."""

    def __init__(self, channels: int, size: int, classes: int, width: int = 96, depth: int = 3) -> None:
        super().__init__()
        places = (size // 4) ** 2
        self.embed = nn.Conv2d(channels, width, 4, 4)
        self.across = nn.ModuleList(
            nn.Sequential(nn.Linear(places, 96), nn.GELU(), nn.Linear(96, places)) for _ in range(depth)
        )
        self.within = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 192), nn.GELU(), nn.Linear(192, width)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        for depth, (across, within) in enumerate(zip(self.across, self.within, strict=True)):
            tokens = tokens + across(self.norms[2 * depth](tokens).transpose(1, 2)).transpose(1, 2)
            tokens = tokens + within(self.norms[2 * depth + 1](tokens))
        return self.head(tokens.mean(1))


class WideBranches(nn.Module):
    """Parallel 1×1, 3×3 and 5×5 convolutions with batch norm, twice, then pooling (after Szegedy et al. 2015)."""

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(channels, width, k, 2, k // 2) for k in (1, 3, 5))
        self.second = nn.ModuleList(nn.Conv2d(3 * width, 2 * width, k, 2, k // 2) for k in (1, 3, 5))
        self.norms = nn.ModuleList((nn.BatchNorm2d(3 * width), nn.BatchNorm2d(6 * width)))
        self.head = nn.Linear(6 * width * 4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, branches in zip(self.norms, (self.first, self.second), strict=True):
            x = F.silu(norm(torch.cat([_halved(branch, x) for branch in branches], 1)))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def _halved(branch: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A 1×1 convolution of stride 2, as one of stride 1 over every other pixel: oneDNN's own corrupts memory."""
    if branch.kernel_size == (1, 1):
        return F.conv2d(x[..., ::2, ::2], branch.weight, branch.bias)
    return branch(x)


class Bottlenecks(nn.Module):
    """Residual blocks of 1×1, 3×3 and 1×1 convolutions with batch norm before each (He et al. 2016b)."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 2, 1)
        self.blocks = nn.ModuleList(_bottleneck(width * 2**i) for i in range(3))
        self.wider = nn.ModuleList(nn.Conv2d(width * 2**i, width * 2 ** (i + 1), 1) for i in range(2))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x - 0.5)
        for number, block in enumerate(self.blocks):
            x = x + block(x)
            if number < len(self.wider):
                x = self.wider[number](F.max_pool2d(x, 2))
        return self.head(F.relu(x).amax((2, 3)))


class Perceptron(nn.Module):
    """Three fully connected layers with layer norm, and no notion of a neighbourhood."""

    def __init__(self, channels: int, size: int, classes: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(channels * size**2, width), nn.LayerNorm(width), nn.ELU()),
            *(nn.Linear(width, width), nn.LayerNorm(width), nn.ELU()),
            nn.Linear(width, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(2 * x - 1)


ARCHITECTURES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "mixer": PatchMixer,
    "branches": lambda channels, size, classes: WideBranches(channels, classes),  # noqa: ARG005
    "bottlenecks": lambda channels, size, classes: Bottlenecks(channels, classes),  # noqa: ARG005
    "perceptron": Perceptron,
}
"""Built from (channels, side in pixels, classes)."""


def _bottleneck(width: int) -> nn.Sequential:
    inner = width // 2
    return nn.Sequential(
        *(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, inner, 1, bias=False)),
        *(nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, inner, 3, padding=1, bias=False)),
        *(nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, width, 1)),
    )


def train(
    network: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], *, epochs: int, seed: int
) -> nn.Module:
    rng = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=rng).split(BATCH):
            loss = F.cross_entropy(network(to_float(images[rows.numpy()])), torch.from_numpy(labels[rows.numpy()]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def perturb(network: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], attack: str) -> NDArray[np.uint8]:
    """Attacked copies by "fgsm" or "ifgsm", rounded to 8 bits as any image file is."""
    if attack == "fgsm":
        return attacked(network, images, labels, lambda net, x, y: fgsm(net, x, y, eps_linf=EPS_LINF))
    return attacked(
        network,
        images,
        labels,
        lambda net, x, y: ifgsm(net, x, y, eps_linf=EPS_LINF, step_linf=STEP_LINF, steps=STEPS),
    )


def attacked(
    network: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], attack: Attack
) -> NDArray[np.uint8]:
    """What the attack makes of the images, rounded to 8 bits."""
    found = np.empty_like(images)
    for start in range(0, len(images), BATCH):
        here = slice(start, start + BATCH)
        x_adv = attack(network, to_float(images[here]), torch.from_numpy(labels[here]))
        found[here] = to_uint8(to_8bit(x_adv))
    return found


def accuracy(network: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    return float(right(network, images, labels).mean())


def right(network: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the network gives the label, (n,)."""
    found = np.empty(len(images), np.int64)
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            found[start : start + BATCH] = network(to_float(images[start : start + BATCH])).argmax(1).numpy()
    return np.asarray(found == labels)
