"""A network that somebody trained on many other images, as ONNX: what it sees in ours.

It is given, not fitted here, so no poison of a candidate set has taught it anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

from models.cores import Cores
from models.device import pick_device
from models.images import Images, check_images, to_float
from models.onnx_errors import RUNTIME_ERRORS, first_line
from models.watch import Silent, Watch

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
BATCH = 32
ERRORS_ONLY = 3
COLOURS = 3

Features = npt.NDArray[np.float32]


class UnfitEncoder(ValueError):
    """A file that is no ONNX network from images to a vector for each."""


@dataclass(frozen=True)
class Shape:
    """What the graph takes and gives. A side or a batch of None is left open: images keep their size."""

    batch: int | None
    channels: int
    sides: tuple[int | None, int | None]
    dimension: int


class Encoder:
    """Takes float32 (n, c, h, w) in [0, 1], c in {1, 3}, and gives float32 (n, d); its own normalisation is within.

    The same file gives an image the same features whatever the images beside it: calls are of one size.
    """

    def __init__(self, onnx: bytes, *, name: str) -> None:
        """Raises UnfitEncoder."""
        self.name = name
        self.sha256 = hashlib.sha256(onnx).hexdigest()
        on_cuda = pick_device().type == "cuda" and CUDA in onnxruntime.get_available_providers()
        self._session = _session(onnx, name, on_cuda=on_cuda)
        self._input = self._session.get_inputs()[0].name
        self._cores = 1 if on_cuda else torch.get_num_threads()
        self.shape = _shape(self._session, name)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The file's stem is the name. Raises OSError, UnfitEncoder."""
        return cls(path.read_bytes(), name=path.stem)

    def encode(self, images: Images, watch: Watch | None = None) -> Features:
        """(n, d), finite. images: uint8 (n, h, w, c), which are brought to the size that the network wants.

        Raises UnfitEncoder where the network cannot look at such images, Stopped.
        """
        check_images(images)
        found = np.empty((len(images), self.shape.dimension), np.float32)
        done, told = 0, watch or Silent()
        with Cores(self._cores) as cores:
            for start, features in cores.imap(lambda start: (start, self._call(images, start)), self._starts(images)):
                stop = start + len(features)
                found[start:stop] = features
                done = stop
                told.advance(done, len(images))
        if not np.isfinite(found).all():
            raise UnfitEncoder(f"Encoder {self.name} gives numbers that are not finite for some of these images.")
        return found

    @property
    def _batch(self) -> int:
        return self.shape.batch or BATCH

    def _starts(self, images: Images) -> Iterator[int]:
        return iter(range(0, len(images), self._batch))

    def _call(self, images: Images, start: int) -> Features:
        """The features of one batch; what is missing of it is filled up with black."""
        own = images[start : start + self._batch]
        x = np.zeros((self._batch, *images.shape[1:]), np.uint8)
        x[: len(own)] = own
        try:
            (given,) = self._session.run(None, {self._input: self._seen(x)})
        except RUNTIME_ERRORS as error:
            raise UnfitEncoder(
                f"Encoder {self.name} cannot look at images of {'×'.join(map(str, images.shape[1:]))} "
                f"({first_line(error)})."
            ) from error
        if given.shape != (self._batch, self.shape.dimension):
            raise UnfitEncoder(f"Encoder {self.name} gave {given.shape} for a batch of {self._batch} images.")
        return np.asarray(given[: len(own)], np.float32)

    def _seen(self, images: Images) -> npt.NDArray[np.float32]:
        x = _of_channels(to_float(images), self.shape.channels)
        height, width = (wanted or own for wanted, own in zip(self.shape.sides, x.shape[2:], strict=True))
        if (height, width) != tuple(x.shape[2:]):
            x = F.interpolate(x, (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return x.contiguous().numpy()


def _of_channels(x: Tensor, channels: int) -> Tensor:
    if x.shape[1] == channels:
        return x
    return x.expand(-1, COLOURS, -1, -1) if channels == COLOURS else x.mean(dim=1, keepdim=True)


def _session(onnx: bytes, name: str, *, on_cuda: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # batches run beside each other instead
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if on_cuda and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    providers: list[Any] = [(CUDA, {"use_tf32": "0"}), CPU] if on_cuda else [CPU]
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=providers)
    except RUNTIME_ERRORS as error:
        raise UnfitEncoder(f"Encoder {name} is no ONNX network that can be opened ({first_line(error)}).") from error


def _shape(session: onnxruntime.InferenceSession, name: str) -> Shape:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    wanted = "one input, float32 (n, c, h, w) with c of 1 or 3, and one output, float32 (n, d)"
    if len(inputs) != 1 or len(outputs) != 1:
        raise UnfitEncoder(
            f"Encoder {name} has {len(inputs)} inputs and {len(outputs)} outputs; it must have {wanted}."
        )
    (taken,), (given,) = inputs, outputs
    fits = (taken.type, given.type) == ("tensor(float)",) * 2 and (len(taken.shape), len(given.shape)) == (4, 2)
    if not fits or taken.shape[1] not in (1, COLOURS) or not isinstance(given.shape[1], int):
        raise UnfitEncoder(
            f"Encoder {name} takes {taken.type} {taken.shape} and gives {given.type} {given.shape}; it must have "
            f"{wanted}."
        )
    batch, channels, *sides = (size if isinstance(size, int) else None for size in taken.shape)
    return Shape(batch, channels or COLOURS, (sides[0], sides[1]), given.shape[1])
