"""The fit loop: it learns, stops within a batch, and a resumed fit ends in the very same weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import CheckpointUnreadable
from models.device import has_bfloat16
from models.images import Images, NotImages, check_images, to_float, to_uint8
from models.schedule import one_cycle
from models.seeding import derive_seed, seeded
from models.specs import FitSpec
from models.training import (
    Batch,
    Diverged,
    FitResult,
    Forgetful,
    ImageBatches,
    Piece,
    Silent,
    Stopped,
    Watch,
    batch_count,
    fit,
)

RNG = np.random.default_rng(0)
IMAGES: Images = RNG.integers(0, 256, (90, 12, 12, 3), dtype=np.uint8)
LABELS = (IMAGES[:, :, :, 0].mean((1, 2)) > np.median(IMAGES[:, :, :, 0].mean((1, 2)))).astype(np.int64)


@dataclass
class Shelf:
    """Checkpoints in memory."""

    kept: dict[str, bytes] = field(default_factory=dict)

    def load(self, name: str) -> bytes | None:
        return self.kept.get(name)

    def save(self, name: str, data: bytes) -> None:
        self.kept[name] = data


@dataclass
class Recorder:
    """Remembers what it was told; asks to stop at a step."""

    stop_at: int | None = None
    told: list[tuple[int, int]] = field(default_factory=list)

    def advance(self, done: int, total: int) -> None:
        self.told.append((done, total))
        if self.stop_at is not None and done >= self.stop_at:
            raise Stopped


def _network() -> nn.Module:
    with seeded(5):
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)),
            *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 2)),
        )


def _noisy_loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
    x, y = batch
    noise = torch.randn(x.shape, generator=rng, device=rng.device)
    return F.cross_entropy(model(x + 0.01 * noise), y)


def _spec(optimizer: str = "adam", epochs: int = 3) -> FitSpec:
    return FitSpec.model_validate(
        {"epochs": epochs, "batch_size": 16, "optimizer": optimizer, "peak_lr": 0.01, "validation_share": 0.1}
    )


def _flipped(x: Tensor, rng: torch.Generator) -> Tensor:
    return torch.where(torch.rand((len(x), 1, 1, 1), generator=rng, device=rng.device) < 0.5, x.flip(3), x)


def _fit(network: nn.Module, spec: FitSpec, watch: Watch, shelf: Shelf, seed: int = 1) -> FitResult:
    batches = ImageBatches(IMAGES, LABELS, spec=spec, seed=seed, augment=_flipped)
    return fit(network, batches, _noisy_loss, spec, seed=seed, watch=watch, checkpoints=shelf, name="net")


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_resumed_fit_ends_in_the_same_bits(optimizer: str) -> None:
    spec, whole, shelf, broken = _spec(optimizer), _network(), Shelf(), _network()
    wanted = _fit(whole, spec, Silent(), Shelf())
    with pytest.raises(Stopped):
        _fit(broken, spec, Recorder(stop_at=8), shelf)  # in the second of three epochs of five batches
    torch.rand(7)  # nothing may depend on the global generator
    resumed, recorder = _network(), Recorder()
    got = _fit(resumed, spec, recorder, shelf)
    assert recorder.told[0] == (5, 15)
    assert got == wanted
    assert _same(resumed, whole)
    assert not _same(broken, whole)


def test_no_gradient_is_longer_than_asked() -> None:
    """Under plain SGD of one step the weights move by the rate times the shortened gradient, in its direction."""
    moved = {}
    for clip_norm in (None, 1e-3, 1e3):
        given = {"epochs": 1, "batch_size": 90, "optimizer": "sgd", "peak_lr": 1.0, "schedule": "constant"}
        spec = FitSpec.model_validate({**given, "momentum": 0, "validation_share": 0, "clip_norm": clip_norm})
        before, after = _network(), _network()
        _fit(after, spec, Silent(), Shelf())
        pairs = zip(after.parameters(), before.parameters(), strict=True)
        moved[clip_norm] = torch.cat([(new - old).flatten() for new, old in pairs]).detach()
    assert moved[1e-3].norm() == pytest.approx(1e-3, rel=1e-2)
    assert moved[None].norm() > 0.01
    assert torch.equal(moved[1e3], moved[None])
    assert F.cosine_similarity(moved[1e-3], moved[None], dim=0) > 0.99


def test_a_finished_fit_is_not_made_again() -> None:
    shelf, first, second, recorder = Shelf(), _network(), _network(), Recorder()
    wanted = _fit(first, _spec(), Silent(), shelf)
    assert _fit(second, _spec(), recorder, shelf) == wanted
    assert recorder.told == [(15, 15)]
    assert _same(first, second)


def test_a_checkpoint_of_another_fit_is_ignored() -> None:
    shelf, recorder = Shelf(), Recorder()
    _fit(_network(), _spec(), Silent(), shelf)
    _fit(_network(), _spec(), recorder, shelf, seed=2)
    assert recorder.told[0] == (0, 15)


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda _: b"", lambda _: b"\x80\x04pickle" * 9])
def test_a_damaged_checkpoint_says_so(damage: object) -> None:
    shelf = Shelf()
    _fit(_network(), _spec(), Silent(), shelf)
    shelf.kept["net"] = damage(shelf.kept["net"])  # type: ignore[operator]
    with pytest.raises(CheckpointUnreadable):
        _fit(_network(), _spec(), Silent(), shelf)


@pytest.mark.parametrize("stop_at", [0, 1, 7])
def test_it_stops_at_the_very_batch(stop_at: int) -> None:
    recorder = Recorder(stop_at)
    with pytest.raises(Stopped):
        _fit(_network(), _spec(), recorder, Shelf())
    assert [done for done, _ in recorder.told] == list(range(stop_at + 1))


def test_it_learns_and_reports_every_batch() -> None:
    recorder, network = Recorder(), _network()
    losses = _fit(network, _spec(epochs=12), recorder, Shelf())
    assert len(losses.train_loss) == len(losses.validation_loss) == 12
    assert losses.train_loss[-1] < 0.75 * losses.train_loss[0]
    assert recorder.told == [(done, 60) for done in range(61)]
    assert not network.training


def test_it_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    _fit(_network(), _spec(), Silent(), Shelf())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loss_that_is_no_number_ends_the_fit() -> None:
    def broken(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        return _noisy_loss(model, batch, rng) * float("nan")

    spec = _spec()
    batches = ImageBatches(IMAGES, LABELS, spec=spec, seed=1)
    with pytest.raises(Diverged, match="peak_lr"):
        fit(_network(), batches, broken, spec, seed=1, watch=Silent(), checkpoints=Forgetful(), name="net")


def test_an_epoch_shows_every_training_image_once_and_none_of_the_held_out() -> None:
    batches = ImageBatches(IMAGES, np.arange(90), spec=_spec(), seed=3)
    held_out = {int(i) for _, rows in batches.validation() for i in rows}
    seen = [[int(i) for _, rows in batches.train(e, torch.Generator().manual_seed(e)) for i in rows] for e in (0, 1)]
    assert len(held_out) == 9
    assert sorted(seen[0]) == sorted(seen[1]) == sorted(set(range(90)) - held_out)
    assert seen[0] != seen[1]
    x, rows = next(batches.train(0, torch.Generator().manual_seed(0)))
    assert torch.equal(x, to_float(IMAGES[rows.numpy()]))


def test_rows_of_a_group_are_held_out_together() -> None:
    numbers = np.arange(90) // 3 * 7  # thirty groups of three, numbered with gaps
    spec = FitSpec.model_validate({"validation_share": 0.1, "batch_size": 16})
    batches = ImageBatches(IMAGES, numbers, spec=spec, seed=1, groups=numbers)
    held_out = torch.cat([own for _, own in batches.validation()]).tolist()
    fitted = torch.cat([own for _, own in batches.train(0, torch.Generator().manual_seed(0))]).tolist()
    assert sorted(Counter(held_out).values()) == [3, 3, 3]
    assert sorted(Counter(fitted).values()) == [3] * 27
    assert not set(held_out) & set(fitted)


def test_a_small_set_is_repeated_within_an_epoch() -> None:
    batches = ImageBatches(IMAGES[:10], np.arange(10), spec=_spec(), seed=3, samples_an_epoch=40)
    seen = Counter(int(i) for _, rows in batches.train(0, torch.Generator().manual_seed(0)) for i in rows)
    assert set(seen.values()) == {4}
    assert len(seen) == 9


@pytest.mark.parametrize("count", [2, 3, 17, 33, 65, 129])
def test_no_batch_is_left_with_a_single_image(count: int) -> None:
    spec = FitSpec(batch_size=16, validation_share=0.0)
    images = np.zeros((count, 8, 8, 1), np.uint8)
    batches = ImageBatches(images, np.arange(count), spec=spec, seed=0)
    sizes = [len(rows) for _, rows in batches.train(0, torch.Generator().manual_seed(0))]
    assert sum(sizes) == count
    assert min(sizes) >= 2
    assert len(sizes) == batches.steps == batch_count(count, 16)
    assert list(batches.validation()) == []


def test_targets_must_fit_the_images() -> None:
    with pytest.raises(ValueError, match="targets"):
        ImageBatches(IMAGES, LABELS[:-1], spec=_spec(), seed=0)
    with pytest.raises(ValueError, match="images"):
        ImageBatches(IMAGES[:0], LABELS[:0], spec=_spec(), seed=0)


def test_the_schedule_is_torchs_one_cycle() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    oracle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=40)
    for step in range(40):
        ours = one_cycle(step, 40, 0.1)
        (group,) = optimizer.param_groups
        assert ours.lr == pytest.approx(group["lr"], rel=1e-9)
        assert ours.momentum == pytest.approx(group["momentum"], rel=1e-9)
        optimizer.step()
        if step < 39:
            oracle.step()


@pytest.mark.parametrize("total", [1, 2, 3, 4])
def test_the_schedule_holds_for_the_shortest_fits(total: int) -> None:
    rates = [one_cycle(step, total, 0.1) for step in range(total)]
    assert all(0 < rate.lr <= 0.1 and 0.85 <= rate.momentum <= 0.95 for rate in rates)


def test_a_piece_tells_the_whole_how_far_it_is() -> None:
    recorder = Recorder()
    Piece(recorder, 1, 3).advance(5, 10)
    assert recorder.told == [(15, 30)]


def test_seeds_derive_from_every_name() -> None:
    seeds = {derive_seed(*names) for names in ((0,), (1,), (0, "a"), (0, "a", 1), (0, "a", 2), (0, "a1"))}
    assert len(seeds) == 6
    assert derive_seed(0, "a") == 739273521946992771  # the same on every machine


def test_images_come_back_from_torch_as_they_went() -> None:
    x = to_float(IMAGES)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.shape == (90, 3, 12, 12)
    assert np.array_equal(to_uint8(x), IMAGES)


@pytest.mark.parametrize(
    "images", [IMAGES.astype(np.float32), IMAGES[0], IMAGES[..., :2], IMAGES[:, :7], np.zeros((1, 8, 257, 1), np.uint8)]
)
def test_what_is_no_image_is_refused(images: np.ndarray) -> None:
    with pytest.raises(NotImages):
        check_images(images)


@pytest.mark.parametrize("mixed", [True, False])
def test_a_step_is_in_bfloat16_where_the_device_computes_in_it(mixed: bool) -> None:
    """The loss, the weights and what is measured on held-out images stay in float32."""
    steps: set[torch.dtype] = set()
    held_out: set[torch.dtype] = set()
    spec = FitSpec(epochs=1, batch_size=32, validation_share=0.2, mixed_precision=mixed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    def loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        logits = model(batch[0])
        (steps if model.training else held_out).add(logits.dtype)
        return F.cross_entropy(logits, batch[1])

    batches = ImageBatches(IMAGES, LABELS, spec=spec, seed=0)
    result = fit(network, batches, loss, spec, seed=0, watch=Silent(), checkpoints=Forgetful(), name="precision")
    low = mixed and has_bfloat16(torch.device("cpu"))
    assert steps == {torch.bfloat16 if low else torch.float32}
    assert held_out == {torch.float32}
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert np.isfinite([*result.train_loss, *result.validation_loss]).all()


def test_a_device_with_units_for_it_has_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert has_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert not has_bfloat16(torch.device("cuda"))
    assert not has_bfloat16(torch.device("meta"))
    for units, has in (({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units, raising=False)
        assert has_bfloat16(torch.device("cpu")) is has


def test_a_fit_that_was_begun_in_another_precision_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a CPU without bfloat16, taken up by one that has it, or the other way round."""
    spec, shelf = FitSpec(epochs=2, batch_size=30, validation_share=0.0), Shelf()

    def run(has: bool, watch: Watch) -> FitResult:
        monkeypatch.setattr("models.training.has_bfloat16", lambda device: has)  # noqa: ARG005
        batches = ImageBatches(IMAGES, LABELS, spec=spec, seed=0)
        return fit(_network(), batches, _noisy_loss, spec, seed=0, watch=watch, checkpoints=shelf, name="moved")

    with pytest.raises(Stopped):
        run(False, Recorder(stop_at=4))
    taken_up, anew = Recorder(), Recorder()
    run(True, anew)
    assert anew.told[0][0] <= 1
    with pytest.raises(Stopped):
        run(False, Recorder(stop_at=4))
    run(False, taken_up)
    assert taken_up.told[0][0] > 1
