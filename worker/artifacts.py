"""The filter of a sanitise job and the networks of a distill job, as they are kept: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from safetensors.torch import load as load_torch
from safetensors.torch import save as save_torch
from torch import nn

from models.classifiers import Classifier, restore_classifier
from models.filtering import Filter
from models.specs import ClassifierSpec
from service.storage import Storage


@dataclass(frozen=True, eq=False)
class FilterArtifacts:
    """The filter with what calibrated it: rows of the reference that no fit has seen, and their scores.

    calibration: (m, t), of every detector of the job, the filter's own first.
    """

    filter: Filter
    calibration: NDArray[np.float32]
    reference: str
    held: NDArray[np.int64]

    @property
    def calibration_scores(self) -> NDArray[np.float32]:
        """Of the filter alone, (m,)."""
        return self.calibration[:, 0]


def save_filter(storage: Storage, prefix: str, artifacts: FilterArtifacts) -> None:
    tensors = {
        **{f"filter.{name}": np.ascontiguousarray(value) for name, value in artifacts.filter.state().items()},
        "calibration.scores": np.ascontiguousarray(artifacts.calibration),
        "calibration.rows": artifacts.held,
    }
    storage.write(f"{prefix}/filter.safetensors", save_tensors(tensors))
    meta = {"filter": artifacts.filter.meta(), "reference": artifacts.reference}
    storage.write(f"{prefix}/filter.json", json.dumps(meta).encode())


def load_filter(storage: Storage, prefix: str) -> FilterArtifacts:
    tensors = load_tensors(storage.read(f"{prefix}/filter.safetensors"))
    meta = json.loads(storage.read(f"{prefix}/filter.json"))
    state = {name.removeprefix("filter."): value for name, value in tensors.items() if name.startswith("filter.")}
    return FilterArtifacts(
        Filter.load(state, meta["filter"]),
        _table(tensors["calibration.scores"]),
        meta["reference"],
        tensors["calibration.rows"],
    )


def _table(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """(m, t); a job of before there was a panel kept the filter's scores only, (m,)."""
    return scores if scores.ndim == 2 else scores[:, None]


def save_network(network: nn.Module) -> bytes:
    """Its weights as safetensors."""
    return save_torch({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()})


def load_network(
    data: bytes, spec: ClassifierSpec, *, num_classes: int, image_shape: tuple[int, int, int]
) -> Classifier:
    """The network whose weights `save_network` gave, in eval mode."""
    return restore_classifier(spec, load_torch(data), num_classes=num_classes, image_shape=image_shape)
