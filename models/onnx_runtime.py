"""How ONNX Runtime is used here: on which providers, and what it raises, which has nothing but Exception in common.

Torch-free.
"""

from __future__ import annotations

from onnxruntime.capi import onnxruntime_pybind11_state as native

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",  # the default tries every algorithm at every new shape
    "use_tf32": "0",  # ten bits of mantissa would move scores away from those that were calibrated
    "arena_extend_strategy": "kSameAsRequested",
}
ERRORS_ONLY = 3
"""The severity from which on it writes to its log."""

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


def is_memory(error: Exception) -> bool:
    """Whether it says that memory was refused: its classes do not."""
    said = str(error).lower()
    return "failed to allocate" in said or "out of memory" in said
