"""Attacks against a fitted network: they do harm, stay in their box, leave the model alone, and agree with foolbox."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from models.attacks.gradient import AttackLoss, evaluating, fgsm, ifgsm, margin, pgd, to_8bit
from models.seeding import seeded

EPS = 0.03
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def _pgd(loss: AttackLoss) -> Attack:
    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(1)
        return pgd(model, x, y, eps_linf=EPS, step_linf=EPS / 4, steps=8, restarts=2, loss=loss, rng=rng)

    return attack


ATTACKS: dict[str, Attack] = {
    "fgsm": lambda model, x, y: fgsm(model, x, y, eps_linf=EPS),
    "ifgsm": lambda model, x, y: ifgsm(model, x, y, eps_linf=EPS, step_linf=EPS / 4, steps=8),
    "pgd cross-entropy": _pgd("cross_entropy"),
    "pgd margin": _pgd("margin"),
}


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    x = torch.from_numpy(data.images / 16).float()[:, None]
    return F.interpolate(x, size=(16, 16)), torch.from_numpy(data.target)


@pytest.fixture(scope="module")
def model(digits: tuple[Tensor, Tensor]) -> nn.Module:
    """A network with batch norm and dropout, left in training mode."""
    x, y = digits
    with seeded(0):
        network = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(8 * 64, 10)),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(60):
            rows = torch.randint(0, len(x), (128,))
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_does_harm_inside_its_box(name: str, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:200], digits[1][:200]
    x_adv = ATTACKS[name](model, x, y)
    assert (x_adv - x).abs().max() <= EPS + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    with evaluating(model), torch.no_grad():
        before, after = model(x), model(x_adv)
    assert (
        F.cross_entropy(after, y, reduction="none") > F.cross_entropy(before, y, reduction="none")
    ).float().mean() > 0.97
    assert F.cross_entropy(after, y) > 1.8 * F.cross_entropy(before, y)
    assert margin(after, y).mean() > margin(before, y).mean() + 0.3


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_leaves_the_model_as_it_found_it(name: str, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], digits[1][:20]
    model.train()
    model[1].eval()  # one part frozen, as in fine-tuning
    state = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = [parameter.grad for parameter in model.parameters()]
    ATTACKS[name](model, x, y)
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is before for p, before in zip(model.parameters(), gradients, strict=True))
    assert not x.requires_grad


@pytest.mark.parametrize("name", ["fgsm", "ifgsm"])  # a random start depends on the place in the batch
def test_an_image_is_attacked_alike_in_any_batch(name: str, model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:8], digits[1][:8]
    alone = torch.cat([ATTACKS[name](model, x[i : i + 1], y[i : i + 1]) for i in range(8)])
    assert torch.allclose(alone, ATTACKS[name](model, x, y), atol=1e-6)


def test_iterating_beats_a_single_step(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:400], digits[1][:400]
    with evaluating(model), torch.no_grad():
        fooled = {name: (margin(model(attack(model, x, y)), y) > 0).sum().item() for name, attack in ATTACKS.items()}
    assert fooled["ifgsm"] >= fooled["fgsm"]
    assert fooled["pgd margin"] >= fooled["ifgsm"] - 2
    assert fooled["pgd margin"] > 10


def test_the_margin_climbs_where_the_softmax_is_saturated(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    class Sharp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e5 * model(x)

    x, y = digits[0][:200], digits[1][:200]
    with evaluating(model), torch.no_grad():
        right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    model.eval()
    assert torch.equal(fgsm(Sharp(), x, y, eps_linf=EPS), x)  # gradient masking: the cross-entropy's gradient is 0
    rng = torch.Generator().manual_seed(0)
    x_adv = pgd(Sharp(), x, y, eps_linf=EPS, step_linf=EPS / 4, steps=8, restarts=1, loss="margin", rng=rng)
    with torch.no_grad():
        assert (margin(model(x_adv), y) > margin(model(x), y)).all()


def test_pgd_repeats_itself_only_from_the_same_seed(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], digits[1][:20]
    attack = _pgd("margin")
    assert torch.equal(attack(model, x, y), attack(model, x, y))
    other = torch.Generator().manual_seed(2)
    again = pgd(model, x, y, eps_linf=EPS, step_linf=EPS / 4, steps=8, restarts=2, loss="margin", rng=other)
    assert not torch.equal(attack(model, x, y), again)


def test_foolbox_makes_the_same_fgsm_and_iterates_as_far(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox's dependencies warn while they are imported
        import foolbox
    x, y = digits[0][:100].contiguous(), digits[1][:100]
    with evaluating(model):
        oracle = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        theirs, _, _ = foolbox.attacks.FGSM()(oracle, x, y, epsilons=EPS)
        assert torch.allclose(fgsm(model, x, y, eps_linf=EPS), theirs, atol=1e-6)
        basic = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=EPS / 4, steps=8, random_start=False)
        theirs, _, _ = basic(oracle, x, y, epsilons=EPS)
        ours = ATTACKS["ifgsm"](model, x, y)
        assert ((ours - theirs).abs() < 1e-5).float().mean() > 0.99
        projected = foolbox.attacks.LinfProjectedGradientDescentAttack(abs_stepsize=EPS / 4, steps=8)
        theirs, _, _ = projected(oracle, x, y, epsilons=EPS)
        with torch.no_grad():
            reached, wanted = (margin(model(a), y).mean() for a in (_pgd("cross_entropy")(model, x, y), theirs))
    assert reached >= wanted - 0.05


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_eight_bits_are_the_nearest_level(values: list[float]) -> None:
    x = torch.tensor(values)
    rounded = to_8bit(x)
    assert (rounded - x).abs().max() <= 0.5 / 255 + 1e-7
    assert rounded.min() >= 0
    assert rounded.max() <= 1
    assert torch.allclose(rounded * 255, (rounded * 255).round(), atol=1e-4)
    assert torch.equal(to_8bit(rounded), rounded)


def test_a_count_below_one_is_refused(model: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:2], digits[1][:2]
    with pytest.raises(ValueError, match="steps"):
        ifgsm(model, x, y, eps_linf=EPS, step_linf=EPS, steps=0)
    with pytest.raises(ValueError, match="restarts"):
        pgd(
            *(model, x, y),
            eps_linf=EPS,
            step_linf=EPS,
            steps=1,
            restarts=0,
            loss="margin",
            rng=torch.Generator(),
        )
