"""Further processes that fit a distillation together with this one, one a device: started, fed and ended here.

They run the same steps on the same images; `models.ranks` shares out every batch between them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from models.specs import DistillSpec
from service.disk import scratch_told

PATIENCE = timedelta(minutes=10)
"""With a rank that does not answer: importing torch on a busy machine takes a while."""
FAREWELL_SECONDS = 30.0

IMAGES, LABELS, SPEC, STORE = "images.npy", "labels.npy", "spec.json", "store"


def ranks_wanted(setting: int | None) -> int:
    """As many as the setting says; without one, as many as torch sees CUDA devices, at least one."""
    return setting or max(torch.cuda.device_count(), 1)


@contextmanager
def fitting_together(
    size: int, images: NDArray[np.uint8], labels: NDArray[np.int64], spec: DistillSpec, *, num_classes: int
) -> Iterator[None]:
    """Inside, this process is rank 0 of `size`, and `models.distillation.distill` of these very arguments is shared."""
    if size == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="winnow-ranks-") as name:
        folder = Path(name)
        with scratch_told():
            np.save(folder / IMAGES, images)
            np.save(folder / LABELS, labels)
            (folder / SPEC).write_text(spec.model_dump_json())
        command = [sys.executable, "-P", "-m", "worker.rank", name, str(size), str(num_classes)]
        others = [subprocess.Popen([*command, str(rank)]) for rank in range(1, size)]  # noqa: S603
        finished = False
        try:
            join(folder, rank=0, size=size)
            yield
            finished = True
        finally:
            leave()
            _end(others, patiently=finished)


def join(folder: Path, *, rank: int, size: int) -> None:
    """Become a rank: each has a CUDA device to itself where there is one, else all share the CPU."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{folder / STORE}",
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
    )


def leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _end(others: list[subprocess.Popen[bytes]], *, patiently: bool) -> None:
    """Wait for ranks that have nothing left to do; end those of a fit that was stopped or broke."""
    for other in others:
        if not patiently:
            other.terminate()
        try:
            other.wait(timeout=FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:
            other.kill()
            other.wait()
