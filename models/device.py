"""Where the mathematics runs: the CUDA device where there is one, else the CPU."""

from __future__ import annotations

import torch
from torch import nn


def pick_device() -> torch.device:
    """The first CUDA device if torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters; the CPU for a model that has neither parameters nor buffers."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
