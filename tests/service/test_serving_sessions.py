"""Which provider a session runs on, and which batch sizes it may be called with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_model import (
    SHAPE,
    clean_images,
    detector_onnx,
    student_onnx,
)

from service.registry.bundle import DETECTOR, STUDENT
from service.serving.batches import calls, largest_batch, padded, probe_images, trusted_sizes
from service.serving.errors import (
    CudaMissing,
    ModelFault,
)
from service.serving.sessions import (
    CPU,
    CUDA,
    TENSORRT,
    Facts,
    Network,
    Plan,
    Runtime,
    count_cuda_devices,
    plan_providers,
)

CPU_PLAN = Plan(((CPU, {}),), strict=False)


BOTH = ("CUDAExecutionProvider", "CPUExecutionProvider")


@pytest.mark.parametrize(
    ("offered", "devices", "required", "wanted"),
    [
        (BOTH, 1, False, [CUDA, CPU]),
        (BOTH, 2, True, [CUDA]),
        (BOTH, 0, False, [CPU]),  # a wheel with CUDA on a machine without: it must not even be asked for
        ((CPU,), 1, False, [CPU]),
        ((CPU,), 0, False, [CPU]),
    ],
)
def test_cuda_is_asked_for_only_where_wheel_and_driver_have_it(
    offered: tuple[str, ...], devices: int, required: bool, wanted: list[str]
) -> None:
    plan = plan_providers(Facts(offered, devices), require_cuda=required)
    assert [name for name, _ in plan.providers] == wanted
    assert plan.strict == required
    if plan.wants_cuda:
        options = plan.providers[0][1]
        assert (options["cudnn_conv_algo_search"], options["use_tf32"]) == ("HEURISTIC", "0")


def test_tensorrt_is_asked_for_where_it_is_wanted_and_there() -> None:
    facts = Facts((TENSORRT, *BOTH), 1)
    wanted = plan_providers(facts, require_cuda=False, tensorrt_wanted=True)
    assert [name for name, _ in wanted.providers] == [TENSORRT, CUDA, CPU]
    assert [name for name, _ in plan_providers(facts, require_cuda=False).providers] == [CUDA, CPU]
    assert plan_providers(Facts(BOTH, 1), require_cuda=True, tensorrt_wanted=True).providers[0][0] == CUDA


@pytest.mark.parametrize(("offered", "devices"), [(BOTH, 0), ((CPU,), 1)])
def test_required_cuda_that_is_missing_is_refused(offered: tuple[str, ...], devices: int) -> None:
    with pytest.raises(CudaMissing, match="WINNOW_REQUIRE_CUDA"):
        plan_providers(Facts(offered, devices), require_cuda=True)


def test_a_strict_session_does_not_fall_back_to_the_cpu() -> None:
    """A CPU-only plan marked strict stands in for CUDA that could not come up."""
    with pytest.raises((CudaMissing, ModelFault), match="CPU"):
        Runtime(Plan(((CPU, {}),), strict=True)).open(
            detector_onnx(), name=DETECTOR, inputs=["images"], outputs=["scores"]
        )


def test_idle_threads_do_not_spin() -> None:
    options = Runtime(CPU_PLAN).options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


@pytest.mark.skipif(count_cuda_devices() > 0, reason="this machine has CUDA")
def test_a_machine_without_cuda_serves_in_silence(tmp_path: Path) -> None:
    model = tmp_path / "student.onnx"
    model.write_bytes(student_onnx())
    program = (
        "import sys, pathlib; from service.serving.sessions import *;"
        "runtime = Runtime(plan_providers(look(), require_cuda=False));"
        "network = runtime.open(pathlib.Path(sys.argv[1]).read_bytes(), name='student.onnx',"
        " inputs=['images', 'masks'], outputs=['probabilities']);"
        "print(network.provider); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program, model], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == (CPU, "")


@pytest.mark.parametrize(
    ("model", "said"), [(b"no graph", "cannot|can open"), (b"", "can open"), (detector_onnx(), "inputs")]
)
def test_what_is_no_student_is_not_opened(model: bytes, said: str) -> None:
    with pytest.raises(ModelFault, match=said):
        Runtime(CPU_PLAN).open(model, name=STUDENT, inputs=["images", "masks"], outputs=["probabilities"])


def test_a_feed_that_does_not_fit_is_a_fault_of_the_model() -> None:
    network = Runtime(CPU_PLAN).open(detector_onnx(), name=DETECTOR, inputs=["images"], outputs=["scores"])
    assert isinstance(network, Network)
    with pytest.raises(ModelFault, match=r"detector\.onnx cannot be run"):
        network.run(["scores"], {"images": np.zeros((1, 9, 8, 3), np.uint8)})


# Batches


@given(st.integers(0, 300), st.sets(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), min_size=1))
def test_calls_cover_every_row_once_at_trusted_sizes(count: int, sizes: set[int]) -> None:
    falling = tuple(sorted(sizes, reverse=True))
    covered: list[int] = []
    for rows, size in calls(count, falling):
        assert size in sizes
        assert 0 < rows.stop - rows.start <= size
        if 1 in sizes:
            assert rows.stop - rows.start == size, "nothing needs padding"
        covered += range(rows.start, rows.stop)
    assert covered == list(range(count))


def of_each(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return images.reshape(len(images), -1).astype(np.float64)


def test_sizes_that_answer_otherwise_are_left_out() -> None:
    def judge_with_odd_sizes(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.nextafter(of_each(images), np.inf) if len(images) in (1, 8) else of_each(images)

    probe = probe_images(32, SHAPE)
    assert trusted_sizes(of_each, probe) == (32, 16, 8, 4, 2, 1)
    assert trusted_sizes(judge_with_odd_sizes, probe) == (32, 16, 4, 2)


def test_where_the_place_in_the_batch_matters_images_go_alone() -> None:
    def judge(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        answers = of_each(images)
        answers[-1] = np.nextafter(answers[-1], np.inf)
        return answers

    assert trusted_sizes(judge, probe_images(32, SHAPE)) == (1,)


@pytest.mark.parametrize(
    ("asked", "side", "wanted"), [(64, 32, 64), (64, 64, 32), (64, 128, 8), (64, 256, 2), (50, 32, 32), (1, 8, 1)]
)
def test_a_call_is_bounded_by_images_and_by_pixels(asked: int, side: int, wanted: int) -> None:
    assert largest_batch(asked, (side, side, 3)) == wanted


def test_padding_keeps_the_images() -> None:
    images = clean_images(3, seed=0)[0]
    assert padded(images, 3) is images
    np.testing.assert_array_equal(padded(images, 8)[:3], images)
    assert padded(images, 8).shape == (8, *SHAPE)
