"""The state of a fit as safetensors bytes: model, optimiser, where it stands, losses, generators, the best weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

FORMAT = "winnow-fit-2"


class CheckpointUnreadable(ValueError):
    """Bytes that are no checkpoint of ours."""


@dataclass(frozen=True)
class Within:
    """A place inside an epoch: steps made, the sum of their losses, samples; the generators as they are then."""

    step: int
    total: float
    samples: int
    generators: dict[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """How far a fit has come: epochs done and the losses of each; where it stands in the next; its best weights yet."""

    epoch: int = 0
    train_loss: tuple[float, ...] = ()
    validation_loss: tuple[float, ...] = ()
    within: Within | None = None
    best: dict[str, Tensor] = field(default_factory=dict)

    def after_epoch(self, trained: float, held_out: tuple[float, ...]) -> Progress:
        return replace(
            self,
            epoch=self.epoch + 1,
            train_loss=(*self.train_loss, trained),
            validation_loss=(*self.validation_loss, *held_out),
            within=None,
        )

    @property
    def best_epoch(self) -> int:
        """Place of the smallest validation loss, the first of several."""
        return self.validation_loss.index(min(self.validation_loss))


def pack(progress: Progress, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> bytes:
    """The state as safetensors bytes; `identity` tells which fit it belongs to."""
    tensors = {f"model/{key}": _plain(value) for key, value in model.state_dict().items()}
    tensors |= {f"best/{key}": _plain(value) for key, value in progress.best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = _plain(value)
    about = {
        "format": FORMAT,
        "identity": _digest(identity, model),
        "epoch": progress.epoch,
        "train_loss": progress.train_loss,
        "validation_loss": progress.validation_loss,
    }
    if progress.within is not None:
        within = progress.within
        about |= {"step": within.step, "total": within.total, "samples": within.samples}
        tensors |= {f"generator/{key}": value.clone() for key, value in within.generators.items()}
    return save(tensors, {"winnow": json.dumps(about)})


def unpack(data: bytes | None, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Load the state into model and optimiser; None, and nothing loaded, where there is none or it is another fit's.

    Raises CheckpointUnreadable where `data` is damaged.
    """
    if data is None:
        return None
    try:
        tensors, about = load(data), _about(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointUnreadable(f"damaged checkpoint: {error}") from error
    if about["format"] != FORMAT or about["identity"] != _digest(identity, model):
        return None
    model.load_state_dict(_under("model", tensors))
    _load_optimizer(optimizer, tensors)
    within = None
    if "step" in about:
        within = Within(about["step"], about["total"], about["samples"], _under("generator", tensors))
    losses = tuple(about["train_loss"]), tuple(about["validation_loss"])
    return Progress(int(about["epoch"]), *losses, within=within, best=_under("best", tensors))


def _under(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{kind}/"): value for key, value in tensors.items() if key.startswith(f"{kind}/")}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in _under("optimizer", tensors).items():
        index, _, field_name = key.partition("/")
        parameter = parameters[int(index)]
        # A moment lies in memory as its parameter does: other strides may round differently.
        like = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        optimizer.state[parameter][field_name] = like


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()


def _digest(identity: str, model: nn.Module) -> str:
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    return hashlib.sha256(json.dumps([identity, shapes]).encode()).hexdigest()


def _about(data: bytes) -> dict[str, Any]:
    """The metadata of safetensors bytes: eight bytes of header length (little endian), then JSON."""
    length = int.from_bytes(data[:8], "little")
    about: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["winnow"])
    return about
