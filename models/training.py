"""The one fit loop: one-cycle schedule, progress, stopping, and checkpoints that resume bit for bit on a CPU.

Randomness is a pure function of (seed, epoch), so a fit resumed at an epoch's end goes the way it would have gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.checkpoint import Progress, pack, unpack
from models.device import pick_device
from models.images import Images, to_float
from models.schedule import one_cycle
from models.seeding import derive_seed, seeded
from models.specs import FitSpec

Batch = tuple[Tensor, ...]
"""What the loss wants; the first axis of the first tensor counts the samples."""

Loss = Callable[[nn.Module, Batch, torch.Generator], Tensor]
"""Mean loss of a batch, a scalar. What it draws (masks, noise) comes from the generator, on the model's device."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Float images (n, c, h, w) in [0, 1] to the same, drawing from the generator."""


class Stopped(Exception):
    """The caller asked the computation to stop; what it had computed is in its checkpoints."""


class Watch(Protocol):
    """What a long computation reports to, at least once a batch."""

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` steps are made. Raises Stopped to end the computation here."""


class Silent:
    """A watch that asks for nothing."""

    def advance(self, done: int, total: int) -> None:  # noqa: ARG002
        return None


@dataclass(frozen=True)
class Piece:
    """One of several equal pieces of a computation, told to the watch of the whole."""

    whole: Watch
    index: int
    pieces: int

    def advance(self, done: int, total: int) -> None:
        self.whole.advance(self.index * total + done, self.pieces * total)


class Checkpoints(Protocol):
    """Where a fit keeps its state between attempts. The bytes are safetensors."""

    def load(self, name: str) -> bytes | None: ...

    def save(self, name: str, data: bytes) -> None: ...


class Forgetful:
    """Keeps nothing."""

    def load(self, name: str) -> bytes | None:  # noqa: ARG002
        return None

    def save(self, name: str, data: bytes) -> None:  # noqa: ARG002
        return None


class Batches(Protocol):
    """The mini-batches of a fit."""

    @property
    def steps(self) -> int:
        """How many batches `train` yields."""

    def train(self, epoch: int, rng: torch.Generator) -> Iterator[Batch]:
        """The batches of an epoch, in an order drawn from `rng`, on `rng.device` or on the CPU."""

    def validation(self) -> Iterator[Batch]:
        """The batches of the held-out share; none where nothing is held out."""


@dataclass(frozen=True)
class FitResult:
    """Mean loss of each epoch; `validation_loss` is empty where nothing is held out."""

    train_loss: list[float]
    validation_loss: list[float]


class Diverged(ArithmeticError):
    """The training loss is no longer a finite number."""


class ImageBatches:
    """Batches (x, *targets): x float (b, c, h, w) made from uint8 a batch at a time, a target's rows beside it.

    images: uint8 (n, h, w, c), n ≥ 1; targets: arrays (n, …). A share of the images, drawn from `seed`, is held out.
    samples_an_epoch: a smaller set is repeated until an epoch has about as many.
    Batches differ by at most one image in size, so that none is left with a single image for batch norm.
    """

    def __init__(
        self,
        images: Images,
        *targets: npt.NDArray[np.generic],
        spec: FitSpec,
        seed: int,
        augment: Augment | None = None,
        samples_an_epoch: int = 1,
    ) -> None:
        if len(images) == 0 or any(len(target) != len(images) for target in targets):
            raise ValueError(f"want images and as many targets, not {len(images)} and {[len(t) for t in targets]}")
        order = np.random.default_rng(derive_seed(seed, "validation")).permutation(len(images))
        held_out = min(round(spec.validation_share * len(images)), len(images) - 1)
        self._images, self._targets, self._augment = images, targets, augment
        self._validation, once = np.sort(order[:held_out]), np.sort(order[held_out:])
        self._train = np.tile(once, max(1, round(samples_an_epoch / len(once))))
        self._batch_size = spec.batch_size

    @property
    def steps(self) -> int:
        return batch_count(len(self._train), self._batch_size)

    def train(self, epoch: int, rng: torch.Generator) -> Iterator[Batch]:  # noqa: ARG002
        order = torch.randperm(len(self._train), generator=rng, device=rng.device).cpu().numpy()
        for part in np.array_split(self._train[order], self.steps):
            x, *targets = self._batch(part, rng.device)
            yield (x if self._augment is None else self._augment(x, rng), *targets)

    def validation(self) -> Iterator[Batch]:
        if len(self._validation):
            for part in np.array_split(self._validation, batch_count(len(self._validation), self._batch_size)):
                yield self._batch(part, pick_device())

    def _batch(self, rows: npt.NDArray[np.int64], device: torch.device) -> Batch:
        return to_float(self._images[rows], device), *(torch.from_numpy(t[rows]).to(device) for t in self._targets)


def batch_count(samples: int, batch_size: int) -> int:
    """How many near-equal batches of about `batch_size` hold `samples`; at least one."""
    return max(1, round(samples / batch_size))


def fit(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    spec: FitSpec,
    *,
    seed: int,
    watch: Watch,
    checkpoints: Checkpoints,
    name: str,
) -> FitResult:
    """Train `model` for `spec.epochs` epochs; it is left in eval mode on `pick_device()`.

    name: of the checkpoint, written after each epoch. A checkpoint of the same spec, seed, step count and parameter
    shapes is gone on from; one of another fit is ignored.
    Raises Stopped as soon as the watch does, Diverged where the loss is not finite, CheckpointUnreadable.
    Schedule: Smith & Topin 2018 (one-cycle), as in torch's OneCycleLR.
    """
    device = pick_device()
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(model, spec)
    identity = f"{spec.model_dump_json()} {seed} {batches.steps}"
    progress = unpack(checkpoints.load(name), identity, model, optimizer) or Progress(0, (), ())
    watch.advance(progress.epoch * batches.steps, spec.epochs * batches.steps)
    while progress.epoch < spec.epochs:
        epoch = progress.epoch
        with seeded(derive_seed(seed, name, "layers", epoch), device):
            trained = _train_epoch(model, batches, loss, optimizer, spec, epoch, _rng(seed, name, epoch, device), watch)
            held_out = _validate(model, batches, loss, _rng(seed, name, -1, device))
        progress = Progress(epoch + 1, (*progress.train_loss, trained), (*progress.validation_loss, *held_out))
        checkpoints.save(name, pack(progress, identity, model, optimizer))
    model.eval()
    return FitResult(list(progress.train_loss), list(progress.validation_loss))


def _optimizer(model: nn.Module, spec: FitSpec) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if spec.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=spec.peak_lr, momentum=0.9, weight_decay=spec.weight_decay)
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=spec.peak_lr, weight_decay=spec.weight_decay)


def _rng(seed: int, name: str, epoch: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(derive_seed(seed, name, "batches", epoch))


def _train_epoch(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    spec: FitSpec,
    epoch: int,
    rng: torch.Generator,
    watch: Watch,
) -> float:
    model.train()
    steps, total_steps = batches.steps, spec.epochs * batches.steps
    total, samples = torch.zeros((), dtype=torch.float64), 0
    for step, batch in enumerate(batches.train(epoch, rng), start=epoch * steps):
        one_cycle(step, total_steps, spec.peak_lr).set_on(optimizer)
        batch = _moved(batch, rng.device)
        optimizer.zero_grad(set_to_none=True)
        value = loss(model, batch, rng)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total, samples = total + value.detach().double().cpu() * len(batch[0]), samples + len(batch[0])
        if not torch.isfinite(total):
            raise Diverged(f"training loss is {value.item()} in epoch {epoch + 1}; lower peak_lr ({spec.peak_lr})")
        watch.advance(step + 1, total_steps)
    return float(total) / samples


def _validate(model: nn.Module, batches: Batches, loss: Loss, rng: torch.Generator) -> tuple[float, ...]:
    """The mean loss of the held-out share, or nothing."""
    model.eval()
    total, samples = 0.0, 0
    with torch.no_grad():
        for batch in batches.validation():
            batch = _moved(batch, rng.device)
            total, samples = total + float(loss(model, batch, rng)) * len(batch[0]), samples + len(batch[0])
    return (total / samples,) if samples else ()


def _moved(batch: Batch, device: torch.device) -> Batch:
    return tuple(tensor.to(device) for tensor in batch)
