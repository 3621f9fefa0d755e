"""Tensors of an .onnx file, and the graph of operations while it is read.

Transposes are put off: a tensor carries the order that its axes are stored in, an operation that works in any order
passes it on, and only one that needs the order of the file makes a "transpose" node. So the pairs that an exporter
puts around each convolution cancel, as they do in a runtime.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from latency_lab.errors import UsageError
from latency_lab.graph.channel_graph import ChannelGraph, Node, Unknown, Weights
from latency_lab.graph.onnx_file import OnnxFile, Operator, Shape
from latency_lab.ops import DTYPE_BYTES, OpConfig

State = Literal["plain", "dequantized", "unquantized"]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file, and where it comes from.

    Attributes:
        source: as in `ops.Network`: the node that makes it, or a negative network input.
        shape: as the file has it.
        axis: of `shape`, that holds the channels.
        order: `shape` is the stored shape with its axes in this order.
        dtype: as it is stored.
        state: of an int8 tensor: "plain"; "dequantized" where the file has it as floats on its way into an operation;
            "unquantized" where it has it as floats on its way out of one.
        moved_by: the Transpose that `order` is of.
    """

    source: int
    shape: Shape
    axis: int
    order: tuple[int, ...]
    dtype: str = "float32"
    state: State = "plain"
    moved_by: str = ""

    @classmethod
    def of(cls, source: int, shape: Shape, axis: int, dtype: str) -> Tensor:
        """A tensor that is stored as the file has it."""
        return cls(source, shape, axis, tuple(range(len(shape))), dtype)

    @property
    def channels(self) -> int:
        """Size of the axis of channels; 1 of a number without axes."""
        return self.shape[self.axis] if self.shape else 1

    @property
    def batch(self) -> int:
        """Size of the first axis, where that is not the one of channels."""
        return self.shape[0] if len(self.shape) > 1 and self.axis != 0 else 1

    @property
    def space(self) -> tuple[int, int, int]:
        """(depth, height, width): the axes of positions, the last ones first; what is too many counts as depth."""
        sizes = [1, 1, *(size for i, size in enumerate(self.shape) if i != self.axis and i > 0)]
        return math.prod(sizes[:-2]), sizes[-2], sizes[-1]

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def in_order(self) -> bool:
        """Whether it is stored as the file has it; axes of size 1 may stand anywhere."""
        moved = [i for i, size in zip(self.order, self.shape, strict=True) if size > 1]
        return moved == sorted(moved)

    def op(self, kind: str) -> OpConfig:
        """An operation of this kind that reads the tensor and keeps its channels."""
        depth, height, width = self.space
        return OpConfig(kind, self.batch, height, width, self.channels, self.channels, dtype=self.dtype, depth=depth)

    def to(self, shape: Shape, axis: int | None = None) -> Tensor:
        """The same numbers, of which the file has another shape."""
        axis = min(self.axis, len(shape) - 1) if axis is None else axis
        return dataclasses.replace(self, shape=shape, axis=max(axis, 0), order=tuple(range(len(shape))))


Effect = Callable[["Reader", Operator], Sequence[Tensor] | None]
"""Reads one operator: adds its nodes and returns its outputs; None where it is not known."""


class Reader:
    """A graph while it is read.

    Args:
        file: what is read.
    """

    def __init__(self, file: OnnxFile) -> None:
        self.file = file
        self.nodes: list[Node] = []
        self._unknown: list[Unknown] = []
        self._tensors: dict[str, Tensor] = {}
        self._input_shapes: list[tuple[int, int, int]] = []
        self._settled: dict[tuple[str, int, tuple[int, ...]], Tensor] = {}
        self._names: Counter[str] = Counter()
        self._island = False
        self._weights = 0
        for name in file.inputs:
            shape = file.shape(name)
            if shape is not None:
                self._tensors[name] = self._network_input(name, shape, _input_axis(file, name, len(shape)))

    # ---- tensors ----------------------------------------------------------------------------------------------

    def raw(self, name: str) -> Tensor | None:
        """A tensor as it comes; None of a constant, and of a tensor that nothing is known of."""
        return self._tensors.get(name)

    def tensor(self, name: str, *, in_order: bool = False) -> Tensor | None:
        """A tensor as this operator reads it: floats, except between dequantize and quantize.

        Args:
            name: of the tensor.
            in_order: whether the operator needs it as the file has it, transposes done.
        """
        found = self._tensors.get(name)
        if found is None:
            return None
        found = self._floats(found, name)
        return self._in_order(found, name) if in_order else found

    def tensors(self, operator: Operator) -> list[Tensor]:
        """Its operands that are no constants, all stored in one order."""
        names = [name for name in operator.inputs if name in self._tensors]
        found = [self._floats(self._tensors[name], name) for name in names]
        orders = {tensor.order for tensor in found if not tensor.in_order}
        wide = [tensor for tensor in found if sum(size > 1 for size in tensor.shape) > 1]
        if not orders or (len(orders) == 1 and all(tensor.order in orders for tensor in wide)):
            return found
        return [self._in_order(tensor, name) for tensor, name in zip(found, names, strict=True)]

    def _floats(self, tensor: Tensor, name: str) -> Tensor:
        """Its numbers as floats, where the operator at hand does not work on the quantized ones."""
        if tensor.state == "plain" or self._island:
            return tensor
        key = ("dequantize", tensor.source, ())
        if key not in self._settled:
            source = self.node(f"{name}.dequantize", tensor.op("dequantize"), [tensor])
            self._settled[key] = dataclasses.replace(tensor, source=source, dtype="float32", state="plain")
        made = self._settled[key]
        return dataclasses.replace(tensor, source=made.source, dtype="float32", state="plain")

    def _in_order(self, tensor: Tensor, name: str) -> Tensor:
        if tensor.in_order:
            return tensor.to(tensor.shape)
        key = ("transpose", tensor.source, tensor.order)
        if key not in self._settled:
            moved = self.node(tensor.moved_by or f"{name}.transpose", tensor.op("transpose"), [tensor])
            self._settled[key] = dataclasses.replace(tensor.to(tensor.shape), source=moved)
        return self._settled[key]

    def _network_input(self, name: str, shape: Shape, axis: int) -> Tensor:
        tensor = Tensor.of(-1 - len(self._input_shapes), shape, axis, self.file.dtype(name))
        depth, height, width = tensor.space
        self._input_shapes.append((depth * height, width, tensor.channels))
        return tensor

    # ---- nodes ------------------------------------------------------------------------------------------------

    def read(self, operator: Operator, effect: Effect | None) -> None:
        """Adds what an operator is; an `Unknown` where there is no effect for it, or it does not fit."""
        self._island = self._is_island(operator)
        self._weights = sum(self.file.constants[n].count for n in operator.inputs if n in self.file.constants)
        before = len(self.nodes)
        try:
            outputs = None if effect is None else effect(self, operator)
        except (UsageError, KeyError, IndexError, ValueError):
            outputs = None
        if outputs is None:
            del self.nodes[before:]
            self._settled = {key: made for key, made in self._settled.items() if made.source < before}
            self._opaque(operator)
            return
        for name, tensor in zip(operator.outputs, outputs, strict=False):
            self._tensors[name] = tensor

    def node(self, name: str, op: OpConfig, operands: Sequence[Tensor]) -> int:
        """Adds one operation; its index."""
        self._names[name] += 1
        unique = name if self._names[name] == 1 else f"{name}.{self._names[name]}"
        weights = Weights(const=float(self._weights if op.weight_count else 0))
        self.nodes.append(Node(unique, op, tuple(tensor.source for tensor in operands), unique, weights))
        return len(self.nodes) - 1

    def made(self, name: str, op: OpConfig, operands: Sequence[Tensor], like: Tensor) -> Tensor:
        """Adds one operation; its output, of the shape and order of `like`."""
        source = self.node(name, op, operands)
        return dataclasses.replace(like, source=source, dtype=op.dtype, state=self.result_state())

    def result_state(self) -> State:
        """State of what the operator at hand makes."""
        return "unquantized" if self._island else "plain"

    def _is_island(self, operator: Operator) -> bool:
        """Whether all that an operator reads was dequantized for it, and all that it makes is quantized again."""
        read = [self._tensors[name] for name in operator.inputs if name in self._tensors]
        if not read or any(tensor.state == "plain" for tensor in read):
            return False
        follower = self.file.only_reader(operator.output)
        if follower is not None and follower.kind in {"Relu", "Clip"}:
            follower = self.file.only_reader(follower.output)
        return follower is not None and follower.kind == "QuantizeLinear"

    def _opaque(self, operator: Operator) -> None:
        """Lists an operator that there is no operation for; what it makes comes in as inputs of the network."""
        read = sum(t.count * DTYPE_BYTES[t.dtype] for t in map(self._tensors.get, operator.inputs) if t is not None)
        made = 0
        for name in filter(None, operator.outputs):
            shape = self.file.shape(name)
            if shape is None or 0 in shape or not self.file.readers[name]:
                continue
            self._tensors[name] = self._network_input(name, shape, _default_axis(len(shape)))
            made += math.prod(shape) * DTYPE_BYTES[self.file.dtype(name)]
        self._unknown.append(Unknown(operator.name, operator.kind, read, made))

    # ---- result -----------------------------------------------------------------------------------------------

    def graph(self, model_name: str) -> ChannelGraph:
        """What was read, without what no result depends on."""
        self._island = False
        results = {tensor.source for name in self.file.outputs if (tensor := self.tensor(name, in_order=True))}
        nodes = self._live(results)
        return ChannelGraph.fixed(nodes, self._input_shapes, self._unknown, model_name, "onnx")

    def _live(self, results: Collection[int]) -> list[Node]:
        """The nodes that a result or an unknown layer needs, renumbered."""
        wanted = set(results)
        names = {unknown.name for unknown in self._unknown}
        for operator in self.file.operators:
            if operator.name in names:
                wanted |= {tensor.source for tensor in map(self._tensors.get, operator.inputs) if tensor is not None}
        for i in range(len(self.nodes) - 1, -1, -1):
            if i in wanted:
                wanted.update(self.nodes[i].inputs)
        kept = [i for i in range(len(self.nodes)) if i in wanted]
        position = {i: k for k, i in enumerate(kept)}
        return [
            dataclasses.replace(self.nodes[i], inputs=tuple(position.get(k, k) for k in self.nodes[i].inputs))
            for i in kept
        ]


_CHANNELS_FIRST = frozenset(
    {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization"}
)
_CHANNELS_LAST = frozenset({"MatMul", "Gemm", "LayerNormalization"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_ANY_ORDER = _ARITHMETIC | {"Relu", "Clip", "Sigmoid", "Cast", "Identity", "Pad", "QuantizeLinear", "DequantizeLinear"}


def _default_axis(rank: int) -> int:
    """Of channels: second of an image, last of a sequence or a vector."""
    return 1 if rank in (2, 4, 5) else max(rank - 1, 0)


def _input_axis(file: OnnxFile, name: str, rank: int) -> int:
    """Which axis of a network input holds the channels, by the first operator that tells."""
    waiting, seen = [name], {name}
    while waiting and rank > 2:
        for operator in file.readers[waiting.pop(0)]:
            perm = operator.attributes.get("perm", ())
            if operator.kind in _CHANNELS_FIRST or (operator.kind == "Transpose" and len(perm) > 2 and perm[-1] == 1):
                return 1
            if operator.kind in _CHANNELS_LAST or (
                operator.kind == "Transpose" and len(perm) > 2 and perm[1] == rank - 1
            ):
                return rank - 1
            sizes = [file.constants[i].shape for i in operator.inputs if i in file.constants]
            last = any(len(size) in (1, rank) and size[-1] > 1 and math.prod(size) == size[-1] for size in sizes)
            if operator.kind in _ARITHMETIC and last:
                return rank - 1  # a number for each entry of the last axis
            if operator.kind in _ANY_ORDER and operator.output not in seen:
                seen.add(operator.output)
                waiting.append(operator.output)
    return _default_axis(rank)
