"""The outputs that the protocol may ask for, and how each is written: as JSON, or as raw bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.serving.answers import Answers
from service.serving.protocol.errors import BadInferenceRequest, UnknownOutput

JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY
Values = NDArray[Any] | list[str]


@dataclass(frozen=True, slots=True)
class Output:
    """One output. `per_class`: (n, classes), else (n,)."""

    name: str
    datatype: str
    values: Callable[[Answers], Values]
    per_class: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output as a request asked for it. classification: only the so many likeliest classes, as texts."""

    output: Output
    binary: bool
    classification: int = 0


def _labels(answers: Answers) -> list[str]:
    rows = zip(answers.index.tolist(), answers.abstained.tolist(), strict=True)
    return ["" if abstained else answers.classes[index] for index, abstained in rows]


OUTPUTS = {
    output.name: output
    for output in (
        Output("probabilities", "FP32", lambda answers: answers.probabilities, per_class=True),
        Output("label", "BYTES", _labels),  # empty where abstained
        Output("abstained", "BOOL", lambda answers: answers.abstained),
        Output("p_value", "FP64", lambda answers: answers.p_value),
        Output("reason", "BYTES", lambda answers: [reason or "" for reason in answers.reason]),
        Output("index", "INT64", lambda answers: answers.index),  # given even where abstained
        Output("entropy", "FP64", lambda answers: answers.entropy),
        Output("mutual_information", "FP64", lambda answers: answers.mutual_information),
        Output("kl", "FP64", lambda answers: answers.kl),
    )
}
DEFAULT = ("probabilities", "label", "abstained", "p_value")
EVERY_DEFAULT = {binary: tuple(Wanted(OUTPUTS[name], binary) for name in DEFAULT) for binary in (False, True)}


def wanted_outputs(asked: Any, *, binary: bool) -> tuple[Wanted, ...]:
    """binary: how outputs are written that do not say. Raises UnknownOutput or BadInferenceRequest."""
    if not isinstance(asked, list):
        raise BadInferenceRequest("outputs must be a list.")
    found = tuple(_wanted(each, binary) for each in asked)
    if len({each.output.name for each in found}) < len(found):
        raise BadInferenceRequest("An output is asked for twice.")
    return found


def answer(answers: Answers, wanted: Sequence[Wanted], identity: str | None) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where bytes follow it."""
    name, _, version = answers.model.rpartition("@")
    buffers: list[bytes] = []
    document: dict[str, Any] = {"model_name": name, "model_version": version}
    if identity is not None:
        document["id"] = identity
    document["parameters"] = {"alpha": answers.alpha, "bundle": answers.bundle}
    document["outputs"] = [_written(answers, each, buffers) for each in wanted]
    header = orjson.dumps(document, option=JSON_OPTIONS)
    return (b"".join((header, *buffers)), len(header)) if buffers else (header, None)


def _wanted(asked: Any, binary: bool) -> Wanted:
    name = asked.get("name") if isinstance(asked, dict) else None
    if not isinstance(name, str) or name not in OUTPUTS:
        raise UnknownOutput(f"There is no output {str(name)[:100]!r}; there are {', '.join(OUTPUTS)}.")
    parameters = asked.get("parameters") or {}
    if not isinstance(parameters, dict) or (unknown := parameters.keys() - {"binary_data", "classification"}):
        given = sorted(unknown)[0] if isinstance(parameters, dict) else parameters
        raise BadInferenceRequest(
            f"The output {name} has a parameter {str(given)[:100]!r}; it may have binary_data and classification.",
            code="unknown_parameter",
        )
    as_bytes, top = parameters.get("binary_data", binary), parameters.get("classification", 0)
    if not isinstance(as_bytes, bool) or type(top) is not int or top < 0:
        raise BadInferenceRequest(
            f"binary_data of {name} must be true or false, and classification a number of classes."
        )
    if top and not OUTPUTS[name].per_class:
        raise BadInferenceRequest(f"{name} has no classes; ask for the classification of probabilities.")
    return Wanted(OUTPUTS[name], as_bytes, top)


def _written(answers: Answers, wanted: Wanted, buffers: list[bytes]) -> dict[str, Any]:
    output = wanted.output
    datatype, values = output.datatype, output.values(answers)
    shape: list[int] = [len(answers), len(answers.classes)] if output.per_class else [len(answers)]
    if wanted.classification:
        datatype, values = "BYTES", _classified(answers, wanted.classification)
        shape = [len(answers), len(values) // len(answers)]
    told: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": shape}
    if wanted.binary:
        buffer = _text_bytes(values) if isinstance(values, list) else _raw(values)
        buffers.append(buffer)
        told["parameters"] = {"binary_data_size": len(buffer)}
    else:
        told["data"] = values if isinstance(values, list) else np.ascontiguousarray(values.ravel())
    return told


def _raw(values: NDArray[Any]) -> bytes:
    """Row by row, little-endian; a BOOL is one byte."""
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _text_bytes(values: list[str]) -> bytes:
    """Each text after its length in four bytes, little-endian."""
    encoded = [value.encode() for value in values]
    return b"".join(part for text in encoded for part in (struct.pack("<I", len(text)), text))


def _classified(answers: Answers, top: int) -> list[str]:
    """`value:index:label` of the likeliest classes of each image, the likeliest first, as Triton writes them."""
    order = np.argsort(-answers.probabilities, axis=1, kind="stable")[:, :top]
    return [
        f"{answers.probabilities[row, index]:f}:{index}:{answers.classes[index]}"
        for row, indices in enumerate(order.tolist())
        for index in indices
    ]
