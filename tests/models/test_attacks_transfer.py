"""What was made against one network turns another; and the temperature gives a masked network its gradient back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attacked import Untouched, digits, fitted, foolbox, margins_of, recognised
from torch import Tensor, nn

from models.attacks.gradient import evaluating, ifgsm, margin, pgd
from models.attacks.transfer import transfer
from models.seeding import seeded

EPS = 30 / 255


@pytest.fixture(scope="module")
def foreign() -> nn.Module:
    """A perceptron fitted on the same digits: nothing like the network that is attacked through it."""
    x, y = digits()
    with seeded(1):
        network = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(200):
            rows = torch.randint(0, 1200, (64,))
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network.eval()


def attacked(sources: list[nn.Module], x: Tensor, y: Tensor, eps: float = EPS) -> Tensor:
    return transfer(sources, x, y, eps_linf=eps, step_linf=eps / 5, steps=10)


def test_what_fools_a_foreign_network_turns_a_network_it_never_saw(foreign: nn.Module) -> None:
    x, y = recognised(100)
    untouched = Untouched(fitted()), Untouched(foreign)
    x_adv = attacked([foreign], x, y)
    assert all(untouched)
    noise = (x + EPS * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()).clamp(0, 1)
    by_noise, by_transfer = ((margins_of(fitted(), images, y) > 0).float().mean() for images in (noise, x_adv))
    assert by_noise < 0.1
    assert by_transfer > 0.3
    assert (x_adv - x).abs().max() <= EPS + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_several_sources_turn_as_many_as_one_of_them_alone(foreign: nn.Module) -> None:
    x, y = recognised(60)
    both, own = attacked([foreign, fitted()], x, y), attacked([foreign], x, y)
    fooled = [(margins_of(fitted(), images, y) > 0).float().mean() for images in (both, own)]
    assert fooled[0] > fooled[1]
    with pytest.raises(ValueError, match="source"):
        attacked([], x, y)


def test_the_source_falls_as_far_as_to_foolbox(foreign: nn.Module) -> None:
    x, y = recognised(60)
    eps = 0.05
    momentum = foolbox.attacks.LinfMomentumIterativeFastGradientMethod(abs_stepsize=eps / 5, steps=10, momentum=1.0)
    oracle = foolbox.PyTorchModel(foreign, bounds=(0, 1), device="cpu")
    theirs, _, _ = momentum(oracle, x, y, epsilons=eps)
    wanted, reached = (margins_of(foreign, images, y).mean() for images in (theirs, attacked([foreign], x, y, eps)))
    assert reached >= wanted - 0.1


@pytest.mark.parametrize("attack", ["ifgsm", "pgd"])
def test_the_temperature_undoes_what_saturation_hides(attack: str) -> None:
    """Logits 10⁴ times too large: at T = 1 the cross-entropy has no gradient, at T = 10⁴ it is as it was."""

    class Sharp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * fitted()(x)

    x, y = recognised(40)
    x, y = x[margins_of(fitted(), x, y) < -0.5], y[margins_of(fitted(), x, y) < -0.5]

    def attacked_at(model: nn.Module, temperature: float) -> Tensor:
        if attack == "ifgsm":
            return ifgsm(model, x, y, eps_linf=EPS, step_linf=EPS / 4, steps=8, temperature=temperature)
        rng = torch.Generator().manual_seed(0)
        return pgd(
            *(model, x, y),
            **{"eps_linf": EPS, "step_linf": EPS / 4, "steps": 8, "restarts": 1},
            loss="cross_entropy",
            temperature=temperature,
            rng=rng,
        )

    with evaluating(fitted()), torch.no_grad():
        plain, hidden, seen = (
            (margin(fitted()(images), y) > 0).float().mean()
            for images in (attacked_at(fitted(), 1.0), attacked_at(Sharp(), 1.0), attacked_at(Sharp(), 1e4))
        )
    assert plain > 0.5
    assert hidden < 0.5 * plain
    assert seen == pytest.approx(float(plain), abs=0.06)
    with pytest.raises(ValueError, match="temperature"):
        attacked_at(fitted(), 0.0)
