"""The adaptive attack trades the detector's silence against the classifier's error, and keeps its box."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attacked import Linear, Untouched, fitted, margins_of, recognised
from torch import Tensor, nn

from models.attacks.adaptive import adaptive_pgd
from models.attacks.gradient import pgd, to_8bit

EPS = 30 / 255


class Roughness(nn.Module):
    """Energy of a high-pass of the image: low where it is smooth. Its dropout would add noise in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.tensor([[[[-1.0, 2, -1], [2, -4, 2], [-1, 2, -1]]]]) / 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(F.conv2d(x, self.kernel, padding=1)).square().mean((1, 2, 3))


def scores_of(detector: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return detector.eval()(x)


def attacked(detector: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "threshold": scores_of(detector, x).quantile(0.95).item(),
        "weight": 2.0,
        "eps_linf": EPS,
        "step_linf": 2 / 255,
        "steps": 40,
        "restarts": 1,
        "rng": torch.Generator().manual_seed(0),
    }
    return adaptive_pgd(fitted(), detector.train(), x, y, **arguments | options)


def test_the_detector_in_the_loss_silences_it_where_pgd_raises_it() -> None:
    x, y = recognised(60)
    detector = Roughness()
    plain = pgd(
        *(fitted(), x, y),
        **{"eps_linf": EPS, "step_linf": 2 / 255, "steps": 40, "restarts": 1},
        loss="margin",
        rng=torch.Generator().manual_seed(0),
    )
    adaptive = attacked(detector, x, y)
    fooled = (margins_of(fitted(), plain, y) > 0) & (margins_of(fitted(), adaptive, y) > 0)
    assert fooled.float().mean() > 0.6
    clean, loud, quiet = (scores_of(detector, images)[fooled] for images in (x, plain, adaptive))
    assert (loud > clean).float().mean() > 0.9
    assert (quiet < loud).all()
    assert (quiet - clean).mean() < 0.5 * (loud - clean).mean()


@pytest.mark.parametrize("eight_bit", [False, True])
def test_the_box_holds_and_the_margin_rises(eight_bit: bool) -> None:
    x, y = recognised(60)
    x_adv = attacked(Roughness(), x, y, eight_bit=eight_bit, eps_linf=0.03, weight=0.0)
    assert (x_adv - x).abs().max() <= 0.03 + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(to_8bit(x_adv), x_adv) is eight_bit
    assert (margins_of(fitted(), x_adv, y) > margins_of(fitted(), x, y)).all()


def test_both_are_left_as_they_were() -> None:
    x, y = recognised(10)
    detector = Roughness()
    detector.train()
    untouched = Untouched(fitted()), Untouched(detector)
    attacked(detector, x, y, steps=3)
    assert all(untouched)
    assert not x.requires_grad


def test_between_linear_parts_it_ends_in_the_corner_that_the_weight_says() -> None:
    model = Linear(torch.stack([torch.zeros(36), torch.arange(36.0) - 10]), torch.tensor([5.0, 0.0]))
    x, y = torch.full((1, 1, 6, 6), 0.5), torch.tensor([0])
    slope = torch.ones(36)

    def detector(images: Tensor) -> Tensor:
        return images.flatten(1) @ slope

    options = {"eps_linf": 0.1, "step_linf": 0.1, "steps": 1, "restarts": 1, "eight_bit": False}
    rng = torch.Generator().manual_seed(0)
    model.bias.data[0] = 1000.0  # never fooled: the last iterate, of the larger margin, is kept
    for weight in (0.0, 12.0):
        x_adv = adaptive_pgd(model, detector, x, y, threshold=2.0, weight=weight, rng=rng, **options)
        wanted = 0.5 + 0.1 * torch.sign(torch.arange(36.0) - 10 - weight / 2)
        assert torch.allclose(x_adv.flatten(), wanted)


def test_of_what_fools_the_quietest_is_kept_and_else_the_strongest() -> None:
    x, y = recognised(60)
    seen: list[tuple[Tensor, Tensor]] = []
    rough = Roughness().eval()

    def detector(images: Tensor) -> Tensor:
        scores = rough(images)
        seen.append((margins_of(fitted(), images.detach(), y), scores.detach()))
        return scores

    threshold = scores_of(rough, x).quantile(0.95).item()
    x_adv = adaptive_pgd(
        *(fitted(), detector, x, y),
        **{"threshold": threshold, "weight": 5.0, "eps_linf": EPS, "step_linf": 2 / 255, "steps": 15, "restarts": 2},
        rng=torch.Generator().manual_seed(0),
    )
    margins, scores = (torch.stack(parts) for parts in zip(*seen, strict=True))
    assert len(margins) == 2 * 16
    ever = (margins > 0).any(0)
    assert 0 < ever.sum() < len(x)
    quietest = scores.masked_fill(margins <= 0, torch.inf).amin(0)
    assert torch.allclose(scores_of(rough, x_adv)[ever], quietest[ever])
    assert torch.allclose(margins_of(fitted(), x_adv, y)[~ever], margins.amax(0)[~ever], atol=1e-5)


def test_a_bounded_margin_leaves_more_to_the_detector() -> None:
    x, y = recognised(60)
    detector = Roughness()
    endless, enough = (attacked(detector, x, y, weight=1.0, confidence=k) for k in (torch.inf, 0.1))
    fooled = (margins_of(fitted(), endless, y) > 0) & (margins_of(fitted(), enough, y) > 0)
    assert fooled.sum() > 10
    assert scores_of(detector, enough)[fooled].mean() < scores_of(detector, endless)[fooled].mean()


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("restarts", 0), ("threshold", 0.0), ("weight", -1.0)])
def test_bad_arguments_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        attacked(Roughness(), *recognised(2), **{name: value})
