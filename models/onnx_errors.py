"""What ONNX Runtime raises: classes that have nothing but Exception in common. Torch-free."""

from __future__ import annotations

from onnxruntime.capi import onnxruntime_pybind11_state as native

RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    native.EPFail,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NotImplemented,
    native.RuntimeException,
    ValueError,  # a feed that lacks an input
)


def first_line(error: Exception) -> str:
    """ONNX Runtime's messages run over many lines; the first says what happened."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
