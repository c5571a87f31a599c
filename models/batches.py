"""The mini-batches of a fit: float images made from uint8 a batch at a time, in an order drawn anew each epoch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.device import pick_device
from models.images import Images, to_float
from models.seeding import derive_seed
from models.spec_fields import FitSpec

Batch = tuple[Tensor, ...]
"""What the loss wants; the first axis of the first tensor counts the samples."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Float images (n, c, h, w) in [0, 1] to the same, drawing from the generator."""


class Batches(Protocol):
    """The mini-batches of a fit."""

    @property
    def steps(self) -> int:
        """How many batches `train` yields."""

    def train(self, epoch: int, rng: torch.Generator) -> Iterator[Batch]:
        """The batches of an epoch, in an order drawn from `rng`, on `rng.device` or on the CPU."""

    def validation(self) -> Iterator[Batch]:
        """The batches of the held-out share; none where nothing is held out."""


class ImageBatches:
    """Batches (x, *targets): x float (b, c, h, w) made from uint8 a batch at a time, a target's rows beside it.

    images: uint8 (n, h, w, c), n ≥ 1; targets: arrays (n, …). A share of the images, drawn from `seed`, is held out.
    groups: int64 (n,), rows of one group are held out together; without, each row by itself.
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
        groups: npt.NDArray[np.int64] | None = None,
        samples_an_epoch: int = 1,
    ) -> None:
        if len(images) == 0 or any(len(target) != len(images) for target in targets):
            raise ValueError(f"want images and as many targets, not {len(images)} and {[len(t) for t in targets]}")
        self._images, self._targets, self._augment = images, targets, augment
        own = np.arange(len(images)) if groups is None else np.unique(groups, return_inverse=True)[1]
        held_out = _drawn(int(own.max()) + 1, spec.validation_share, seed)[own]
        self._validation, once = np.flatnonzero(held_out), np.flatnonzero(~held_out)
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


@dataclass(frozen=True)
class ShortEpochs:
    """The first `longest` batches of each of another's epochs, which come in another order every time.

    And as many of its held-out ones, the same each time.
    """

    whole: Batches
    longest: int

    @classmethod
    def of(cls, whole: Batches, samples: int, batch_size: int) -> ShortEpochs:
        """Epochs of about so many samples at most."""
        return cls(whole, batch_count(samples, batch_size))

    @property
    def steps(self) -> int:
        return min(self.longest, self.whole.steps)

    def train(self, epoch: int, rng: torch.Generator) -> Iterator[Batch]:
        return itertools.islice(self.whole.train(epoch, rng), self.steps)

    def validation(self) -> Iterator[Batch]:
        return itertools.islice(self.whole.validation(), self.longest)


def _drawn(count: int, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which of `count` are held out, (count,); never all."""
    order = np.random.default_rng(derive_seed(seed, "validation")).permutation(count)
    held_out = np.zeros(count, np.bool_)
    held_out[order[: min(round(share * count), count - 1)]] = True
    return held_out


def batch_count(samples: int, batch_size: int) -> int:
    """How many near-equal batches of about `batch_size` hold `samples`; at least one."""
    return max(1, round(samples / batch_size))
