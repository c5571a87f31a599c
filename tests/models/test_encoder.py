"""A pretrained encoder: what it takes, what it gives an image whatever is beside it, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, load_model_from_string, save_model

from models.encoder import BATCH, Encoder, UnfitEncoder
from models.onnx_runtime import is_memory
from models.watch import Stopped
from tests.encoders import line_encoder


def noise(count: int, side: int = 12, channels: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


@pytest.mark.parametrize("onnx", [line_encoder(), line_encoder(batch=7), line_encoder(sides=(20, 16), channels=3)])
def test_an_images_features_do_not_depend_on_the_images_beside_it(onnx: bytes) -> None:
    encoder, images = Encoder(onnx, name="lines"), noise(3 * BATCH + 5)
    together = encoder.encode(images)
    assert together.shape == (len(images), 4) and len(np.unique(together, axis=0)) == len(images)
    for few in (images[40:41], images[30:75]):
        first = 40 if len(few) == 1 else 30
        np.testing.assert_array_equal(encoder.encode(few), together[first : first + len(few)])
    assert encoder.encode(images[:0]).shape == (0, 4)


def test_it_sees_the_lines_that_are_there() -> None:
    images = np.zeros((3, 12, 12, 1), np.uint8)
    images[0, 6, :], images[1, :, 6] = 255, 255
    images[2, np.arange(12), np.arange(12)] = 255
    assert Encoder(line_encoder(), name="lines").encode(images).argmax(axis=1).tolist() == [0, 1, 2]


def test_grey_images_are_shown_in_three_channels_and_colours_in_one() -> None:
    grey, colours = noise(9), noise(9, channels=3)
    three, one = Encoder(line_encoder(channels=3), name="three"), Encoder(line_encoder(), name="one")
    np.testing.assert_allclose(three.encode(grey), one.encode(grey), rtol=1e-5)
    np.testing.assert_allclose(three.encode(colours), one.encode(colours), rtol=1e-4)


@pytest.mark.parametrize(
    ("onnx", "said"),
    [
        (b"\x08\x07 no graph", "no ONNX network"),
        (b"", "no ONNX network"),
        (line_encoder(kind=TensorProto.UINT8), "tensor\\(uint8\\)"),
        (line_encoder(channels=2), "float32 \\(n, c, h, w\\) with c of 1 or 3"),
    ],
)
def test_a_file_that_is_no_encoder_is_refused_in_words(onnx: bytes, said: str) -> None:
    with pytest.raises(UnfitEncoder, match=said):
        Encoder(onnx, name="lines")


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UnfitEncoder, match="not finite"):
        Encoder(line_encoder(divide_by=0.0), name="lines").encode(noise(3))


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    save_model(
        load_model_from_string(line_encoder()), tmp_path / "x.onnx", save_as_external_data=True, size_threshold=0
    )
    with pytest.raises(UnfitEncoder, match="external_data=False"):
        Encoder((tmp_path / "x.onnx").read_bytes(), name="lines")


def quantised_by_batch() -> bytes:
    """As dynamic quantisation leaves a network: the step is that of the largest value of the whole batch."""
    graph = load_model_from_string(line_encoder()).graph
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["images"], ["q", "step", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["x"]),
        *(node for node in graph.node if node.op_type != "Cast"),
    ]
    own = helper.make_graph(nodes, "lines", graph.input, graph.output, graph.initializer)
    made = helper.make_model(own, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def test_a_network_that_looks_at_a_batch_as_a_whole_is_refused() -> None:
    Encoder(line_encoder(), name="lines").check((12, 12, 1))
    with pytest.raises(UnfitEncoder, match="beside other images"):
        Encoder(quantised_by_batch(), name="lines").check((12, 12, 1))


def test_refused_memory_is_told_as_that() -> None:
    assert is_memory(RuntimeError("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 9"))
    assert is_memory(RuntimeError("CUDA failure 2: out of memory"))
    assert not is_memory(ValueError("Required inputs (['x']) are missing"))


def test_it_tells_how_far_it_is_and_stops_when_asked() -> None:
    class Halfway:
        told: list[int]

        def advance(self, done: int, total: int) -> None:
            assert total == 8 * BATCH
            self.told.append(done)
            if done >= total // 2:
                raise Stopped

    watch = Halfway()
    watch.told = []
    with pytest.raises(Stopped):
        Encoder(line_encoder(), name="lines").encode(noise(8 * BATCH), watch)
    assert watch.told == [BATCH * (place + 1) for place in range(4)]
