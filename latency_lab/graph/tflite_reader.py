"""Reads .tflite files: the operations that they hold, as the runtime executes them."""

from __future__ import annotations

from pathlib import Path

from latency_lab.graph.channel_graph import ChannelGraph, Node, Shapes, Unknown, Weights
from latency_lab.graph.tflite_file import load
from latency_lab.graph.tflite_kinds import read
from latency_lab.graph.tflite_patterns import find
from latency_lab.graph.tflite_shapes import SizedModel, sized
from latency_lab.graph.tflite_step import Made, dims


def read_tflite(path: str | Path, input_shapes: Shapes | None = None) -> ChannelGraph:
    """The graph of a .tflite file: its first subgraph, each operator as LiteRT runs it on a CPU.

    Operators that read constants alone are no nodes: they are done once, on loading. Operators without an operation
    (`latency_lab.ops`) are `unknown`, and what they make are network inputs. A weight in int8 makes an operation int8,
    whatever its activations are in: it computes so.

    Args:
        path: of the file.
        input_shapes: name -> shape with the batch first, or one shape for a model of one input. Default: the file's,
            an open batch being 1.

    Raises:
        FileFormatError: the file is missing, is no .tflite file, or is damaged.
        UnsupportedModelError: an input has open sizes and no shape is given.
        UsageError: `input_shapes` does not fit the inputs.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from latency_lab import runtimes
        >>> from latency_lab.ops import Network, OpConfig
        >>> op = OpConfig("conv2d", height=8, width=8, in_channels=4, out_channels=8, activation="relu")
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "conv.tflite"
        ...     _ = path.write_bytes(runtimes.get("litert").build(Network.of(op)))
        ...     graph = read_tflite(path)
        >>> graph.nodes[0].op == op
        True
    """
    model = sized(load(path), input_shapes)
    reading = _Reading(model)
    made, unknown = reading.operations()
    return _graph(model, made, unknown, Path(path).stem)


class _Reading:
    """Operators to operations, in the order of execution."""

    def __init__(self, model: SizedModel) -> None:
        self._model = model
        self._patterns, self._inside = find(model)
        self._tensors = model.file.tensors

    def operations(self) -> tuple[list[Made], list[Unknown]]:
        """Every operation, and every operator that is none."""
        made: list[Made] = []
        unknown: list[Unknown] = []
        for position, op in enumerate(self._model.operators):
            if position in self._inside:
                continue
            found = [self._patterns[position]] if position in self._patterns else read(self._model, op)
            if found is not None:
                made += found
                continue
            name = next((self._tensors[i].name for i in op.outputs if i >= 0), f"{op.code} {position}")
            sizes = self._model.size_bytes(op.inputs), self._model.size_bytes(op.outputs)
            unknown.append(Unknown(name, op.code, *sizes))
        return made, unknown


def _graph(model: SizedModel, made: list[Made], unknown: list[Unknown], name: str) -> ChannelGraph:
    """Tensors replaced by nodes and network inputs, numbered without a gap: an input that no node reads has none."""
    tensors = model.file.tensors
    node_of = {operation.output: i for i, operation in enumerate(made)}
    read_tensors = dict.fromkeys(i for operation in made for i in operation.inputs if i not in node_of)
    own = [index for index in model.file.inputs if index in read_tensors]
    entries = dict.fromkeys([*own, *read_tensors])
    sources = node_of | {tensor: -1 - k for k, tensor in enumerate(entries)}
    names: dict[str, int] = {}
    nodes = []
    for operation in made:
        label = tensors[operation.output].name
        times = names[label] = names.get(label, 0) + 1
        label = label if times == 1 else f"{label}#{times}"
        inputs = tuple(sources[i] for i in operation.inputs)
        nodes.append(Node(label, operation.op, inputs, label, Weights(const=float(operation.op.weight_count))))
    shapes = [dims(model, index) for index in entries]
    return ChannelGraph.fixed(nodes, [shape[1:] for shape in shapes], unknown, name, "tflite")
