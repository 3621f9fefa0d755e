"""A network as an ONNX graph: which layout each tensor has, and what surrounds an operation that stands alone."""

from __future__ import annotations

import numpy as np

from latency_lab.ops import BINARY, CASTS, CONVS, GLOBAL_POOLS, POOLS, REORDERS, RESIZES, Network, OpConfig
from latency_lab.runtimes import (  # noqa: F401 they register what builds each kind
    _onnx_activations,
    _onnx_kernels,
    _onnx_moves,
    _onnx_norms,
    base,
)
from latency_lab.runtimes._onnx import FLOAT, Writer
from latency_lab.runtimes._onnx_ops import Node
from latency_lab.runtimes._onnx_qdq import QuantisedWriter

KERNELS_KEY = "latency_lab.kernels"
"""Metadata of a model: the one type of kernel that is its operation, where that is a reorder (see `worker.py`)."""
CHANNELS_LAST = frozenset({"dense", "group_norm", "reshape", "channel_shuffle"})
"""Kinds that read and write images channels last: an export puts a Transpose between them and a convolution."""
CHANNELS_FIRST = CONVS | POOLS | GLOBAL_POOLS | RESIZES | REORDERS | {"conv2d_transpose", "local_response_norm"}
"""Kinds that read and write images channels first. All others go with their operands."""
_REORDERS = {"reorder_input": "ReorderInput", "reorder_output": "ReorderOutput"}
FIRST, LAST = "first", "last"
_REFERENCES = 6
"""Small kernels beside a lone operation (`worker.KernelOverhead`)."""
_FEW = 4
"""Channels of a small convolution in the blocked layout."""


def build(network: Network) -> bytes:
    """Bytes of the .onnx file of a network that can be built (`OnnxRuntime.build`)."""
    graph = _Graph(network)
    for i in range(len(network.nodes)):
        graph.add(i)
    return graph.to_bytes()


class _Graph:
    """The network while it is written: its inputs and outputs in the layouts that they have outside.

    A lone 8-bit operation on images stands between convolutions of the context (to and from one channel), since ONNX
    Runtime runs those channels last and moves what other operators cannot do in that layout.
    """

    def __init__(self, network: Network, lone: bool | None = None) -> None:
        coded = any(op.dtype == "int8" for op, _ in network.nodes)
        self._network = network
        self._shapes = base.tensor_shapes(network)
        self._writer = QuantisedWriter() if coded else Writer()
        one = len(network.nodes) == 1
        self._lone = one and (not coded or network.nodes[0][0].kind in CASTS) if lone is None else lone
        self._between = one and coded and not self._lone
        self._outputs: list[str] = []
        self._layouts: list[str] = []
        self._moved: dict[tuple[int, str], str] = {}
        shapes = self._shapes.inputs
        self._raw = [
            self._writer.feed(f"input{k}", self._input_shape(k), _reads_coded(network, -1 - k))
            for k in range(len(shapes))
        ]

    def add(self, i: int) -> None:
        """Write node i."""
        op, sources = self._network.nodes[i]
        layout = self._layout(i)
        operands = [self._operand(i, source, layout) for source in sources]
        if isinstance(self._writer, QuantisedWriter):
            self._writer.precise = op.dtype != "int8"
            if op.activation in {"relu", "relu6"} and op.kind == "activation":
                self._settle(sources[0], operands[0])
        self._outputs.append(self._written(i, operands, layout))
        self._layouts.append(FIRST if op.kind == "transpose" else layout)

    def to_bytes(self) -> bytes:
        """The file."""
        outputs, coded = {}, set()
        for i in self._network.outputs:
            name, shape, op = self._outputs[i], self._shapes.outputs[i], self._network.nodes[i][0]
            layout = self._layouts[i]
            if self._between and len(shape) == 4 and op.kind != "transpose":
                name, shape, layout = self._to_convolution(name, shape, layout), (*shape[:-1], 1), FIRST
            if len(shape) > 2 and op.kind != "transpose" and layout == FIRST:
                if self._lone:
                    shape = _channels_first(shape)
                    shape = (shape[0], _FEW, *shape[2:]) if op.kind == "reorder_input" else shape
                else:
                    name = self._writer.context("Transpose", [name], f"context_output{i}", perm=_to_last(len(shape)))
            if len(self._network.nodes) == 1:
                name = self._followed(name)
            if isinstance(self._writer, QuantisedWriter):
                is_coded = op.dtype == "int8" and op.kind != "dequantize"
                name = self._writer.output(name, is_coded)
                coded |= {name} if is_coded else set()
            outputs[name] = shape
        return self._writer.to_bytes(outputs, frozenset(coded))

    # ---- nodes ------------------------------------------------------------------------------------------------

    def _written(self, i: int, operands: list[str], layout: str) -> str:
        """The output of node i."""
        op, sources = self._network.nodes[i]
        name = f"op{i}"
        if op.kind == "transpose":  # what is channels first inside is so already
            if layout == FIRST and sources[0] >= 0:
                return self._writer.node("Identity", operands, name)
            return self._writer.node("Transpose", operands, name, perm=_to_first(4))
        if op.kind in REORDERS:
            self._writer.note(KERNELS_KEY, _REORDERS[op.kind])
            return self._reordered(operands[0], op)
        if op.kind == "quantize" and isinstance(self._writer, QuantisedWriter):
            return self._writer.quantise(operands[0], name)
        if op.kind == "dequantize" and isinstance(self._writer, QuantisedWriter):
            return self._writer.dequantise(operands[0], name)
        ranks = [len(self._shapes.of(source)) for source in sources]
        exported = len(self._network.nodes) > 1
        return Node(self._writer, op, i, self._shapes.outputs[i], ranks, layout == FIRST, exported).emit(operands)

    def _settle(self, source: int, name: str) -> None:
        """Round what a ReLU reads where something else reads it as well, or where the ReLU is to be timed."""
        assert isinstance(self._writer, QuantisedWriter)
        if self._between or sum(source in sources for _, sources in self._network.nodes) > 1:
            self._writer.settle(name)

    # ---- layouts ----------------------------------------------------------------------------------------------

    def _layout(self, i: int) -> str:
        """The layout that node i works in."""
        op, sources = self._network.nodes[i]
        if is_channels_last(op):
            return LAST
        if op.kind == "transpose":
            return self._layouts[sources[0]] if sources[0] >= 0 else LAST
        if op.kind in BINARY and op.operands == 1 and sources[0] < 0 and not self._lone:
            return LAST  # an export transposes an image after arithmetic with constants
        known = {self._layouts[s] for s in sources if s >= 0 and len(self._shapes.of(s)) > 2}
        return LAST if known == {LAST} and op.kind not in CHANNELS_FIRST else FIRST

    def _operand(self, i: int, source: int, layout: str) -> str:
        """The tensor that node i reads, in this layout."""
        found = self._outputs[source] if source >= 0 else self._raw[-1 - source]
        rank = len(self._shapes.of(source))
        if rank == 2 or self._network.nodes[i][0].kind == "transpose":
            return found
        if self._is_blocked(source):
            return self._from_blocked(source, found)
        if self._between and rank == 4:
            return self._from_convolution(source, found, layout)
        has = self._layouts[source] if source >= 0 else layout if self._lone else LAST
        if has == layout:
            return found
        if (source, layout) not in self._moved:
            perm = _to_first(rank) if layout == FIRST else _to_last(rank)
            name = f"context_{found}" if source < 0 else f"context_{layout}{source}"
            self._moved[source, layout] = self._writer.context("Transpose", [found], name, perm=perm)
        return self._moved[source, layout]

    def _input_shape(self, k: int) -> base.Shape:
        shape, op = self._shapes.inputs[k], self._network.nodes[0][0]
        if self._between and len(shape) == 4 and op.kind != "transpose":
            return (*shape[:-1], 1)
        if not self._lone or len(shape) == 2 or op.kind == "transpose" or is_channels_last(op):
            return shape
        shape = _channels_first(shape)
        one_channel = self._is_blocked(-1 - k) or op.kind == "reorder_output"
        return (shape[0], 1, *shape[2:]) if one_channel else shape

    # ---- surroundings -----------------------------------------------------------------------------------------

    def _from_blocked(self, source: int, raw: str) -> str:
        """What a convolution of the context makes."""
        ones = np.ones((self._shapes.of(source)[-1], 1, 1, 1), np.float32)
        kernel = self._writer.constant("context.ones", ones)
        blocked = self._writer.node("Conv", [raw, kernel], "context_conv", kernel_shape=[1, 1])
        return self._writer.node("Relu", [blocked], "context_relu")  # keeps the operation out of the convolution

    def _reordered(self, data: str, op: OpConfig) -> str:
        """A convolution of the context that is as small as can be where it reads or makes the blocked layout."""
        makes = op.kind == "reorder_output"
        shape = (op.in_channels, 1, 1, 1) if makes else (_FEW, op.in_channels, 1, 1)
        weights = self._writer.constant("context.kernel", np.ones(shape, np.float32))
        return self._writer.node("Conv", [data, weights], "context_conv", kernel_shape=[1, 1])

    def _from_convolution(self, source: int, raw: str, layout: str) -> str:
        """What an 8-bit convolution of the context makes, moved to this layout by a node of the operation."""
        data = self._writer.context("Transpose", [raw], f"context_{raw}", perm=_to_first(4))
        kernel = np.ones((self._shapes.of(source)[-1], 1, 1, 1), np.float32)
        weights = self._writer.constant(f"context.before_{raw}", kernel)
        data = self._writer.node("Conv", [data, weights], f"context_conv_{raw}", kernel_shape=[1, 1])
        if layout == FIRST:
            return data
        return self._writer.context("Transpose", [data], f"op0_{raw}_last", perm=_to_last(4))

    def _to_convolution(self, name: str, shape: base.Shape, layout: str) -> str:
        """The output of the operation, read by an 8-bit convolution of the context to one channel."""
        if layout == LAST:
            name = self._writer.context("Transpose", [name], "op0_first", perm=_to_first(4))
        mean = np.full((1, shape[-1], 1, 1), 1 / shape[-1], np.float32)
        weights = self._writer.constant("context.after", mean)
        return self._writer.node("Conv", [name, weights], "context_conv_output", kernel_shape=[1, 1])

    def _followed(self, name: str) -> str:
        """The tensor, through one more kernel that changes nothing: the operation's ends where that one begins.

        It reads a one that comes out of a chain of small kernels. By these the worker knows what the profiler adds
        to a kernel while this very model runs.
        """
        writer, rank = self._writer, len(self._input_shape(0))
        bounds = [writer.constant(f"context.{k}", [k] * rank) for k in (0, 1)]
        axes = writer.constant("context.axes", list(range(rank)))
        found = writer.plain("Slice", [self._raw[0], *bounds, axes], "context_slice")
        found = writer.plain("Cast", [found], "context_cast", to=FLOAT)
        found = writer.plain("Reshape", [found, writer.constant("context.image", [1] * 4)], "context_image")
        for k in range(_REFERENCES):
            found = writer.plain("Abs", [found], f"context_reference{k}")
        one = writer.constant("context.one", 1.0)
        found = writer.plain("Clip", [found, one, one], "context_one")
        found = writer.plain("Reshape", [found, writer.constant("context.vector", [1])], "context_vector")
        return writer.node("PRelu", [name, found], "context_end")

    def _is_blocked(self, source: int) -> bool:
        """Whether a network input comes from a convolution of the context."""
        op, sources = self._network.nodes[0]
        if not self._lone or len(self._shapes.of(source)) != 4:
            return False
        if op.kind in {"conv2d", "depthwise_conv2d"}:
            return op.residual and source == sources[-1]
        return op.kind in {"batch_norm", "flatten"} and op.height * op.width > 1


def _reads_coded(network: Network, source: int) -> bool:
    """Whether a network input is read as 8-bit numbers."""
    readers: list[OpConfig] = [op for op, sources in network.nodes if source in sources]
    return all(op.dtype == "int8" and op.kind != "quantize" for op in readers)


def is_channels_last(op: OpConfig) -> bool:
    """Whether it works on channels that are last."""
    return op.kind in CHANNELS_LAST or op.broadcast == "innermost"


def _to_first(rank: int) -> tuple[int, ...]:
    return (0, rank - 1, *range(1, rank - 1))


def _to_last(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank), 1)


def _channels_first(shape: base.Shape) -> base.Shape:
    return (shape[0], shape[-1], *shape[1:-1])
