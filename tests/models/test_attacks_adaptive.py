"""The adaptive attack fools and stays unheard where that can be, in its box; a weak detector falls to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacked import Linear, Untouched, fitted, margins_of, recognised
from torch import Tensor, nn

from models.abstention import calibrate_abstention, decide, dropout_masks
from models.attacks.adaptive import SCHEDULES, Schedule, adaptive_attack
from models.attacks.gradient import evaluating, pgd, to_8bit
from models.attacks.guarded import Guarded, ServedStack, limit_of
from models.calibration import conformal_p_values
from models.classifiers import Classifier, build_classifier
from models.familiarity import fit_familiarity, student_scores
from models.images import to_uint8
from models.specs import ClassifierSpec
from models.uncertainty import mc_probabilities

EPS = 30 / 255


class Roughness(nn.Module):
    """Energy of a high-pass of the image, which plain PGD raises: a detector that knows nothing of its attacker."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.tensor([[[[-1.0, 2, -1], [2, -4, 2], [-1, 2, -1]]]]) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1).square().mean((1, 2, 3))


def attacked(defence: Any, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    arguments: dict[str, Any] = {"eps_linf": EPS, "steps": 30, "restarts": 3}
    with evaluating(fitted()):
        rng = torch.Generator().manual_seed(0)
        return adaptive_attack(defence, x, y, **arguments | {"rng": rng} | options)


@pytest.fixture(scope="module")
def guarded() -> Guarded:
    """Flags an image that is rougher than 19 of 20 digits."""
    x, _ = recognised(300)
    with torch.no_grad():
        return Guarded(fitted(), Roughness(), float(Roughness()(x).quantile(0.95)))


def outcome(guarded: Guarded, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which images fool, and which of those are not flagged."""
    with torch.no_grad():
        fools = margins_of(fitted(), x, y) > 0
        return fools, fools & (guarded.detector(x) <= guarded.threshold)


def test_a_weak_detector_that_catches_plain_pgd_falls_to_it(guarded: Guarded) -> None:
    x, y = recognised(60)
    plain = pgd(
        *(fitted(), x, y),
        **{"eps_linf": EPS, "step_linf": 2 / 255, "steps": 40, "restarts": 1},
        loss="margin",
        rng=torch.Generator().manual_seed(0),
    )
    fools, unheard = outcome(guarded, plain, y)
    assert fools.float().mean() > 0.6
    assert unheard.float().mean() < 0.35
    assert outcome(guarded, attacked(guarded, x, y), y)[1].float().mean() > 0.6


@pytest.mark.parametrize("schedule", [schedule for schedule in SCHEDULES if schedule != "blind"])
def test_each_schedule_that_hears_the_detector_evades_more_than_it_is_caught(
    guarded: Guarded, schedule: Schedule
) -> None:
    x, y = recognised(30)
    x_adv = attacked(guarded, x, y, schedules=(schedule,), restarts=2, steps=30)
    fools, unheard = outcome(guarded, x_adv, y)
    assert unheard.sum() > 0.5 * fools.sum() > 5


def test_a_detector_that_hears_everything_is_not_evaded_and_the_images_still_fool() -> None:
    x, y = recognised(20)

    class Hears(nn.Module):
        def forward(self, seen: Tensor) -> Tensor:
            return 2 + (seen - x).abs().mean((1, 2, 3))

    x_adv = attacked(Guarded(fitted(), Hears(), 1.0), x, y, restarts=1)
    assert (margins_of(fitted(), x_adv, y) > 0).float().mean() > 0.5


@pytest.mark.parametrize("eight_bit", [False, True])
def test_the_box_holds_and_nothing_is_left_changed(guarded: Guarded, eight_bit: bool) -> None:
    x, y = recognised(20)
    untouched = Untouched(fitted()), Untouched(guarded.detector)  # type: ignore[arg-type]
    x_adv = attacked(guarded, x, y, eight_bit=eight_bit, eps_linf=0.03, restarts=5, steps=5)
    assert all(untouched)
    assert (x_adv - x).abs().max() <= 0.03 + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(to_8bit(x_adv), x_adv) is eight_bit
    assert (margins_of(fitted(), x_adv, y) > margins_of(fitted(), x, y)).all()


def test_more_restarts_never_do_less_and_the_seed_decides(guarded: Guarded) -> None:
    x, y = recognised(20)
    few, many, again = (attacked(guarded, x, y, restarts=k, steps=8, eps_linf=0.05) for k in (1, 6, 6))
    assert torch.equal(many, again)
    assert (outcome(guarded, many, y)[1] >= outcome(guarded, few, y)[1]).all()


def test_a_flat_defence_leaves_finite_images() -> None:
    flat = Linear(torch.zeros(3, 36), torch.tensor([5.0, 0.0, 0.0]))
    x = torch.full((2, 1, 6, 6), 128 / 255)
    y = torch.zeros(2, dtype=torch.int64)
    x_adv = attacked(Guarded(flat, lambda seen: 0 * seen.sum((1, 2, 3)) + 1, 2.0), x, y, steps=3)
    assert torch.isfinite(x_adv).all()


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("restarts", 0), ("eps_linf", -1.0)])
def test_bad_arguments_are_refused(guarded: Guarded, name: str, value: float) -> None:
    x, y = recognised(2)
    with pytest.raises(ValueError, match=name):
        attacked(guarded, x, y, **{name: value})


def test_a_score_is_over_its_limit_exactly_where_its_p_value_is_under_the_level() -> None:
    rng = np.random.default_rng(0)
    calibration = rng.normal(size=99).round(1)
    scores = np.concatenate([calibration, rng.normal(size=50)])
    for level in (0.01, 0.05, 0.3):
        flagged = conformal_p_values(scores, calibration) <= level + 1e-9
        assert np.array_equal(scores > limit_of(calibration, level), flagged)
    assert limit_of(calibration, 0.0) == np.inf
    assert limit_of(calibration, 1.0) == -np.inf


@pytest.fixture(scope="module")
def student() -> Classifier:
    spec = ClassifierSpec(width=8, hidden=64)
    return build_classifier(spec, num_classes=10, image_shape=(16, 16, 1), seed=0).eval()


def blind_to_all(stack: ServedStack, x: Tensor, y: Tensor) -> Tensor:
    return stack(x, y)[0]


@pytest.mark.parametrize("per_class", [False, True])
def test_the_served_stack_is_the_served_decision_made_differentiable(student: Classifier, per_class: bool) -> None:
    x, y = recognised(400)
    masks, roughness = dropout_masks(8, student.feature_dim, 0.5, seed=0), Roughness()
    images = to_uint8(x)
    student.familiarity = fit_familiarity(student, images[:50], y[:50].numpy())
    with torch.no_grad():
        rough = roughness(x).numpy()
    passes, own = mc_probabilities(student, images, masks), student_scores(student, images)
    held, asked = slice(50, 250), slice(250, 400)

    def parts(rows: slice) -> tuple[Any, Any, dict[Any, Any]]:
        return passes[:, rows], rough[rows], {name: scores[rows] for name, scores in own.items()}

    probabilities, scores, further = parts(held)
    calibration = calibrate_abstention(
        *(probabilities, y[held].numpy(), scores), seed=0, student_scores=further, per_class=per_class
    )
    probabilities, scores, further = parts(asked)
    decision = decide(probabilities, scores, calibration, alpha=0.3, student_scores=further)
    stack = ServedStack.of(student, lambda: torch.from_numpy(masks), calibration, alpha=0.3, detector=roughness)
    assert stack.reasons == ("perturbed", "uncertain", "unfamiliar")
    answer = torch.from_numpy(decision.label_index)
    with torch.no_grad():
        margins, excess = stack(x[asked], (answer + 1) % 10)  # a label that is not the answer: then that is "wrong"
        assert (margins > 0).all()
        assert (stack(x[asked], answer)[0] <= 0).all()
    assert 15 < decision.abstained.sum() < 100
    assert np.mean((excess > 0).any(1).numpy() == decision.abstained) > 0.97  # but for ties in rank
    brighter = ServedStack.of(
        student, lambda: torch.from_numpy(masks), calibration, alpha=0.3, reform=lambda seen: (seen + 0.2).clamp(0, 1)
    )
    seen = x[asked].requires_grad_(True)
    (gradient,) = torch.autograd.grad(brighter(seen, answer)[0].sum(), seen)
    with torch.no_grad():
        shifted = (x[asked] + 0.2).clamp(0, 1)
        assert torch.allclose(brighter(x[asked], answer)[0], blind_to_all(stack, shifted, answer), atol=1e-5)
    assert (gradient[x[asked] < 0.7] != 0).any() and (gradient[x[asked] > 0.81] == 0).all()
    blind = ServedStack.of(student, lambda: torch.from_numpy(masks), calibration, alpha=0.3)
    assert blind.reasons == ("uncertain", "unfamiliar")
    student.familiarity = None
