"""A fitted panel as arrays and JSON-able notes, and back: it then scores every image exactly as before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models.detectors.activation_clustering import ActivationClustering
from models.detectors.duplicates import DuplicateIndex
from models.detectors.encoder_loss import EncoderLoss
from models.detectors.label_agreement import LabelAgreement
from models.detectors.recurring_patch import RecurringPatch
from models.detectors.recurring_pattern import RecurringPattern
from models.detectors.spectral_signature import SpectralSignature
from models.device import pick_device
from models.images import Images
from models.panel.classifier import PanelClassifier
from models.panel.detectors import (
    Agreement,
    Copies,
    Divergence,
    Encode,
    Encoded,
    Fitted,
    LabelLoss,
    Pattern,
    PerFold,
    PoisonGain,
    Reconstruct,
    Recurrence,
    Signature,
    UncheckedLoss,
)
from models.panel.panel import Panel
from models.panel.pool import FOLDS, Labels
from models.panel.purification import CrossFitted, Purified
from models.panel.views import Float32s

Arrays = dict[str, NDArray[Any]]
Index = TypeVar(
    "Index",
    LabelAgreement,
    SpectralSignature,
    ActivationClustering,
    DuplicateIndex,
    RecurringPatch,
    RecurringPattern,
    EncoderLoss,
)

WITHOUT_STATE: dict[str, Callable[[], Fitted]] = {
    "label_loss": LabelLoss,
    "unchecked_loss": UncheckedLoss,
    "poison_gain": PoisonGain,
}


def pack_panel(panel: Panel) -> tuple[Arrays, dict[str, Any]]:
    """What `unpack_panel` takes. What only the fit needed (who was confirmed, in which round) is not in it."""
    arrays: Arrays = {}
    for kind, fitted in (("believing", panel.purified.believing), ("checked", panel.purified.checked)):
        for fold, network in enumerate(fitted.networks):
            state = network.state_dict()
            arrays |= {f"{kind}.{fold}.{key}": value.cpu().contiguous().numpy() for key, value in state.items()}
    for name, detector in zip(panel.names, panel.detectors, strict=True):
        arrays |= {f"{name}.{key}": value for key, value in _state(detector).items()}
    width = panel.purified.believing.networks[0].width
    return arrays, {"names": list(panel.names), "num_classes": panel.num_classes, "width": width}


def unpack_panel(
    arrays: Mapping[str, NDArray[Any]],
    notes: Mapping[str, Any],
    *,
    image_shape: tuple[int, int, int],
    reconstruct: Reconstruct,
    encode: Encode | None = None,
) -> Panel:
    """The panel that gave `arrays` and `notes`, on `pick_device()`. Raises KeyError or ValueError for anything else."""
    believing, checked = (
        CrossFitted(
            tuple(
                _network(_under(arrays, f"{kind}.{fold}"), notes, image_shape) for fold in range(_count(arrays, kind))
            )
        )
        for kind in ("believing", "checked")
    )
    purified = Purified(believing, checked, np.empty(0, np.bool_), ())

    def answers(images: Images, folds: Labels) -> Float32s:
        found: Float32s = checked.see(images, folds)[0]
        return found

    def detector(name: str) -> Fitted:
        if name == "reconstruction_divergence":
            return Divergence(reconstruct, answers)
        if name == "encoder_loss":
            return _encoded(_under(arrays, name), encode)
        return _detector(name, _under(arrays, name))

    detectors = tuple(map(detector, notes["names"]))
    return Panel(tuple(notes["names"]), purified, detectors, notes["num_classes"])


def _network(
    state: Mapping[str, NDArray[Any]], notes: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> PanelClassifier:
    network = PanelClassifier(image_shape=image_shape, num_classes=notes["num_classes"], width=notes["width"])
    try:
        network.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()})
    except RuntimeError as error:
        raise ValueError(f"no network of this version: {error}") from error
    network.to(device=pick_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval()


def _state(detector: Fitted) -> Arrays:
    if isinstance(detector, PerFold):
        parts = {f"{fold}": _state(part) for fold, part in enumerate(detector.parts)}
        return {f"{fold}.{key}": value for fold, part in parts.items() for key, value in part.items()}
    if isinstance(detector, Agreement):
        return _fields(detector.index)
    if isinstance(detector, Encoded):
        parts = {f"{fold}": _fields(part) for fold, part in enumerate(detector.fitted)}
        return {f"{fold}.{key}": value for fold, part in parts.items() for key, value in part.items()}
    if isinstance(detector, Signature | Recurrence | Pattern):
        return _fields(detector.fitted)
    if isinstance(detector, Copies):
        return {**_fields(detector.index), "indexed": np.array(detector.indexed)}
    return {}


def _detector(name: str, arrays: Mapping[str, NDArray[Any]]) -> Fitted:
    if name in WITHOUT_STATE:
        return WITHOUT_STATE[name]()
    if name == "duplicates":
        return Copies(_restored(DuplicateIndex, arrays), arrays["indexed"])
    of_fold = [_under(arrays, str(fold)) for fold in range(FOLDS)]
    if name == "label_agreement":
        return PerFold(tuple(Agreement(_restored(LabelAgreement, part)) for part in of_fold))
    if name == "spectral_signature":
        return PerFold(tuple(Signature(_restored(SpectralSignature, part)) for part in of_fold))
    if name == "activation_clustering":
        return PerFold(tuple(Signature(_restored(ActivationClustering, part)) for part in of_fold))
    if name == "recurring_patch":
        return PerFold(tuple(Recurrence(_restored(RecurringPatch, part)) for part in of_fold))
    if name == "recurring_pattern":
        return PerFold(tuple(Pattern(_restored(RecurringPattern, part)) for part in of_fold))
    raise ValueError(f"there is no detector {name!r}")


def _encoded(arrays: Mapping[str, NDArray[Any]], encode: Encode | None) -> Fitted:
    if encode is None:
        raise ValueError("encoder_loss needs an encoder")
    return Encoded(encode, tuple(_restored(EncoderLoss, _under(arrays, str(fold))) for fold in range(FOLDS)))


def _fields(index: Any) -> Arrays:
    return {field.name: np.array(getattr(index, field.name), order="C") for field in fields(index)}


def _restored(kind: type[Index], arrays: Mapping[str, NDArray[Any]]) -> Index:
    """Numbers were kept as arrays without dimensions."""
    values: dict[str, Any] = {field.name: arrays[field.name] for field in fields(kind)}
    return kind(**{name: value if value.ndim else value.item() for name, value in values.items()})


def _under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    return {key.removeprefix(f"{prefix}."): value for key, value in arrays.items() if key.startswith(f"{prefix}.")}


def _count(arrays: Mapping[str, NDArray[Any]], kind: str) -> int:
    return len({key.split(".")[1] for key in arrays if key.startswith(f"{kind}.")})
