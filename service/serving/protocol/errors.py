"""What can be wrong with a request of the Open Inference Protocol."""

from __future__ import annotations

from service.errors import InvalidInput, UnsupportedMedia


class BadInferenceRequest(InvalidInput):
    """The JSON part is not what the protocol says; the code tells more where it can."""

    code = "bad_inference_request"


class BadTensor(InvalidInput):
    """A tensor whose name, type, shape or bytes do not fit."""

    code = "bad_tensor"


class UnknownOutput(InvalidInput):
    """An output was asked for that no model here gives."""

    code = "unknown_output"


class UnknownEncoding(UnsupportedMedia):
    """The body is compressed in a way that is not read."""

    code = "unknown_encoding"
