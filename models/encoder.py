"""A network that somebody trained on many other images, as ONNX: what it sees in ours.

It is given, not fitted here, so no poison of a candidate set has taught it anything.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import uses_external_data
from torch import Tensor

from models.cores import Cores
from models.device import pick_device
from models.images import Images, check_images, to_float
from models.onnx_runtime import CPU, CUDA, CUDA_OPTIONS, ERRORS_ONLY, RUNTIME_ERRORS, first_line, is_memory
from models.watch import Silent, Watch

BATCH = 32
MOST_BATCHES = 4
"""That cores of a CPU compute beside each other; each takes memory of its own."""
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

    Calls are of one size: a network that looks at each image by itself gives it the same features whatever the images
    beside it. `check` tells whether it is one.
    """

    def __init__(self, model: bytes, *, name: str) -> None:
        """model: ONNX, with its weights inside. Raises UnfitEncoder."""
        self.name = name
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._session = _session(model, name)
        self.provider: str = self._session.get_providers()[0]
        self._input = self._session.get_inputs()[0].name
        self._cores = 1 if self.provider == CUDA else min(MOST_BATCHES, torch.get_num_threads())
        self.shape = _shape(self._session, name)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises UnfitEncoder unless it looks at images (h, w, c), of one colour too, and at each by itself."""
        rng = np.random.default_rng(0)
        plain = np.stack([np.full(image_shape, level, np.uint8) for level in (0, 128, 255)])
        given = np.concatenate([plain, rng.integers(0, 256, (1, *image_shape), dtype=np.uint8)])
        alone = np.concatenate([self.encode(given[place : place + 1]) for place in range(len(given))])
        beside = rng.integers(0, 256, (self._batch, *image_shape), dtype=np.uint8)
        for place, image in enumerate(given):
            beside[0] = image
            if not np.array_equal(self.encode(beside)[0], alone[place]):
                raise UnfitEncoder(
                    f"Encoder {self.name} gives an image other features beside other images, as a network does that is "
                    "quantised dynamically or normalises over a batch."
                )

    def encode(self, images: Images, watch: Watch | None = None) -> Features:
        """(n, d), finite. images: uint8 (n, h, w, c), which are brought to the size that the network wants.

        Raises UnfitEncoder where the network cannot look at such images, MemoryError, Stopped.
        """
        check_images(images)
        found = np.empty((len(images), self.shape.dimension), np.float32)
        told = watch or Silent()
        starts = iter(range(0, len(images), self._batch))
        with Cores(self._cores) as cores:
            for start, features in cores.imap(lambda start: (start, self._call(images, start)), starts):
                stop = start + len(features)
                found[start:stop] = features
                told.advance(stop, len(images))
        odd = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(odd):
            raise UnfitEncoder(
                f"Encoder {self.name} gives numbers that are not finite for {len(odd)} of {len(images)} images, the "
                f"first of them number {odd[0]}."
            )
        return found

    @property
    def _batch(self) -> int:
        return self.shape.batch or BATCH

    def _call(self, images: Images, start: int) -> Features:
        """The features of one batch; what is missing of it is filled up with black."""
        own = images[start : start + self._batch]
        x = np.zeros((self._batch, *images.shape[1:]), np.uint8)
        x[: len(own)] = own
        try:
            (given,) = self._session.run(None, {self._input: self._seen(x)})
        except RUNTIME_ERRORS as error:
            if is_memory(error):
                raise MemoryError(f"Encoder {self.name}: {first_line(error)}") from error
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


def _session(model: bytes, name: str) -> onnxruntime.InferenceSession:
    """On CUDA where this process computes there and ONNX Runtime can, else on the CPU: `get_providers` says which."""
    _check_whole(model, name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # batches run beside each other instead
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = [CPU]
    if pick_device().type == "cuda" and CUDA in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()
        providers.insert(0, (CUDA, CUDA_OPTIONS))
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except RUNTIME_ERRORS as error:
        if is_memory(error):
            raise MemoryError(f"Encoder {name}: {first_line(error)}") from error
        raise UnfitEncoder(f"Encoder {name} is no ONNX network that can be opened ({first_line(error)}).") from error


def _check_whole(model: bytes, name: str) -> None:
    """Weights in other files would be read from wherever this process stands, and no digest would know them."""
    try:
        graph = onnx.load_model_from_string(model).graph
    except DecodeError as error:
        raise UnfitEncoder(f"Encoder {name} is no ONNX network that can be read ({first_line(error)}).") from error
    if any(uses_external_data(weights) for weights in graph.initializer):
        raise UnfitEncoder(f"Encoder {name} has weights in other files: export it again with external_data=False.")


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
    batch, _, *sides = (size if isinstance(size, int) else None for size in taken.shape)
    return Shape(batch, taken.shape[1], (sides[0], sides[1]), given.shape[1])
