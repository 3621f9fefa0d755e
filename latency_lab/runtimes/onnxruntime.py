"""ONNX Runtime: graphs as `keras.Model.export(format="onnx")` writes them, float32, channels first inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latency_lab.extras import missing
from latency_lab.ops import CONVS, Network, OpConfig
from latency_lab.runtimes import base
from latency_lab.runtimes._onnx_ops import Node
from latency_lab.runtimes.base import INPUT_TRANSPOSE

if TYPE_CHECKING:
    from latency_lab.runtimes._onnx import Writer

_TO_CHANNELS_FIRST = (0, 3, 1, 2)
_TO_CHANNELS_LAST = (0, 2, 3, 1)


class OnnxRuntime:
    """Builds .onnx files.

    **Layout.** The model of a lone operation takes and gives images channels first. A network of several takes and
    gives them channels last, with a Transpose at each such input and output, as an exported Keras model does. (A
    "transpose" operation takes channels last in both.)

    **Names.** A node's operators are "op{i}" and "op{i}_...". What is in the graph only to put the operation into its
    surroundings is "context_...": the transposes above, and, in the model of a lone operation whose kernels depend on
    it, a convolution that makes its input in ONNX Runtime's blocked layout. Those are a residual (added inside the
    convolution only where it is blocked already), a batch norm (a convolution where its input is blocked), and a
    flatten (the Transpose before it is then part of the reorder). Such an input is (batch, 1, height, width), not
    negative, and each channel that the operation reads is equal to it.

    **Kernel times.** In a profile of the session, an operation's time is the sum of `dur` over events that end in
    "_kernel_time", whose op_name is neither ReorderInput nor ReorderOutput, and whose name does not hold "context".
    Merged and blocked nodes are named after the tensor that they make ("op0_relu_nchwc"), so both prefixes survive.

    Example:
        >>> from latency_lab import runtimes
        >>> from latency_lab.ops import Network, OpConfig
        >>> op = OpConfig("conv2d", height=8, width=8, in_channels=4, out_channels=8, activation="relu")
        >>> b"op0_relu" in runtimes.get("onnxruntime").build(Network.of(op))
        True
    """

    name = "onnxruntime"
    suffix = ".onnx"
    times_kernels = True
    conversion_fusions = frozenset({"conv2d+batch_norm", "depthwise_conv2d+batch_norm", INPUT_TRANSPOSE})
    expected_fusions = frozenset(
        [
            f"{kind}+{second}"
            for kind in sorted(CONVS)
            for second in ("relu", "relu6", "sigmoid", "tanh", "leaky_relu", "add")
        ]
        + [f"dense+{activation}" for activation in ("relu", "sigmoid", "tanh", "leaky_relu", "elu")]
        + [f"pad+{kind}" for kind in ("conv2d", "depthwise_conv2d", "avg_pool")]
    )

    def build(self, network: Network) -> bytes:
        """Bytes of an .onnx file of this network, inputs and outputs in the network's order.

        Raises:
            UnsupportedOpError: an operation cannot be built.
            UsageError: the nodes do not fit together.
            MissingRuntimeError: onnx is not installed.
        """
        base.check(self, network)
        shapes = base.tensor_shapes(network)
        try:
            from latency_lab.runtimes._onnx import Writer
        except ModuleNotFoundError as error:
            raise missing(error, "An ONNX file") or error from error
        graph = _Graph(Writer(), network, shapes)
        for i in range(len(network.nodes)):
            graph.add(i)
        return graph.to_bytes()

    def reason_unsupported(self, op: OpConfig) -> str | None:
        """None if the operation can be built, else why not, in a sentence."""
        if op.dtype != "float32":
            return f"only float32 models are built, this is {op.dtype}."
        return None


class _Graph:
    """The network while it is written: its inputs and outputs in the layouts that they have outside."""

    def __init__(self, writer: Writer, network: Network, shapes: base.Shapes) -> None:
        self._writer = writer
        self._network = network
        self._shapes = shapes
        self._lone = len(network.nodes) == 1
        self._outputs: list[str] = []
        self._raw = [writer.feed(f"input{k}", self._input_shape(k)) for k in range(len(shapes.inputs))]
        self._inside: dict[int, str] = {}

    def add(self, i: int) -> None:
        """Write node i."""
        op, sources = self._network.nodes[i]
        operands = [self._operand(i, source) for source in sources]
        if op.kind == "transpose":  # inside, images are channels first already
            entry = sources[0] < 0
            attributes = {"perm": _TO_CHANNELS_FIRST} if entry else {}
            output = self._writer.node("Transpose" if entry else "Identity", operands, f"op{i}", **attributes)
        else:
            ranks = [len(self._shapes.of(source)) for source in sources]
            rank = len(self._shapes.outputs[i])
            output = Node(self._writer, op, i, rank, ranks, exported=not self._lone).emit(operands)
        self._outputs.append(output)

    def to_bytes(self) -> bytes:
        """The file."""
        outputs = {}
        for i in self._network.outputs:
            name, shape = self._outputs[i], self._shapes.outputs[i]
            if len(shape) == 4 and self._network.nodes[i][0].kind != "transpose":
                if self._lone:
                    shape = _channels_first(shape)
                else:
                    name = self._writer.node("Transpose", [name], f"context_output{i}", perm=_TO_CHANNELS_LAST)
            outputs[name] = shape
        return self._writer.to_bytes(outputs)

    def _input_shape(self, k: int) -> base.Shape:
        shape, op = self._shapes.inputs[k], self._network.nodes[0][0]
        if not self._lone or len(shape) == 2 or op.kind == "transpose":
            return shape
        shape = _channels_first(shape)
        return (shape[0], 1, *shape[2:]) if self._is_blocked(-1 - k) else shape

    def _operand(self, i: int, source: int) -> str:
        """The tensor that node i reads, channels first."""
        if source >= 0:
            return self._outputs[source]
        raw = self._raw[-1 - source]
        if len(self._shapes.of(source)) == 2 or self._network.nodes[i][0].kind == "transpose":
            return raw
        if self._is_blocked(source):
            ones = self._writer.constant("context.ones", np.ones((self._shapes.of(source)[-1], 1, 1, 1), np.float32))
            blocked = self._writer.node("Conv", [raw, ones], "context_conv", kernel_shape=[1, 1])
            return self._writer.node("Relu", [blocked], "context_relu")  # keeps the operation out of the convolution
        if self._lone:
            return raw
        if source not in self._inside:
            self._inside[source] = self._writer.node("Transpose", [raw], f"context_{raw}", perm=_TO_CHANNELS_FIRST)
        return self._inside[source]

    def _is_blocked(self, source: int) -> bool:
        """Whether a network input comes from a convolution of the context."""
        op, sources = self._network.nodes[0]
        if not self._lone or len(self._shapes.of(source)) == 2:
            return False
        if op.kind in CONVS:
            return op.residual and source == sources[-1]
        return op.kind in {"batch_norm", "flatten"} and op.height * op.width > 1


def _channels_first(shape: base.Shape) -> base.Shape:
    batch, height, width, channels = shape
    return (batch, channels, height, width)
