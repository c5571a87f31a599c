"""Encoders small enough to write down: what lines there are in an image, as ONNX."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 5
Size = int | str


def lines() -> NDArray[np.float32]:
    """(4, 5, 5): a line across, down and aslant both ways, each with a mean of nothing."""
    found = np.zeros((4, SIDE, SIDE), np.float32)
    found[0, SIDE // 2] = found[1, :, SIDE // 2] = 1
    found[2] = np.eye(SIDE)
    found[3] = np.eye(SIDE)[::-1]
    return found - found.mean(axis=(1, 2), keepdims=True)


def line_encoder(
    *,
    batch: Size = "n",
    channels: int = 1,
    sides: tuple[Size, Size] = ("h", "w"),
    kind: int = TensorProto.FLOAT,
    divide_by: float = 1.0,
) -> bytes:
    """Images (n, c, h, w) to the strongest line of each of four directions, (n, 4)."""
    kernels = np.repeat(lines()[:, None], channels, axis=1) / channels
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "kernels"], ["found"], pads=[2] * 4),
        helper.make_node("GlobalMaxPool", ["found"], ["strongest"]),
        helper.make_node("Flatten", ["strongest"], ["flat"]),
        helper.make_node("Div", ["flat", "divisor"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "lines",
        [helper.make_tensor_value_info("images", kind, [batch, channels, *sides])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, len(kernels)])],
        [
            numpy_helper.from_array(kernels.astype(np.float32), "kernels"),
            numpy_helper.from_array(np.float32(divide_by), "divisor"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    found: bytes = model.SerializeToString()
    return found
