"""A step of a fit cut into pieces of the batch, which the cores of a CPU compute beside each other.

As torch's DataParallel does with GPUs: each piece runs through a replica of the model that shares its weights, and the
gradients are summed. Batch norm takes its statistics from a piece, as it does on several ranks; the running ones are
the mean over pieces. How a batch is cut depends on its shape alone, so a fit draws the same on any number of cores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.batches import Batch
from models.cores import Cores

MOST_PIECES = 2
LEAST_PIXELS = 16_000
"""Of a piece: Python's own time, which cores cannot share, is then small beside it."""
LEAST_IMAGES, LEAST_NORMED = 30, 60
"""Of a piece, and of one that batch norm takes its statistics from.

All a little under round numbers: batches of a fit differ by one image."""

Step = Callable[[Batch, torch.Generator], Tensor]
"""Mean loss of the samples of a batch."""


def divides(model: nn.Module) -> bool:
    """Whether a batch may be cut: there is no dropout of torch's, whose generator pieces would share."""
    return not any(isinstance(module, nn.modules.dropout._DropoutNd) for module in model.modules())


class Replicas:
    """Gradients of batches. model: on the CPU, `divides`; its parameters must stay where they are in memory.

    step_of: the step of a replica.
    """

    def __init__(self, model: nn.Module, step_of: Callable[[nn.Module], Step], cores: Cores) -> None:
        self._model, self._step_of, self._cores = model, step_of, cores
        self._models, self._steps = [model], [step_of(model)]
        self._least_images = LEAST_NORMED if _running(model) else LEAST_IMAGES

    def pieces_of(self, images: Tensor) -> int:
        """Into how many pieces a batch (n, c, h, w) is cut."""
        n, pixels = len(images), len(images) * images.shape[2:].numel()
        return max(1, min(MOST_PIECES, n // self._least_images, pixels // LEAST_PIXELS))

    def backward(self, batch: Batch, rng: torch.Generator, pieces: int) -> Tensor:
        """The mean loss, a scalar; its gradients are added to the parameters', in the same order every time."""
        self._grow(pieces)
        own, *others = [_running(replica) for replica in self._models[:pieces]]
        for theirs in others:
            _copy(own, theirs)
        parts = list(zip(*(torch.tensor_split(tensor, pieces) for tensor in batch), strict=True))
        seeds = torch.randint(2**63 - 1, (pieces,), generator=rng).tolist()

        def one(number: int) -> Tensor:
            part = parts[number]
            value = self._steps[number](part, torch.Generator().manual_seed(seeds[number]))
            value = value * (len(part[0]) / len(batch[0]))
            value.backward()  # type: ignore[no-untyped-call]
            return value.detach()

        values = self._cores.map(one, range(pieces))
        for replica in self._models[1:pieces]:
            _hand_over(replica, self._model)
        for tensor, *same in zip(own, *others, strict=True):
            tensor.copy_(torch.stack([tensor, *same]).mean(dim=0))
        return torch.stack(values).sum()

    def _grow(self, count: int) -> None:
        while len(self._models) < count:
            replica = copy.deepcopy(self._model)
            replica.zero_grad(set_to_none=True)
            for own, shared in zip(replica.parameters(), self._model.parameters(), strict=True):
                own.data = shared.data
            self._models.append(replica)
            self._steps.append(self._step_of(replica))


def _hand_over(replica: nn.Module, model: nn.Module) -> None:
    """The replica's gradients added to the model's."""
    for own, shared in zip(replica.parameters(), model.parameters(), strict=True):
        if own.grad is None:
            continue
        if shared.grad is None:
            shared.grad = own.grad
        else:
            shared.grad += own.grad
        own.grad = None


def _running(model: nn.Module) -> list[Tensor]:
    """The statistics that batch norm gathers."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var) if tensor is not None]


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for have, want in zip(source, target, strict=True):
        want.copy_(have)
