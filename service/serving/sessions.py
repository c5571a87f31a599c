"""ONNX Runtime sessions: which provider they run on, how many threads they take, and what their failures are called."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from models.onnx_runtime import CPU, CUDA, CUDA_OPTIONS, ERRORS_ONLY, RUNTIME_ERRORS, first_line
from service.serving.errors import CudaMissing, ModelFault

TENSORRT = "TensorrtExecutionProvider"


@dataclass(frozen=True)
class Facts:
    """What this machine and this wheel of ONNX Runtime have."""

    offered: tuple[str, ...]  # providers compiled into the wheel, whether or not they can run here
    cuda_devices: int  # as the driver counts them


@dataclass(frozen=True)
class Plan:
    """Which providers to ask for, best first. Strict: no node of a graph may fall back to the CPU."""

    providers: tuple[tuple[str, dict[str, str]], ...]
    strict: bool

    @property
    def wants_cuda(self) -> bool:
        return self.providers[0][0] != CPU


def look() -> Facts:
    """The facts of the present machine."""
    return Facts(tuple(ort.get_available_providers()), count_cuda_devices())


def plan_providers(facts: Facts, *, require_cuda: bool, tensorrt_wanted: bool = False) -> Plan:
    """CUDA where wheel and driver both have it, else the CPU; before it TensorRT, where wanted and in the wheel.

    What a session really came up on is another matter, see `Network.provider`. Raises CudaMissing where CUDA is
    required and absent.
    """
    usable = CUDA in facts.offered and facts.cuda_devices > 0
    if require_cuda and not usable:
        reason = "the driver shows no device" if CUDA in facts.offered else "this ONNX Runtime is built without it"
        raise CudaMissing(
            f"Serving is set to run on CUDA only, and {reason}. Unset WINNOW_REQUIRE_CUDA to serve on the CPU."
        )
    if not usable:
        return Plan(((CPU, {}),), strict=False)
    cuda: list[tuple[str, dict[str, str]]] = [(CUDA, dict(CUDA_OPTIONS))]
    if tensorrt_wanted and TENSORRT in facts.offered:
        cuda.insert(0, (TENSORRT, {}))
    return Plan(tuple(cuda), strict=True) if require_cuda else Plan((*cuda, (CPU, {})), strict=False)


def count_cuda_devices() -> int:
    """Devices that the CUDA driver shows to this process; 0 without a driver, and then nothing is printed."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


class Network:
    """One ONNX graph, ready to run. Safe to call from several threads at once."""

    def __init__(self, session: Any, name: str) -> None:
        self._session = session
        self._name = name
        self.provider: str = session.get_providers()[0]
        self.inputs = frozenset(node.name for node in session.get_inputs())
        self.outputs = frozenset(node.name for node in session.get_outputs())

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """These outputs of the graph. Raises ModelFault where it refuses the feeds."""
        try:
            answers: list[NDArray[Any]] = self._session.run(outputs, feeds)
        except RUNTIME_ERRORS as error:
            raise ModelFault(f"{self._name} cannot be run ({first_line(error)}).") from error
        return answers


class Runtime:
    """How this process opens networks: by a provider plan, one thread a call."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        if plan.wants_cuda and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # finds the CUDA and cuDNN libraries of pip's own packages

    @property
    def on_cpu(self) -> bool:
        return not self.plan.wants_cuda

    def open(self, model: bytes, *, name: str, inputs: Sequence[str], outputs: Sequence[str]) -> Network:
        """Raises ModelFault unless `model` has exactly these inputs, and these outputs; CudaMissing where strict."""
        try:
            session = ort.InferenceSession(model, self.options(), providers=list(self.plan.providers))
        except RUNTIME_ERRORS as error:
            raise ModelFault(f"{name} is not a graph that this ONNX Runtime can open ({first_line(error)}).") from error
        network = Network(session, name)
        if self.plan.strict and network.provider == CPU:
            raise CudaMissing(
                f"{name} was given to CUDA and came up on {network.provider}: CUDA or cuDNN libraries are missing."
            )
        if network.inputs != frozenset(inputs) or not network.outputs.issuperset(outputs):
            raise ModelFault(
                f"{name} has inputs {sorted(network.inputs)} and outputs {sorted(network.outputs)}; "
                f"wanted {sorted(inputs)} and {sorted(outputs)}."
            )
        return network

    def options(self) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # calls run beside each other instead: no threads to wake, none that idle
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle pool would burn a core
        if self.plan.strict:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return options
