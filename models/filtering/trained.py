"""A fitted filter: an autoencoder with the score of an image, to run, to keep and to export.

It tells whether an image was perturbed, not whether anybody meant harm: benign noise as strong is flagged too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.autoencoders.bottleneck import BottleneckAutoencoder
from models.autoencoders.convolutional import ConvolutionalAutoencoder
from models.autoencoders.residual import ResidualDenoiser
from models.detectors.reconstruction_error import reconstruction_error
from models.detectors.residual_energy import residual_energy
from models.device import device_of, exact_convolutions, pick_device
from models.images import Images, check_images, chunks, to_float

PIXELS_A_BATCH = 2**17

Network = ResidualDenoiser | BottleneckAutoencoder | ConvolutionalAutoencoder

KINDS: dict[type[nn.Module], str] = {
    ResidualDenoiser: "residual",
    BottleneckAutoencoder: "bottleneck",
    ConvolutionalAutoencoder: "convolutional",
}


class OtherShape(ValueError):
    """Images of another shape than those that the filter was fitted on."""


class UnknownFilter(ValueError):
    """Meta data of a filter that this version cannot build."""


def build(kind: str, image_shape: tuple[int, int, int], layers: dict[str, Any]) -> Network:
    """An autoencoder with fresh weights for images of (h, w, c). Raises UnknownFilter."""
    height, width, channels = image_shape
    if kind == "residual":
        return ResidualDenoiser(channels=channels, **layers)
    if kind == "bottleneck":
        return BottleneckAutoencoder(image_shape=(channels, height, width), **layers)
    if kind == "convolutional":
        return ConvolutionalAutoencoder(image_shape=(channels, height, width), **layers)
    raise UnknownFilter(f"no filter is of kind {kind!r}")


class FilterModule(nn.Module):
    """images uint8 (n, h, w, c) to (scores float32 (n,), reconstructions uint8 (n, h, w, c))."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_nhwc: Tensor) -> tuple[Tensor, Tensor]:
        x = to_float(images_nhwc, images_nhwc.device)
        if isinstance(self.network, ResidualDenoiser):
            perturbation = self.network(x)
            scores, x_hat = residual_energy(perturbation), self.network.remove(x, perturbation)
        else:
            x_hat = self.network(x)
            scores = reconstruction_error(x, x_hat)
        return scores, (x_hat * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@dataclass(frozen=True, eq=False)
class Filter:
    """A fitted autoencoder with its score. image_shape: (h, w, c) of what it was fitted on, and takes."""

    network: Network
    image_shape: tuple[int, int, int]
    layers: dict[str, Any]  # what `build` makes the network from, JSON-able

    @property
    def kind(self) -> str:
        return KINDS[type(self.network)]

    @property
    def score_name(self) -> str:
        return "residual_energy" if self.kind == "residual" else "reconstruction_error"

    def score(self, images: Images) -> npt.NDArray[np.float32]:
        """How suspicious each image is, (n,); the same whatever the images beside it. Raises NotImages, OtherShape."""
        return self._run(images)[0]

    def reconstruct(self, images: Images) -> Images:
        """The images as the autoencoder gives them back, rounded to 8 bits. Raises NotImages, OtherShape."""
        return self._run(images)[1]

    def _run(self, images: Images) -> tuple[npt.NDArray[np.float32], Images]:
        """Batches of one fixed size, filled up with black images: kernels are chosen by the size of a batch."""
        check_images(images)
        if images.shape[1:] != self.image_shape:
            raise OtherShape(f"the filter takes images of shape {self.image_shape}, not {images.shape[1:]}")
        size = max(1, min(128, PIXELS_A_BATCH // (self.image_shape[0] * self.image_shape[1])))
        scores, rebuilt = np.empty(len(images), np.float32), np.empty_like(images)
        module, device = self.as_module(), device_of(self.network)
        batch = np.zeros((size, *self.image_shape), np.uint8)
        with torch.inference_mode(), exact_convolutions():
            for rows in chunks(len(images), size):
                count = rows.stop - rows.start
                batch[:count], batch[count:] = images[rows], 0
                got = module(torch.from_numpy(batch).to(device))
                scores[rows], rebuilt[rows] = (part[:count].cpu().numpy() for part in got)
        return scores, rebuilt

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The weights, by name; together with `meta` all that `load` wants."""
        return {name: value.cpu().contiguous().numpy() for name, value in self.network.state_dict().items()}

    def meta(self) -> dict[str, Any]:
        """What the weights belong to, JSON-able."""
        return {"kind": self.kind, "image_shape": list(self.image_shape), "layers": self.layers}

    @classmethod
    def load(cls, state: dict[str, npt.NDArray[Any]], meta: dict[str, Any]) -> Filter:
        """The filter that gave `state` and `meta`, on `pick_device()`. Raises UnknownFilter."""
        try:
            height, width, channels = meta["image_shape"]
            network = build(meta["kind"], (height, width, channels), meta["layers"])
            network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UnknownFilter(f"these weights and meta data make no filter: {error}") from error
        network.to(device=pick_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(network.eval(), (height, width, channels), meta["layers"])

    def as_module(self) -> nn.Module:
        """The whole of it as one module on the network's device, for export: see FilterModule."""
        return FilterModule(self.network).eval()
