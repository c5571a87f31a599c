"""Networks traced to ONNX, all at once, and graphs that are put together from what was traced."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from models.classifiers.residual import Residual


@dataclass(frozen=True, eq=False)
class Network:
    """What is to be traced. inputs: by name an example and how the graph calls its free first dimension."""

    module: nn.Module
    inputs: Mapping[str, tuple[Tensor, str]]
    outputs: Sequence[str]


@dataclass(frozen=True, eq=False)
class Part:
    """A traced network. renamed: its inputs' or outputs' names in a graph, where they differ from its own."""

    model: onnx.ModelProto
    renamed: Mapping[str, str] = field(default_factory=dict)

    def under(self, **names: str) -> Part:
        return Part(self.model, names)

    @property
    def ends(self) -> dict[str, onnx.ValueInfoProto]:
        """The inputs and outputs, by their names in the graph."""
        found: dict[str, onnx.ValueInfoProto] = {}
        for value in (*self.model.graph.input, *self.model.graph.output):
            named = copy.deepcopy(value)
            named.name = self.renamed.get(value.name, value.name)
            found[named.name] = named
        return found

    def named(self, prefix: str) -> onnx.GraphProto:
        """The graph with `prefix` before the names of all that is neither an input nor an output."""
        graph, ends = (
            copy.deepcopy(self.model.graph),
            {v.name for v in (*self.model.graph.input, *self.model.graph.output)},
        )

        def own(name: str) -> str:
            return self.renamed.get(name, name) if name in ends or not name else prefix + name

        for node in graph.node:
            node.name = prefix + node.name
            node.input[:] = [own(name) for name in node.input]
            node.output[:] = [own(name) for name in node.output]
        for constant in graph.initializer:
            constant.name = own(constant.name)
        return graph


def trace(networks: Mapping[str, Network]) -> dict[str, Part]:
    """Trace in eval mode on the CPU. The modules stay as they are.

    All in one call: the exporter takes longer to gather its operators than to trace a network.
    """
    given = [
        (f"{name}/{end}", example, Dim(f"{name}_{free}"))  # a dimension of two networks would tie them together
        for name, network in networks.items()
        for end, (example, free) in network.inputs.items()
    ]
    with _quiet():
        program = torch.onnx.export(
            _SideBySide(networks.values()).eval(),
            tuple(example for _, example, _ in given),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=[name for name, _, _ in given],
            output_names=[f"{name}/{end}" for name, network in networks.items() for end in network.outputs],
            dynamic_shapes=(tuple({0: free} for _, _, free in given),),
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    graph = program.model.graph
    for part in (program.model, graph, *graph.inputs, *graph):
        part.metadata_props.clear()  # stack traces, which name folders of this machine
    model = program.model_proto
    if model.functions:
        raise RuntimeError("torch.onnx.export left functions in the graph, which cannot be put together with others")
    return {name: Part(_taken_out(model, name)) for name in networks}


def _taken_out(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The network of that name alone; its inputs, outputs and free dimensions lose the name before them."""
    prefix, alone = f"{name}/", onnx.ModelProto()
    alone.CopyFrom(model)
    graph = alone.graph
    outputs = [value for value in model.graph.output if value.name.startswith(prefix)]
    nodes, needed = _needed(model.graph.node, {value.name for value in outputs})
    del graph.node[:], graph.initializer[:], graph.value_info[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constant for constant in model.graph.initializer if constant.name in needed)
    graph.input.extend(value for value in model.graph.input if value.name.startswith(prefix))
    graph.output.extend(outputs)
    if foreign := needed & {value.name for value in model.graph.input} - {value.name for value in graph.input}:
        raise RuntimeError(f"torch.onnx.export made {name} depend on {', '.join(sorted(foreign))}")
    for value in (*graph.input, *graph.output):
        value.name = value.name.removeprefix(prefix)
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = side.dim_param.removeprefix(f"{name}_")
    for node in graph.node:
        node.input[:] = [end.removeprefix(prefix) for end in node.input]
        node.output[:] = [end.removeprefix(prefix) for end in node.output]
    return alone


def _needed(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that the outputs come from, in their order, and the names of all values on the way."""
    names, found = set(outputs), []
    for node in reversed(nodes):
        if names.intersection(node.output):
            names.update(node.input)
            found.append(node)
    return found[::-1], names


def joined(parts: Sequence[Part], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """One ONNX graph of all parts, in the order they run: equal names of inputs and outputs are the same value.

    What none of the outputs needs is left out. Raises ValueError where parts want operators of different versions.
    """
    graphs = [part.named(f"{number}/") for number, part in enumerate(parts)]
    ends = {name: value for part in reversed(parts) for name, value in part.ends.items()}
    nodes, needed = _needed([node for graph in graphs for node in graph.node], set(outputs))
    whole = onnx.ModelProto()
    whole.CopyFrom(parts[0].model)
    del whole.graph.node[:], whole.graph.initializer[:], whole.graph.value_info[:]
    del whole.graph.input[:], whole.graph.output[:]
    operators: dict[str, onnx.OperatorSetIdProto] = {}
    for each in (each for part in parts for each in part.model.opset_import):
        if operators.setdefault(each.domain, each).version != each.version:
            raise ValueError(f"parts of two versions of the operators {each.domain!r} make no graph")
    del whole.opset_import[:]
    whole.opset_import.extend(operators.values())
    whole.graph.node.extend(nodes)
    whole.graph.initializer.extend(c for graph in graphs for c in graph.initializer if c.name in needed)
    whole.graph.input.extend(ends[name] for name in inputs)
    whole.graph.output.extend(ends[name] for name in outputs)
    data: bytes = whole.SerializeToString()
    return data


class _SideBySide(nn.Module):
    """Networks that have nothing to do with each other, as they are served."""

    def __init__(self, networks: Collection[Network]) -> None:
        super().__init__()
        self.modules_of = nn.ModuleList(_as_served(network.module) for network in networks)
        self.counts = [len(network.inputs) for network in networks]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        rest, outputs = inputs, list[Tensor]()
        for module, count in zip(self.modules_of, self.counts, strict=True):
            found = module(*rest[:count])
            rest = rest[count:]
            outputs += [found] if isinstance(found, Tensor) else found
        return tuple(outputs)


class _Strided(nn.Module):
    """A residual block whose shortcut strides by its convolution: without the slices, a tenth of a student's time."""

    def __init__(self, block: Residual) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_nchw: Tensor) -> Tensor:
        block, shortcut = self.block, self.block.shortcut
        if not isinstance(shortcut, nn.Conv2d):
            strided = x_nchw
        else:
            strided = F.conv2d(x_nchw, shortcut.weight, shortcut.bias, stride=block.stride)
        return F.relu(block.second(F.relu(block.first(x_nchw))) + strided)


def _as_served(module: nn.Module) -> nn.Module:
    """A copy in eval mode on the CPU, its residual blocks in the form that ONNX Runtime is quicker at."""
    copied = copy.deepcopy(module).cpu().eval()
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Residual) and not isinstance(parent, _Strided):
                setattr(parent, name, _Strided(child))
    return copied


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on operators of packages that are not installed and its use of old interfaces."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
