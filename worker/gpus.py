"""A GPU for each worker of a machine: the one whose lock in a folder that they share is held by fewest of them.

CUDA itself is not asked, for it does not survive the fork of the child that computes: the driver's management library
names the devices, and CUDA_VISIBLE_DEVICES shows one of them to that child and to whatever it starts.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable, MutableMapping, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"
UUID_BYTES = 96


def see_one_gpu(
    folder: Path, environment: MutableMapping[str, str], *, present: Callable[[], list[str]] | None = None
) -> str | None:
    """Take a GPU and leave the others unseen; gives its name. None, and nothing is changed, where there is no choice.

    folder: the locks'; `Path()` for none. present: names of the machine's GPUs, by default what the driver says; where
    the environment shows some of them only, one of those is taken. Raises OSError where the folder cannot be used.
    """
    if folder == Path():
        return None
    given = environment.get(VISIBLE)
    names = (present or gpus_of_driver)() if given is None else _shown(given)
    if len(names) < 2:
        return None
    environment[VISIBLE] = take(folder, names)
    return environment[VISIBLE]


def take(folder: Path, names: Sequence[str]) -> str:
    """One of `names` that fewest have taken, until this process and the children that it forked have ended."""
    folder.mkdir(parents=True, exist_ok=True)
    return next(
        name for turn in count() for name in names if _lock(folder / f"{name.replace('/', '_')}.{turn}") is not None
    )


def gpus_of_driver() -> list[str]:
    """UUIDs of the GPUs that this machine or container has; none where there is no driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    try:
        found = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(found))
        return [uuid for index in range(found.value) if (uuid := _uuid(nvml, index))]
    finally:
        nvml.nvmlShutdown()


def _uuid(nvml: Any, index: int) -> str:
    """Empty for a GPU that does not answer."""
    device, uuid = ctypes.c_void_p(), ctypes.create_string_buffer(UUID_BYTES)
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) != 0:
        return ""
    return uuid.value.decode() if nvml.nvmlDeviceGetUUID(device, uuid, ctypes.c_uint(UUID_BYTES)) == 0 else ""


def _shown(given: str) -> list[str]:
    """As CUDA reads its variable: up to the first name that is none."""
    return list(takewhile(lambda name: name not in ("", "-1"), (name.strip() for name in given.split(","))))


def _lock(path: Path) -> int | None:
    """The descriptor that holds the lock, which is never closed; None where another holds it."""
    handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle
