"""The one fit loop: schedule, progress, early stop, and checkpoints that resume bit for bit on a CPU.

Randomness is a pure function of (seed, epoch) at an epoch's start; a checkpoint within an epoch carries the generators.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from models.batches import Augment as Augment
from models.batches import Batch as Batch
from models.batches import Batches as Batches
from models.batches import ImageBatches as ImageBatches
from models.batches import batch_count as batch_count
from models.checkpoint import Progress, Within, pack, unpack
from models.cores import Cores, threads, threads_that_pay
from models.device import has_bfloat16, pick_device
from models.ranks import Ranks
from models.replicas import MOST_PIECES, Replicas, divides
from models.schedule import rates
from models.seeding import derive_seed, seeded
from models.specs import FitSpec
from models.watch import Checkpoints as Checkpoints
from models.watch import Forgetful as Forgetful
from models.watch import Paced as Paced
from models.watch import Piece as Piece
from models.watch import Silent as Silent
from models.watch import Stopped as Stopped
from models.watch import Watch as Watch

Loss = Callable[[nn.Module, Batch, torch.Generator], Tensor]
"""Mean loss of a batch, or of a piece of one on a replica of the model, a scalar.

What it draws (masks, noise) comes from the generator, on the model's device.
"""


@dataclass(frozen=True)
class FitResult:
    """Mean loss of each epoch; `validation_loss` is empty where nothing is held out."""

    train_loss: list[float]
    validation_loss: list[float]


class Diverged(ArithmeticError):
    """The training loss is no longer a finite number."""


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
    """Train `model` for `spec.epochs` epochs or until patience ends; it is left in eval mode on `pick_device()`.

    name: of the checkpoint, written after each epoch, and where the checkpoints are paced, also within one at that
    pace and when told to stop. A checkpoint of the same spec, seed, step count and parameter shapes is gone on from;
    one of another fit is ignored. In a process group all ranks fit together (models.ranks), and keep whole epochs only.
    Raises Stopped as soon as the watch does, Diverged where the loss is not finite, CheckpointUnreadable.
    """
    device = pick_device()
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with Cores(min(MOST_PIECES, torch.get_num_threads())) as cores:
        run = _Fit(model, batches, loss, spec, seed, watch, checkpoints, name, device, cores)
        progress = run.resumed()
        run.report(progress.epoch * batches.steps + (progress.within.step if progress.within else 0))
        while progress.epoch < spec.epochs and not _out_of_patience(progress, spec):
            progress = run.epoch(progress)
            run.save(progress)
    if progress.best:
        model.load_state_dict(progress.best)
    if progress.epoch < spec.epochs:
        run.report(spec.epochs * batches.steps)
    Ranks.current().settle(model)
    model.eval()
    return FitResult(list(progress.train_loss), list(progress.validation_loss))


def _out_of_patience(progress: Progress, spec: FitSpec) -> bool:
    if spec.patience is None or not progress.validation_loss:
        return False
    return len(progress.validation_loss) - 1 - progress.best_epoch >= spec.patience


class _Step(nn.Module):
    """The loss of a batch as a module, which is what DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module, loss: Loss, precision: AbstractContextManager[object]) -> None:
        super().__init__()
        self.model, self._loss, self._precision = model, loss, precision

    def forward(self, batch: Batch, rng: torch.Generator) -> Tensor:
        with self._precision:
            return self._loss(self.model, batch, rng)


class _Fit:
    """One fit under way."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss: Loss,
        spec: FitSpec,
        seed: int,
        watch: Watch,
        checkpoints: Checkpoints,
        name: str,
        device: torch.device,
        cores: Cores,
    ) -> None:
        self._model, self._batches, self._loss, self._spec = model, batches, loss, spec
        self._seed, self._watch, self._checkpoints, self._name, self._device = seed, watch, checkpoints, name, device
        self._optimizer, self._cores = _optimizer(model, spec), cores
        self._ranks = Ranks.current()
        self._cuttable = self._ranks.alone and device.type == "cpu" and divides(model)
        parts = (seed, batches.steps, self._ranks.size, _dtype(spec, device), MOST_PIECES if self._cuttable else 1)
        self._identity = " ".join(map(str, (spec.model_dump_json(), *parts)))
        self._total_steps = spec.epochs * batches.steps
        self._saved_at = time.monotonic()

    def resumed(self) -> Progress:
        """Where the checkpoint left off, or the beginning. On several ranks, as rank 0 has it."""
        data = self._ranks.from_first(self._checkpoints.load(self._name) if self._ranks.first else None)
        progress = unpack(data, self._identity, self._model, self._optimizer) or Progress()
        step_of = partial(_step_of, self._loss, self._spec, self._device)
        self._step = self._ranks.parallel(step_of(self._model), self._device)
        self._replicas = Replicas(self._model, step_of, self._cores) if self._cuttable else None
        return progress

    def report(self, done: int) -> None:
        self._ranks.together(lambda: self._watch.advance(done, self._total_steps))

    def save(self, progress: Progress) -> None:
        if self._ranks.first:
            data = pack(progress, self._identity, self._model, self._optimizer)
            self._checkpoints.save(self._name, data)
        self._saved_at = time.monotonic()

    def epoch(self, progress: Progress) -> Progress:
        """One epoch, or what is left of it, and its validation."""
        epoch = progress.epoch
        with seeded(derive_seed(self._seed, self._name, "layers", epoch), self._device):
            trained = self._train(progress)
            held_out = self._validate()
        progress = progress.after_epoch(trained, held_out)
        if self._spec.patience is not None and progress.best_epoch == epoch:
            weights = {key: value.detach().cpu().clone() for key, value in self._model.state_dict().items()}
            progress = replace(progress, best=weights)
        return progress

    def _train(self, progress: Progress) -> float:
        """The mean training loss of the epoch."""
        self._model.train()
        rng, own_rng = self._generators(progress.epoch)
        epoch = iter(self._batches.train(progress.epoch, rng))
        total, samples, made = torch.zeros((), dtype=torch.float64), 0, 0
        if progress.within is not None:
            for made in range(1, progress.within.step + 1):  # noqa: B007
                next(epoch)
            _set_generators(progress.within.generators, rng)
            total, samples = total + progress.within.total, progress.within.samples
        for batch in epoch:
            step = progress.epoch * self._batches.steps + made
            batch = _moved(batch, self._device)
            value = self._descend(batch, step, own_rng)
            total, samples, made = total + value.double().cpu() * len(batch[0]), samples + len(batch[0]), made + 1
            if not torch.isfinite(total):
                raise self._diverged(value, progress.epoch)
            here = Within(made, float(total), samples, {})
            self._pause(lambda here=here: _at(progress, here, rng), step + 1)  # type: ignore[misc]
        return float(total) / samples

    def _descend(self, batch: Batch, step: int, rng: torch.Generator) -> Tensor:
        """One step of the optimiser; the mean loss of the batch."""
        rates(self._spec, step, self._batches.steps).set_on(self._optimizer)
        own, weight = self._ranks.share(batch)
        self._optimizer.zero_grad(set_to_none=True)
        value = self._backward(own, weight, rng)
        if self._spec.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._spec.clip_norm)
        self._optimizer.step()
        return self._ranks.mean(value * weight)

    def _backward(self, batch: Batch, weight: float, rng: torch.Generator) -> Tensor:
        """The mean loss; what it weighs, as a gradient, is left with the parameters."""
        if self._replicas is not None and (pieces := self._replicas.pieces_of(batch[0])) > 1:
            return self._replicas.backward(batch, rng, pieces)
        with threads(threads_that_pay(batch[0])):
            value: Tensor = self._step(batch, rng)
            (value if weight == 1.0 else value * weight).backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def _diverged(self, value: Tensor, epoch: int) -> Diverged:
        lower = f"lower peak_lr ({self._spec.peak_lr})"
        return Diverged(f"training loss is {value.item()} in epoch {epoch + 1}; {lower}")

    def _pause(self, state: Callable[[], Progress], done: int) -> None:
        """Report a step; keep the state where it is time to, and where it is told to stop."""
        paced = self._checkpoints if isinstance(self._checkpoints, Paced) and self._ranks.alone else None
        try:
            self.report(done)
        except Stopped:
            if paced is not None:
                self.save(state())
            raise
        if paced is not None and time.monotonic() - self._saved_at >= paced.every_seconds:
            self.save(state())

    def _validate(self) -> tuple[float, ...]:
        """The mean loss of the held-out share, or nothing."""
        self._model.eval()
        rng = _rng(self._seed, self._name, -1, self._device)
        total, samples = 0.0, 0
        with torch.no_grad():
            for batch in self._batches.validation():
                batch = _moved(batch, self._device)
                with threads(threads_that_pay(batch[0])):
                    total += float(self._loss(self._model, batch, rng)) * len(batch[0])
                samples += len(batch[0])
        return (total / samples,) if samples else ()

    def _generators(self, epoch: int) -> tuple[torch.Generator, torch.Generator]:
        """For the batches, the same on every rank, and for the loss, which alone shares the first."""
        rng = _rng(self._seed, self._name, epoch, self._device)
        if self._ranks.alone:
            return rng, rng
        return rng, _rng(derive_seed(self._seed, "rank", self._ranks.rank), self._name, epoch, self._device)


def _step_of(loss: Loss, spec: FitSpec, device: torch.device, model: nn.Module) -> nn.Module:
    return _Step(model, loss, _precision(spec, device))


def _optimizer(model: nn.Module, spec: FitSpec) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if spec.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=spec.peak_lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=spec.peak_lr, weight_decay=spec.weight_decay)


def _precision(spec: FitSpec, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 pays where the device has units for it; its exponents are float32's, so no loss needs scaling.

    Weights are not cached where pieces of a batch are computed side by side: who leaves first empties all their caches.
    """
    dtype = _dtype(spec, device)
    return (
        nullcontext()
        if dtype == torch.float32
        else torch.autocast(device.type, dtype, cache_enabled=device.type != "cpu")
    )


def _dtype(spec: FitSpec, device: torch.device) -> torch.dtype:
    return torch.bfloat16 if spec.mixed_precision and has_bfloat16(device) else torch.float32


def _rng(seed: int, name: str, epoch: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(derive_seed(seed, name, "batches", epoch))


def _at(progress: Progress, place: Within, rng: torch.Generator) -> Progress:
    """With the batches' generator as it is now, and torch's own, which layers draw from."""
    generators = {"batches": rng.get_state(), "layers": torch.random.get_rng_state()}
    return replace(progress, within=replace(place, generators=generators))


def _set_generators(states: dict[str, Tensor], rng: torch.Generator) -> None:
    rng.set_state(states["batches"])
    torch.random.set_rng_state(states["layers"])


def _moved(batch: Batch, device: torch.device) -> Batch:
    return tuple(tensor.to(device) for tensor in batch)
