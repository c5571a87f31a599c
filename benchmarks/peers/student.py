"""The graph as every peer runs it: in the session that the benchmark measures bare, with the same masks.

Needs numpy and ONNX Runtime only: it is imported in each peer's own environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving_session import open_session

TOLD = "WINNOW_BENCH_PEER"
"""The variable of the environment that tells a peer what it is to do, as JSON."""


@dataclass(frozen=True)
class Told:
    """folder: holds served.onnx and masks.npy, and may be written to. threads: of one call. batch: images, at most."""

    folder: str
    port: int
    workers: int
    calls: int  # at once, in each worker
    threads: int
    batch: int
    wait_ms: int

    @classmethod
    def here(cls) -> Told:
        return cls(**json.loads(os.environ[TOLD]))


class Student:
    def __init__(self, told: Told) -> None:
        folder = Path(told.folder)
        self._masks = np.load(folder / "masks.npy")
        self._session = open_session((folder / "served.onnx").read_bytes(), threads=told.threads)
        self._shape = self._session.get_inputs()[0].shape[1:]

    def probabilities(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Of n images as their pixels: (n, classes)."""
        pixels = np.frombuffer(b"".join(images), np.uint8).reshape(-1, *self._shape)
        found: NDArray[np.float32]
        (found,) = self._session.run(["mean_probabilities"], {"images": pixels, "masks": self._masks})
        return found
