"""Where the mathematics runs: the CUDA device where there is one, else the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def pick_device() -> torch.device:
    """The current CUDA device if torch sees one (the first, but for a rank that was given another), else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters; the CPU for a model that has neither parameters nor buffers."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Inside, cuDNN computes in full float32 and always by the same kernels; a CPU does so anyway."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
