"""Evaluations of models whose answer under attack is known by hand, and what the served model makes of attacks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from models.abstention import calibrate_abstention, dropout_masks
from models.attacks.guarded import ServedStack
from models.calibration import wilson_interval
from models.classifiers import Classifier
from models.distillation import distill
from models.images import Images
from models.robustness import Evaluation, Target, accuracy_under_attack, evaluate, guard
from models.specs import ClassifierSpec, DistillSpec, EvaluateSpec, FitSpec
from models.training import Forgetful, Silent, Stopped
from models.uncertainty import mc_probabilities
from tests.levels import OfMean, greys

EPS = 4 / 255  # a whole number of levels, so that rounding to 8 bits changes nothing
SPEC = EvaluateSpec(
    attacks=("fgsm", "ifgsm", "pgd-margin"),
    eps_linf=EPS,
    eps_curve=(EPS, 2 * EPS),
    step_linf=EPS,
    steps=4,
    pgd_steps=10,
    max_images=500,
)
LABEL_ZERO = np.zeros(400, dtype=np.int64)


class Hill(OfMean):
    """The loss rises from the grey level 100 to a summit that is wrong, and falls beyond: steps of ε jump over it."""

    def wrong_by(self, mean: Tensor) -> Tensor:
        return 0.25 * EPS**2 - (mean - 100 / 255 - 0.6 * EPS) ** 2


@dataclass
class Counter:
    """Remembers what it was told; stops where asked."""

    stop_after: int = 10**9
    calls: list[tuple[int, int]] = field(default_factory=list)

    def advance(self, done: int, total: int) -> None:
        self.calls.append((done, total))
        if len(self.calls) > self.stop_after:
            raise Stopped


def rows_of(result: Evaluation) -> dict[str, dict[str, float]]:
    return {row["attack"]: row for row in result.to_json()["rows"]}


def raised(result: Evaluation) -> set[str]:
    return {sign["flag"] for sign in result.masking if sign["raised"]}


def test_rows_of_a_linear_model_are_what_can_be_counted_by_hand() -> None:
    """Grey level g is right up to 127; any attack that works adds 4 levels and so turns exactly 124 … 127."""
    levels = np.arange(400) % 200 + 20
    watch = Counter()
    result = accuracy_under_attack(OfMean(), greys(levels), LABEL_ZERO, SPEC, watch=watch)
    rows = rows_of(result)
    before, after = int((levels <= 127).sum()), int((levels <= 123).sum())
    assert list(rows) == ["none", "fgsm", "ifgsm", "pgd-margin"]
    assert rows["none"]["accuracy"] == before / 400
    assert rows["none"]["attack_success"] == rows["none"]["mean_linf"] == rows["none"]["mean_l2"] == 0
    for name in ("fgsm", "ifgsm", "pgd-margin"):
        row = rows[name]
        assert row["n"] == 400
        assert (row["knowledge"], row["eps_linf"]) == ("student", EPS)
        assert row["accuracy"] == after / 400
        assert (row["low"], row["high"]) == wilson_interval(after, 400)
        assert row["attack_success"] == pytest.approx((before - after) / before)
        assert (row["success_low"], row["success_high"]) == wilson_interval(before - after, before)
        assert row["success_n"] == before
    for name in ("fgsm", "ifgsm"):
        assert rows[name]["mean_linf"] == pytest.approx(EPS, abs=1e-6)
        assert rows[name]["mean_l2"] == pytest.approx(8 * EPS, abs=1e-6)
        assert rows[name]["mean_l0"] == rows[name]["mean_l0_low"] == rows[name]["mean_l0_high"] == 64
        assert rows[name]["mean_l2_n"] == 400
    assert not raised(result)
    done, total = watch.calls[-1]
    assert done == total
    assert [done for done, _ in watch.calls] == sorted(done for done, _ in watch.calls)


def test_the_curve_falls_as_the_box_grows_by_as_much_as_can_be_counted() -> None:
    levels = np.arange(60) + 90
    result = accuracy_under_attack(OfMean(), greys(levels), LABEL_ZERO[:60], SPEC, watch=Silent())
    assert [(point.attack, point.eps_linf) for point in result.curve] == [
        ("pgd-margin", EPS),
        ("pgd-margin", 2 * EPS),
    ]
    assert [point.accuracy.count for point in result.curve] == [int((levels <= top).sum()) for top in (123, 119)]
    assert result.to_json()["curve"][0]["n"] == 60
    none = SPEC.model_copy(update={"eps_curve": ()})
    assert not accuracy_under_attack(OfMean(), greys(levels), LABEL_ZERO[:60], none, watch=Silent()).curve


def test_robustness_is_the_least_change_that_fools() -> None:
    """Grey level g needs 128 - g more levels on each of 64 features: (128 - g) · 8 / 255 in L2."""
    levels = np.array([100, 110, 120, 200])
    spec = SPEC.model_copy(update={"attacks": ("deepfool",), "eps_curve": ()})
    found = accuracy_under_attack(OfMean(), greys(levels), LABEL_ZERO[:4], spec, watch=Silent()).least["deepfool"]
    assert (found.norm, found.fooled.count, found.fooled.n) == ("l2", 3, 3)  # the fourth was wrong before
    assert found.change.mean == pytest.approx(18 * 8 / 255, rel=0.1)
    assert found.change.low < found.change.mean < found.change.high


def test_a_saturated_softmax_is_called_gradient_masking() -> None:
    levels = np.arange(400) % 100 + 20
    result = accuracy_under_attack(OfMean(scale=1e5), greys(levels), LABEL_ZERO, SPEC, watch=Silent())
    rows = rows_of(result)
    assert rows["ifgsm"]["attack_success"] == 0, "the loss has no gradient"
    assert raised(result) >= {"zero_gradients", "loss_flat", "unbounded_attack_fails"}
    near = accuracy_under_attack(OfMean(scale=1e5), greys(levels % 4 + 124), LABEL_ZERO, SPEC, watch=Silent())
    assert rows_of(near)["pgd-margin"]["accuracy"] == 0, "the margin has one"
    assert raised(near) >= {"zero_gradients", "cross_entropy_far_behind_margin"}


def test_an_iterative_attack_that_does_less_than_one_step_is_flagged() -> None:
    result = accuracy_under_attack(Hill(), greys(np.full(60, 100)), LABEL_ZERO[:60], SPEC, watch=Silent())
    rows = rows_of(result)
    assert (rows["fgsm"]["accuracy"], rows["ifgsm"]["accuracy"]) == (0, 1)
    assert "iterative_weaker_than_single_step" in raised(result)


def test_at_most_max_images_are_drawn_by_the_seed_and_costly_attacks_take_fewer() -> None:
    images = greys(np.arange(400) % 200 + 20)
    few = SPEC.model_copy(update={"max_images": 70, "attacks": ("fgsm", "square"), "queries": 2, "costly_images": 9})
    first, again, other = (
        accuracy_under_attack(OfMean(), images, LABEL_ZERO, spec, watch=Silent()).to_json()
        for spec in (few, few, few.model_copy(update={"seed": 1}))
    )
    assert first == again
    assert [row["n"] for row in first["rows"]] == [70, 70, 9]
    assert first["rows"][0]["accuracy"] != other["rows"][0]["accuracy"]


def test_outcomes_say_which_images_they_are_of() -> None:
    levels = np.arange(400) % 200 + 20
    spec = SPEC.model_copy(update={"max_images": 50})
    result = accuracy_under_attack(OfMean(), greys(levels), LABEL_ZERO, spec, watch=Silent())
    outcome = result.outcomes["fgsm"]
    assert np.array_equal(outcome.images[:, 0, 0, 0], levels[outcome.rows] + 4)
    assert np.array_equal(outcome.right, levels[outcome.rows] <= 123)


def test_the_watch_stops_it_within_a_batch() -> None:
    watch = Counter(stop_after=2)
    with pytest.raises(Stopped):
        accuracy_under_attack(OfMean(), greys(np.arange(400)), LABEL_ZERO, SPEC, watch=watch)
    assert len(watch.calls) == 3


def test_images_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="labels"):
        accuracy_under_attack(OfMean(), greys(np.arange(5)), LABEL_ZERO, SPEC, watch=Silent())
    with pytest.raises(ValueError, match="at least one"):
        accuracy_under_attack(OfMean(), greys(np.arange(0)), LABEL_ZERO[:0], SPEC, watch=Silent())


Digits = tuple[Classifier, Images, np.ndarray]


STEADY = FitSpec(epochs=3, batch_size=32, peak_lr=4e-3, mixed_precision=False)
"""The same student on every CPU."""


@pytest.fixture(scope="module")
def digits() -> Digits:
    """A student, and images it was not trained on."""
    data = load_digits()
    images = np.round(data.images * 255 / 16).astype(np.uint8)[..., None]
    labels = data.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    train, rest = order[:1000], order[1000:]
    network = ClassifierSpec(width=8, hidden=64)
    spec = DistillSpec(teacher=network, student=network, fit=STEADY)
    watch = Silent()
    done = distill(
        images[train], labels[train], spec, num_classes=10, watch_for=lambda _: watch, checkpoints=Forgetful()
    )
    return done.student, images[rest], labels[rest]


def off_the_scanner(images: Images) -> np.ndarray:
    """Pixels that are none of the 17 levels a scanned digit has: a detector that no small perturbation gets past."""
    return (~np.isin(images, np.round(np.arange(17) * 255 / 16))).mean(axis=(1, 2, 3))


SERVED = EvaluateSpec(
    **{"eps_linf": 0.1, "step_linf": 0.03, "steps": 5, "pgd_steps": 10},
    attacks=("fgsm", "ifgsm", "pgd-margin"),
    eps_curve=(),
    max_images=200,
    costly_images=40,
)


def target_of(digits: Digits, *, detected: bool) -> Target:
    student, images, labels = digits
    masks = dropout_masks(8, student.feature_dim, 0.5, seed=0)
    held, score = slice(0, 400), off_the_scanner if detected else None
    calibration = calibrate_abstention(
        mc_probabilities(student, images[held], masks),
        labels[held],
        score(images[held]) if score else None,
        seed=0,
    )
    return Target(
        student,
        answer=guard(student, masks, calibration, score, alpha=0.05),
        alpha=0.05,
        stack=ServedStack.of(student, lambda: torch.from_numpy(masks), calibration, alpha=0.05),
        stack_in_expectation=lambda rng: ServedStack.of(
            student,
            lambda: 2.0 * (torch.rand((16, student.feature_dim), generator=rng) < 0.5),
            calibration,
            alpha=0.05,
        ),
        teacher=student,
    )


@pytest.mark.parametrize("detected", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_the_served_model_makes_of_attacked_digits(digits: Digits, detected: bool) -> None:
    target, modes = target_of(digits, detected=detected), digits[0].training
    rows = rows_of(evaluate(target, digits[1][400:], digits[2][400:], SERVED, watch=Silent()))
    assert digits[0].training == modes
    for row in rows.values():
        assert row["served_abstained"] + row["served_correct"] + row["served_wrong"] == pytest.approx(1)
        assert row["served_abstained_low"] <= row["served_abstained"] <= row["served_abstained_high"]
    assert rows["none"]["accuracy"] > 0.9
    assert 0.005 < rows["none"]["served_abstained"] < 0.12
    assert rows["ifgsm"]["accuracy"] < rows["none"]["accuracy"] - 0.1
    assert rows["pgd-margin"]["accuracy"] <= rows["fgsm"]["accuracy"]
    assert rows["none"]["code_cosine"] == pytest.approx(1)
    for name in ("code_cosine", "code_norm_ratio", "mean_l2", "mean_l0"):
        found = rows["pgd-margin"]
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
        assert found[f"{name}_n"] == 200
    assert 0 < rows["pgd-margin"]["code_cosine"] < 0.98
    if detected:
        assert rows["pgd-margin"]["served_abstained"] == 1
        assert rows["pgd-margin"]["served_reasons"] == {"perturbed": 200}
    else:
        assert rows["pgd-margin"]["served_wrong"] > 0.05
        assert set(rows["pgd-margin"]["served_reasons"]) <= {"uncertain"}


@pytest.mark.slow
def test_who_knows_more_does_no_less_harm(digits: Digits) -> None:
    """Abstention by uncertainty alone: who knows it gets more wrong answers out of it than who knows the student."""
    names = ("pgd-margin", "transfer-teacher", "square-served", "adaptive", "adaptive-expectation")
    spec = SERVED.model_copy(
        update={"attacks": names, "queries": 25, "adaptive_steps": 10, "adaptive_restarts": 4, "max_images": 25}
        | {"eps_linf": 0.16}
    )
    result = evaluate(target_of(digits, detected=False), digits[1][400:], digits[2][400:], spec, watch=Silent())
    rows = rows_of(result)
    assert list(rows) == ["none", "pgd-margin", "transfer-teacher", "square-served", "adaptive", "adaptive-expectation"]
    # PGD's box of 40.8 levels is rounded to 41 at its sides, the adaptive attack's to 40.
    assert rows["adaptive"]["served_wrong"] >= rows["pgd-margin"]["served_wrong"] - 0.04
    assert rows["adaptive"]["served_wrong"] > 0.2
    assert rows["adaptive-expectation"]["served_wrong"] > 0.2
    assert rows["square-served"]["served_wrong"] > rows["none"]["served_wrong"]
    assert "adaptive_weaker_than_blind" not in raised(result)


def test_attacks_whose_attacker_lacks_what_they_take_are_left_out(digits: Digits) -> None:
    spec = EvaluateSpec(suite="full", max_images=2, eps_curve=(), knowledge=("transfer", "everything"))
    with pytest.raises(ValueError, match="knows this much"):
        EvaluateSpec(attacks=("fgsm",), knowledge=("queries",))
    result = accuracy_under_attack(digits[0], digits[1], digits[2], spec, watch=Silent())
    assert [row.attack for row in result.rows] == ["none"]
