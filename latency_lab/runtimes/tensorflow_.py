"""TensorFlow: frozen graphs as Keras models become them, float32 or float16, channels last; with or without XLA, on any
device."""

from __future__ import annotations

import re
from dataclasses import dataclass

from latency_lab.errors import UsageError
from latency_lab.extras import missing
from latency_lab.freeze import needed
from latency_lab.half import half_graphdef
from latency_lab.ops import ACTIVATIONS, BINARY, CASTS, POOLS, REORDERS, Network, OpConfig
from latency_lab.runtimes import base

_DEVICE = re.compile(r"(?:/?device:|/)?(CPU|GPU|TPU)(?::(\d+))?", re.IGNORECASE)

_KERNELS = ("conv2d", "conv3d", "conv2d_transpose", "depthwise_conv2d", "dense")
_CONVERSION = frozenset(f"{kind}+batch_norm" for kind in _KERNELS)
"""`convert.to_graphdef` folds it into the kernel before."""
_GRAPPLER = frozenset(
    ["conv2d+add"]
    + [f"conv2d+{activation}" for activation in ("relu", "relu6", "elu", "leaky_relu", "hard_swish")]
    + [f"conv3d+{activation}" for activation in ("relu", "relu6", "elu", "leaky_relu")]
    + [f"depthwise_conv2d+{activation}" for activation in ("relu", "relu6", "elu", "hard_swish")]
    + [f"dense+{activation}" for activation in ("relu", "relu6", "elu", "leaky_relu", "tanh", "sigmoid")]
)
"""Seen in the graph that TensorFlow 2.21 runs on x86 with oneDNN, which it turns on by itself for CPUs with AVX512-VNNI
or AMX: _FusedConv2D, _FusedDepthwiseConv2dNative, _FusedMatMul. A pad stays an operator of its own. Elsewhere it merges
less: conv2d+add was seen not to be."""
_XLA = frozenset(
    [f"{kind}+add" for kind in _KERNELS]
    + [f"{kind}+{a}" for kind in (*_KERNELS, *BINARY, "batch_norm", "concatenate") for a in sorted(ACTIVATIONS)]
    + ["pad+conv2d", "pad+depthwise_conv2d"]
)
"""Seen in XLA's optimised program for the CPU: a convolution, then one loop over bias, residual and activation; a pad
is the convolution's own."""


@dataclass(frozen=True, slots=True)
class TensorFlow:
    """Builds .pb files: a serialised GraphDef whose weights are constants.

    Its placeholders are "input0", "input1", ..., and its outputs "output0", "output1", ..., in the network's order.

    Attributes:
        xla: compile the whole graph by XLA (`tf.function(jit_compile=True)`).
        device: "CPU:0", "GPU:0", "TPU:0", ...; "" for the CPU, unnamed.

    Example:
        >>> from latency_lab import runtimes
        >>> runtimes.get("tensorflow-xla:/GPU:0").name
        'tensorflow-xla:GPU:0'
        >>> runtimes.get("tensorflow").suffix
        '.pb'
    """

    xla: bool = False
    device: str = ""

    @property
    def name(self) -> str:
        """ "tensorflow" or "tensorflow-xla", with ":" and the device where one was named."""
        return ("tensorflow-xla" if self.xla else "tensorflow") + (f":{self.device}" if self.device else "")

    @property
    def suffix(self) -> str:
        """Of its model files."""
        return ".pb"

    @property
    def times_kernels(self) -> bool:
        """No: TensorFlow's time is that of the call."""
        return False

    @property
    def pays_for_calls(self) -> bool:
        """Not so much that the whole-network correction would not see it."""
        return False

    @property
    def conversion_fusions(self) -> frozenset[str]:
        """What freezing merges: batch norms into the kernels before them."""
        return _CONVERSION

    @property
    def expected_fusions(self) -> frozenset[str]:
        """What TensorFlow's graph optimiser, or XLA, makes one kernel."""
        return _XLA if self.xla else _GRAPPLER

    def on(self, device: str) -> TensorFlow:
        """The same runtime on a device.

        Args:
            device: "CPU", "GPU:1", "/TPU:0", ...; the first of its kind without a number.

        Raises:
            UsageError: this names no device.
        """
        found = _DEVICE.fullmatch(device)
        if found is None:
            raise UsageError(
                f"Invalid device in runtime={self.name}:{device}. Expected CPU, GPU or TPU, with :0, :1, ... where "
                "there is more than one. Received: " + repr(device)
            )
        return TensorFlow(self.xla, f"{found[1].upper()}:{int(found[2] or 0)}")

    def fusions(self, precision: str) -> tuple[frozenset[str], frozenset[str]]:
        """Merges before and on loading of models of this precision.

        Raises:
            UsageError: it is int8.
        """
        if precision == "int8":
            raise UsageError(f"{self.name} runs float32 and float16 networks: ask for one of these. Received: 'int8'")
        return self.conversion_fusions, self.expected_fusions

    def build(self, network: Network) -> bytes:
        """Bytes of a frozen GraphDef of this network: inputs and outputs channels last, in the network's order.

        Raises:
            UnsupportedOpError: an operation cannot be built.
            UsageError: the nodes do not fit together.
            MissingRuntimeError: tensorflow is not installed.
        """
        base.check(self, network)
        if base.in_float16(network):
            return half_graphdef(self.build(network.of_type("float32")))
        shapes = base.tensor_shapes(network)
        try:
            import tensorflow as tf

            from latency_lab.runtimes._tf_ops import Node
        except ModuleNotFoundError as error:
            raise missing(error, "A TensorFlow graph") or error from error
        with tf.Graph().as_default() as graph:
            inputs = [tf.compat.v1.placeholder(tf.float32, s, f"input{k}") for k, s in enumerate(shapes.inputs)]
            outputs: list[object] = []
            for i, (op, sources) in enumerate(network.nodes):
                operands = [outputs[source] if source >= 0 else inputs[-1 - source] for source in sources]
                outputs.append(Node(op, i, shapes.outputs[i]).emit(operands))
            last = [tf.identity(outputs[i], f"output{k}").op.name for k, i in enumerate(network.outputs)]
        return bytes(needed(graph.as_graph_def(), last).SerializeToString())

    def contexts_of(self, op: OpConfig) -> tuple[OpConfig, ...]:
        """Nothing."""
        return ()

    def reason_unsupported(self, op: OpConfig) -> str | None:
        """None if the operation can be built, else why not, in a sentence."""
        if op.dtype not in {"float32", "float16"}:
            return f"only float32 and float16 models are built, this is {op.dtype}."
        if op.kind in REORDERS | CASTS:
            return f"a TensorFlow graph of floats has no {op.kind}."
        if op.broadcast == "innermost":
            return "TensorFlow keeps channels last here: a constant by channels is innermost already."
        padded = isinstance(op.padding, tuple) and any(map(any, op.padding))
        if op.kind in POOLS and padded:
            return "TensorFlow pools pad as 'same' or 'valid', not by given counts."
        if op.kind == "conv3d" and padded:
            return "given pads of a conv3d leave out its third axis."
        if op.kind == "depthwise_conv2d" and op.strides[0] != op.strides[1]:
            return "TensorFlow has no depthwise convolution whose two strides differ."
        if op.kind in {"conv2d", "conv3d", "depthwise_conv2d"} and max(op.dilation) > 1 and max(op.strides) > 1:
            return "TensorFlow has no convolution that is strided and dilated."
        if op.kind == "conv2d_transpose" and (op.groups > 1 or max(op.dilation) > 1):
            return "TensorFlow has no transposed convolution on the CPU that is grouped or dilated."
        if op.kind in POOLS and op.dilation != (1, 1):
            return "pools that are dilated are not built."
        return base.reason_of_groups(op) or base.reason_of_depth(op)
