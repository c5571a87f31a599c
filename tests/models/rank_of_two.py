"""One rank of a fit in several processes: `python rank_of_two.py FOLDER RANK SIZE`; weights and losses to FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from models.seeding import seeded
from models.specs import FitSpec
from models.training import Batch, Forgetful, ImageBatches, Silent, Stopped, Watch, fit

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (200, 12, 12, 1), dtype=np.uint8)
LABELS = (IMAGES[..., 0].mean((1, 2)) > np.median(IMAGES[..., 0].mean((1, 2)))).astype(np.int64)
SPEC = FitSpec(epochs=6, batch_size=31, optimizer="adam", peak_lr=0.01, validation_share=0.0, mixed_precision=False)


class StopsAtFour:
    """Only rank 0 is asked; the other must stop with it."""

    last = 0

    def advance(self, done: int, _total: int) -> None:
        self.last = done
        if done == 4:
            raise Stopped


def plain_loss(model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def run(watch: Watch) -> tuple[nn.Module, list[float]]:
    with seeded(5):
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 2))
    batches = ImageBatches(IMAGES, LABELS, spec=SPEC, seed=1)
    losses = fit(model, batches, plain_loss, SPEC, seed=1, watch=watch, checkpoints=Forgetful(), name="net")
    return model, losses.train_loss


def main(folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    if size > 1:
        store = f"file://{folder}/store"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    model, losses = run(Silent())
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    stopped_at, watch = -1, StopsAtFour()
    try:
        run(watch)
    except Stopped:
        stopped_at = 4
    if size > 1:
        distributed.destroy_process_group()
    np.savez(folder / f"rank-{rank}-of-{size}.npz", train_loss=losses, stopped_at=stopped_at, **weights)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
