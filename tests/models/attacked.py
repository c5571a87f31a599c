"""Images and networks that the attacks' tests share: small, fitted in a second, closed-form where possible."""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from models.attacks.gradient import evaluating, margin, to_8bit
from models.seeding import seeded

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # foolbox's dependencies warn while they are imported
    import foolbox as foolbox


@cache
def digits() -> tuple[Tensor, Tensor]:
    """8-bit digits of 16×16, many of their pixels exactly 0 or 1."""
    data = load_digits()
    x = torch.from_numpy(data.images / 16).float()[:, None]
    return to_8bit(F.interpolate(x, size=(16, 16))), torch.from_numpy(data.target)


@cache
def fitted() -> nn.Sequential:
    """A network with batch norm and dropout, right on 9 of 10 digits, left in training mode with one part frozen."""
    x, y = digits()
    with seeded(0):
        network = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 10)),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(150):
            rows = torch.randint(0, 1200, (64,))
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    network.train()
    network[1].eval()
    return network


@cache
def recognised(count: int) -> tuple[Tensor, Tensor]:
    """The first `count` digits outside the training rows that the fitted network gets right."""
    x, y = (part[1200:] for part in digits())
    with evaluating(fitted()) as model, torch.no_grad():
        right = margin(model(x), y) < 0
    return x[right][:count], y[right][:count]


class Linear(nn.Module):
    """Logits weight·x + bias: the nearest boundary, and how far it is, are known in closed form."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias)

    def least_l2(self, x: Tensor, y: Tensor) -> Tensor:
        """(n,): distance from x to the nearest boundary of class y, box aside."""
        logits = self(x)
        gaps = logits.gather(1, y[:, None]) - logits
        lengths = (self.weight[y][:, None] - self.weight).norm(dim=2)
        return (gaps / lengths).scatter(1, y[:, None], torch.inf).amin(1).detach()


def linear_case(classes: int, *, seed: int = 0, count: int = 12) -> tuple[Linear, Tensor, Tensor]:
    """A linear model and grey images (count, 1, 6, 6) so far from 0 and 1 that the box never binds; y as it says."""
    rng = torch.Generator().manual_seed(seed)
    model = Linear(torch.randn(classes, 36, generator=rng), torch.zeros(classes))
    x = 0.5 + 0.1 * (torch.rand(count, 1, 6, 6, generator=rng) - 0.5)
    return model, x, model(x).argmax(1)


def margins_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        return margin(model(x), y)


def l2(change: Tensor) -> Tensor:
    return change.flatten(1).norm(dim=1)


class Untouched:
    """Whether the model is as it was when this was made: modes, state, and no gradient on its parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.modes = model, [module.training for module in model.modules()]
        self.state = {key: value.clone() for key, value in model.state_dict().items()}
        self.gradients = [parameter.grad for parameter in model.parameters()]

    def __bool__(self) -> bool:
        return (
            [module.training for module in self.model.modules()] == self.modes
            and all(torch.equal(value, self.state[key]) for key, value in self.model.state_dict().items())
            and all(p.grad is before for p, before in zip(self.model.parameters(), self.gradients, strict=True))
        )
