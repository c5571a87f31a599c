"""One fit on several devices: which rank of how many this process is, and its part of what all do together.

Every rank runs the same code on the same data. Each takes its share of every batch, gradients are averaged by torch's
DistributedDataParallel, and rank 0 alone reports, stops and keeps checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from models.batches import Batch
from models.watch import Stopped


@dataclass(frozen=True)
class Ranks:
    """rank of size; (0, 1) where no process group is open."""

    rank: int
    size: int

    @classmethod
    def current(cls) -> Ranks:
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(0, 1)
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batch: Batch) -> tuple[Batch, float]:
        """This rank's samples of a batch, and what its mean loss counts for in the average over ranks.

        A batch of fewer than two samples a rank is everybody's: batch norm wants two.
        """
        n = len(batch[0])
        if self.alone or n < 2 * self.size:
            return batch, 1.0
        own = tuple(tensor[self.rank :: self.size] for tensor in batch)
        return own, len(own[0]) * self.size / n

    def from_first(self, data: bytes | None) -> bytes | None:
        """What rank 0 has, on every rank."""
        if self.alone:
            return data
        kept: list[bytes | None] = [data if self.first else None]
        distributed.broadcast_object_list(kept, src=0)
        return kept[0]

    def mean(self, value: Tensor) -> Tensor:
        """The mean over ranks of a scalar."""
        if self.alone:
            return value
        whole = value.detach().clone()
        distributed.all_reduce(whole)
        return whole / self.size

    def together(self, advance: Callable[[], None]) -> None:
        """Rank 0 reports; where it is told to stop, all raise Stopped at the same step."""
        if self.alone:
            advance()
            return
        flag = torch.zeros(1)
        if self.first:
            try:
                advance()
            except Stopped:
                flag += 1
        if distributed.get_backend() == "nccl":
            flag = flag.cuda()
        distributed.broadcast(flag, src=0)
        if flag.item():
            raise Stopped

    def settle(self, model: nn.Module) -> None:
        """Give every rank rank 0's weights and buffers: batch norm has seen other samples on each."""
        if not self.alone:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, src=0)

    def parallel(self, step: nn.Module, device: torch.device) -> nn.Module:
        """A module that computes a loss, so wrapped that its gradients are those of all ranks."""
        if self.alone:
            return step
        return DistributedDataParallel(step, device_ids=[device] if device.type == "cuda" else None)
