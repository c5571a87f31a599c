"""A request of the protocol, taken apart: JSON alone, or JSON followed by the tensors' bytes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields
from typing import Any

import orjson

from service.serving.answers import DEFAULTS, Options
from service.serving.arrays import MAX_JSON_BYTES
from service.serving.batches import Images
from service.serving.errors import BodyTooLarge
from service.serving.protocol.errors import BadInferenceRequest, UnknownEncoding
from service.serving.protocol.outputs import EVERY_DEFAULT, Wanted, wanted_outputs
from service.serving.protocol.tensors import read_images

FIELDS = frozenset({"id", "inputs", "outputs", "parameters"})
BINARY_OUTPUT = "binary_data_output"
TIMEOUT = "timeout"  # in microseconds, as Triton has it
KINDS: dict[str, tuple[type, ...]] = {"alpha": (int, float), "reform": (bool,), "mc_passes": (int,), "seed": (int,)}
CHOICES = frozenset(field.name for field in fields(Options))
LONGEST_ID = 256
WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


@dataclass(frozen=True, slots=True, eq=False)
class InferenceRequest:
    """What is asked for."""

    id: str | None
    images: Images
    options: Options
    outputs: tuple[Wanted, ...]
    timeout_s: float | None


def unpacked(body: bytes, encoding: str, *, most: int) -> bytes:
    """The body as it was before it was compressed. Raises UnknownEncoding, BodyTooLarge or BadInferenceRequest."""
    if encoding in ("", "identity"):
        return body
    if encoding not in WINDOW_BITS:
        raise UnknownEncoding(f"The body is encoded as {encoding[:100]!r}. Send it as it is, or as gzip or deflate.")
    unpacker = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        data = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise BadInferenceRequest(f"The body is no {encoding}: {error}.", code="damaged_body") from error
    if len(data) > most:
        raise BodyTooLarge(f"The body unfolds to more than the {most} bytes accepted. Send fewer images at once.")
    if not unpacker.eof or unpacker.unused_data:
        raise BadInferenceRequest(f"The body is no whole {encoding} stream.", code="damaged_body")
    return data


def read_request(body: bytes, header_length: str | None, *, most_images: int) -> InferenceRequest:
    """header_length: of the JSON, from `Inference-Header-Content-Length`; None where JSON is all there is.

    Raises BadInferenceRequest, BadTensor, UnknownOutput or BodyTooLarge.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    if length > MAX_JSON_BYTES:
        raise BodyTooLarge(
            f"The JSON is {length} bytes; at most {MAX_JSON_BYTES} are accepted. Send the tensor as binary data."
        )
    whole = memoryview(body)
    document = _document(whole[:length])
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise BadInferenceRequest("A request has exactly one input, 'images'.")
    identity = document.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > LONGEST_ID):
        raise BadInferenceRequest(f"id must be a text of at most {LONGEST_ID} characters.")
    parameters = document.get("parameters")
    options, binary, timeout_s = (DEFAULTS, False, None) if parameters is None else _parameters(parameters)
    asked = document.get("outputs")
    outputs = EVERY_DEFAULT[binary] if not asked else wanted_outputs(asked, binary=binary)
    images = read_images(inputs[0], whole[length:], most=most_images)
    return InferenceRequest(identity, images, options, outputs, timeout_s)


def _length(text: str, size: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) <= size):
        raise BadInferenceRequest(
            f"Inference-Header-Content-Length is {text[:100]!r}, and the body has {size} bytes.",
            code="bad_header_length",
        )
    return int(text)


def _document(text: memoryview) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadInferenceRequest(f"The request is no JSON: {error}.", code="malformed_json") from error
    if not isinstance(document, dict):
        raise BadInferenceRequest("The request must be a JSON object with inputs.")
    if unknown := sorted(document.keys() - FIELDS):
        raise BadInferenceRequest(
            f"The request has a field {unknown[0][:100]!r}; it may have {', '.join(sorted(FIELDS))}.",
            code="unknown_field",
        )
    return document


def _parameters(given: Any) -> tuple[Options, bool, float | None]:
    """Options, whether outputs are binary where they do not say, and the time that there is."""
    if not isinstance(given, dict):
        raise BadInferenceRequest("parameters must be an object.")
    chosen: dict[str, Any] = {}
    binary, timeout_s = False, None
    for name, value in given.items():
        if name == BINARY_OUTPUT and isinstance(value, bool):
            binary = value
        elif name == TIMEOUT and type(value) is int and value > 0:
            timeout_s = value / 1e6
        elif name in CHOICES and type(value) in KINDS[name]:
            chosen[name] = value
        else:
            raise _no_such(name, value)
    return Options(**chosen) if chosen else DEFAULTS, binary, timeout_s


def _no_such(name: str, value: Any) -> BadInferenceRequest:
    if name in CHOICES or name in (BINARY_OUTPUT, TIMEOUT):
        kind = {BINARY_OUTPUT: "true or false", TIMEOUT: "a number of microseconds", "alpha": "a number"}.get(name)
        wanted = kind or ("true or false" if KINDS[name] == (bool,) else "a whole number")
        return BadInferenceRequest(f"The parameter {name} must be {wanted}, not {str(value)[:100]!r}.")
    known = ", ".join(sorted({*CHOICES, BINARY_OUTPUT, TIMEOUT}))
    return BadInferenceRequest(
        f"There is no parameter {str(name)[:100]!r}; a request may have {known}.", code="unknown_parameter"
    )
