"""What a fit keeps within an epoch, when it stops by itself, which rates it takes; two processes fit as one."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cores import Cores
from models.images import Images
from models.replicas import Replicas
from models.schedule import rates
from models.seeding import seeded
from models.specs import FitSpec
from models.training import Batch, FitResult, Forgetful, ImageBatches, Silent, Stopped, Watch, fit

RNG = np.random.default_rng(0)
IMAGES: Images = RNG.integers(0, 256, (96, 12, 12, 3), dtype=np.uint8)
LABELS = (IMAGES[:, :, :, 0].mean((1, 2)) > np.median(IMAGES[:, :, :, 0].mean((1, 2)))).astype(np.int64)


@dataclass
class PacedShelf:
    """Checkpoints in memory, wanted after every step."""

    every_seconds: float = 0.0
    kept: dict[str, bytes] = field(default_factory=dict)
    saves: int = 0

    def load(self, name: str) -> bytes | None:
        return self.kept.get(name)

    def save(self, name: str, data: bytes) -> None:
        self.kept[name] = data
        self.saves += 1


@dataclass
class StopsAt:
    step: int
    told: list[int] = field(default_factory=list)

    def advance(self, done: int, _total: int) -> None:
        self.told.append(done)
        if done >= self.step:
            raise Stopped


class Crash(Exception):
    """A worker that is killed: nothing is saved on the way out."""


@dataclass
class CrashesAt:
    step: int

    def advance(self, done: int, _total: int) -> None:
        if done >= self.step:
            raise Crash


def network() -> nn.Module:
    with seeded(5):
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)),
            *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 2)),
        )


def noisy_loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x + 0.01 * torch.randn(x.shape, generator=rng, device=rng.device)), y)


def flipped(x: Tensor, rng: torch.Generator) -> Tensor:
    return torch.where(torch.rand((len(x), 1, 1, 1), generator=rng, device=rng.device) < 0.5, x.flip(3), x)


def spec(**given: object) -> FitSpec:
    return FitSpec.model_validate({"epochs": 3, "batch_size": 16, "peak_lr": 0.01, "validation_share": 0.1, **given})


def run(model: nn.Module, given: FitSpec, watch: Watch, shelf: PacedShelf | Forgetful) -> FitResult:
    batches = ImageBatches(IMAGES, LABELS, spec=given, seed=1, augment=flipped)
    return fit(model, batches, noisy_loss, given, seed=1, watch=watch, checkpoints=shelf, name="net")


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("stop_at", [1, 5, 7, 10])
def test_a_fit_stopped_within_an_epoch_goes_on_from_that_very_step_to_the_same_bits(stop_at: int) -> None:
    whole, shelf = network(), PacedShelf(every_seconds=1e9)
    wanted = run(whole, spec(), Silent(), Forgetful())
    with pytest.raises(Stopped):
        run(network(), spec(), StopsAt(stop_at), shelf)
    torch.rand(7)
    resumed, watch = network(), StopsAt(10**9)
    assert run(resumed, spec(), watch, shelf) == wanted
    assert watch.told[0] == stop_at
    assert same(resumed, whole)


def test_a_killed_fit_goes_on_from_the_last_state_that_its_pace_kept() -> None:
    whole, shelf = network(), PacedShelf()
    wanted = run(whole, spec(), Silent(), Forgetful())
    with pytest.raises(Crash):
        run(network(), spec(), CrashesAt(8), shelf)
    assert shelf.saves == 7 + 1  # after each of seven steps, and after the first epoch
    resumed, watch = network(), StopsAt(10**9)
    assert run(resumed, spec(), watch, shelf) == wanted
    assert watch.told[0] == 7
    assert same(resumed, whole)


def test_a_pace_that_has_not_come_round_keeps_epochs_only() -> None:
    shelf = PacedShelf(every_seconds=1e9)
    run(network(), spec(), Silent(), shelf)
    assert shelf.saves == 3


def test_it_stops_when_patience_ends_and_goes_back_to_the_best_weights() -> None:
    """At this rate the validation loss soon only grows."""
    given = spec(epochs=60, patience=3, schedule="constant", peak_lr=0.05, validation_share=0.3)
    model, watch = network(), StopsAt(10**9)
    found = run(model, given, watch, Forgetful())
    best = int(np.argmin(found.validation_loss))
    assert len(found.validation_loss) == best + 1 + 3 < 60
    assert watch.told[-1] == 60 * 4
    batches = ImageBatches(IMAGES, LABELS, spec=given, seed=1)
    ((x, y),) = [tuple(torch.cat(parts) for parts in zip(*batches.validation(), strict=True))]
    with torch.no_grad():
        loss = float(F.cross_entropy(model(x), y))
    assert loss == pytest.approx(found.validation_loss[best], rel=0.05)  # but for the noise in the loss


def test_patience_survives_a_stop() -> None:
    given = spec(epochs=60, patience=3, schedule="constant", peak_lr=0.05, validation_share=0.3)
    whole, resumed, shelf = network(), network(), PacedShelf(every_seconds=1e9)
    wanted = run(whole, given, Silent(), Forgetful())
    with pytest.raises(Stopped):
        run(network(), given, StopsAt(4 * len(wanted.train_loss) - 2), shelf)
    assert run(resumed, given, Silent(), shelf) == wanted
    assert same(resumed, whole)


def test_patience_without_validation_is_refused() -> None:
    with pytest.raises(ValueError, match="validation_share"):
        spec(patience=2, validation_share=0.0)


def test_schedules_are_what_they_are_called() -> None:
    constant = [rates(spec(schedule="constant", momentum=0.7), step, 10) for step in range(30)]
    assert {(each.lr, each.momentum) for each in constant} == {(0.01, 0.7)}
    cosine = [rates(spec(schedule="cosine"), step, 10).lr for step in range(30)]
    assert cosine[0] == 0.01
    assert cosine[15] == pytest.approx(0.005)
    assert all(a > b > 0 for a, b in itertools.pairwise(cosine))
    papernot = [rates(spec(schedule="decay", epochs=30, momentum=0.9), 7 * epoch, 7) for epoch in (0, 9, 10, 20)]
    assert [each.lr for each in papernot] == pytest.approx([0.01, 0.01, 0.0095, 0.009025])
    assert [each.momentum for each in papernot] == pytest.approx([0.9, 0.9, 0.45, 0.225])
    cycle = [rates(spec(), step, 10).lr for step in range(30)]
    assert max(cycle) == pytest.approx(0.01)
    assert cycle.index(max(cycle)) == 8


@pytest.mark.parametrize("schedule", ["cosine", "decay", "constant"])
def test_it_learns_under_every_schedule(schedule: str) -> None:
    found = run(network(), spec(epochs=10, schedule=schedule), Silent(), Forgetful())
    assert found.train_loss[-1] < 0.85 * found.train_loss[0]


RANK = Path(__file__).with_name("rank_of_two.py")


@pytest.mark.slow
def test_two_processes_fit_as_one_does(tmp_path: Path) -> None:
    """Without batch norm, dropout and noise the gradients are the same sums, added in another order."""
    root = Path(__file__).parents[2]
    command = [sys.executable, str(RANK), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank), "2"], cwd=root) for rank in (0, 1)]
    assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    subprocess.run([*command, "0", "1"], cwd=root, check=True)
    of_two, of_one = (np.load(tmp_path / f"rank-0-of-{size}.npz") for size in (2, 1))
    np.testing.assert_allclose(of_two["train_loss"], of_one["train_loss"], rtol=1e-4)
    for key in of_one.files:
        np.testing.assert_allclose(of_two[key], of_one[key], rtol=1e-3, atol=1e-5)
    second = np.load(tmp_path / "rank-1-of-2.npz")
    assert all(np.array_equal(of_two[key], second[key]) for key in second.files if key != "train_loss")
    assert of_two["train_loss"][-1] < 0.98 * of_two["train_loss"][0]
    assert of_two["stopped_at"] == second["stopped_at"] == 4


@pytest.mark.parametrize("norm", [False, True])
def test_a_fit_whose_batches_are_cut_goes_on_to_the_same_bits(norm: bool) -> None:
    images = np.tile(IMAGES, (1, 2, 2, 1))
    given = FitSpec(epochs=2, batch_size=128, peak_lr=0.01, validation_share=0.0)

    def cut_run(watch: Watch, shelf: PacedShelf | Forgetful) -> tuple[nn.Module, FitResult]:
        with seeded(5):
            middle = [nn.BatchNorm2d(8)] if norm else []
            model = nn.Sequential(nn.Conv2d(3, 8, 3), *middle, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 2))
        batches = ImageBatches(np.tile(images, (4, 1, 1, 1)), np.tile(LABELS, 4), spec=given, seed=1, augment=flipped)
        (x, _), *_ = batches.train(0, torch.Generator())
        with Cores(1) as cores:
            assert Replicas(model, lambda copy: lambda part, rng: x.sum(), cores).pieces_of(x) == 2  # noqa: ARG005
        return model, fit(model, batches, noisy_loss, given, seed=1, watch=watch, checkpoints=shelf, name="net")

    whole, wanted = cut_run(Silent(), Forgetful())
    shelf = PacedShelf(every_seconds=1e9)
    with pytest.raises(Stopped):
        cut_run(StopsAt(2), shelf)
    resumed, losses = cut_run(Silent(), shelf)
    assert losses == wanted
    assert same(resumed, whole)
