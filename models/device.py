"""Where the mathematics runs: the CUDA device where there is one, else the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by itself, and so in less time than in float32.

    CUDA does since Ampere; a CPU where it has AVX-512 BF16, AMX or SVE for it. Others would have to imitate it.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    capabilities: Callable[[], Mapping[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    has = capabilities()
    return any(has.get(unit) for unit in ("avx512_bf16", "amx_bf16", "sve_bf16"))


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Inside, cuDNN computes in full float32 and always by the same kernels; a CPU does so anyway."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
