"""LiteRT (TFLite): flatbuffers as the TensorFlow converter writes them, channels last, float32 and int8."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latency_lab.errors import UsageError
from latency_lab.extras import missing
from latency_lab.ops import BINARY, CASTS, GLOBAL_POOLS, POOLS, REORDERS, Network, OpConfig, has_short_rows
from latency_lab.runtimes import base, worker

if TYPE_CHECKING:
    from latency_lab.runtimes._tflite import Quantisation, Writer

_FUSABLE = frozenset({"relu", "relu6"})
_FUSING = frozenset(
    {"conv2d", "depthwise_conv2d", "conv2d_transpose", "conv3d", "dense", "add", "subtract", "multiply", "divide"}
    | {"batch_norm", "layer_norm", "max_pool", "avg_pool"}
)
"""Kinds that the converter fuses ReLU and ReLU6 into. Seen not to: concatenate, pad, global_avg_pool, maximum,
minimum, squared_difference, group_norm."""
_FUSING_BY_BIAS = frozenset({"conv2d_transpose", "conv3d"})
"""Kinds that fuse only where they have a bias."""
_WITH_DEPTH = (
    frozenset({"conv3d", "activation", "batch_norm", "softmax", "concatenate", "flatten"}) | BINARY | GLOBAL_POOLS
)
"""Kinds that are written over three axes of positions."""
_DEVICES = ("cpu", "gpu", "npu", "edgetpu")
_COMPILED_ALONE = (
    "Coral's Edge TPU runs what edgetpu_compiler makes of a whole int8 model, and no operation as it is built here: it "
    "has no profile. A .tflite file that edgetpu_compiler wrote can be measured and compared: latency-lab measure and "
    "latency-lab compare."
)
_READS_POSITIVE = frozenset({"log", "sqrt", "rsqrt"})
"""Activations whose int8 kernels refuse negative numbers."""


@dataclass(frozen=True, slots=True)
class LiteRT:
    """Builds .tflite files.

    Each node's last tensor is named "op{i}", those before it "op{i}_...". An operation of dtype "int8" is written as
    post-training quantisation writes it, inputs and outputs of the file int8 too; where TFLite has no int8 kernel
    (conv3d, local_response_norm, elu, square, negative), as floats between a DEQUANTIZE and a QUANTIZE.

    LiteRT's GPU accelerator computes files of floats in float16 unless it is told `enforce_f32`: a float16 network is a
    file of floats for "gpu", with a mark at its end for the worker to see that it does.

    Attributes:
        device: "gpu", "npu", "edgetpu" or the path of a delegate's library there, with options; "" for the CPU.

    Example:
        >>> from latency_lab import runtimes
        >>> from latency_lab.ops import Network, OpConfig
        >>> op = OpConfig("conv2d", height=8, width=8, in_channels=4, out_channels=8, activation="relu")
        >>> runtimes.get("litert").build(Network.of(op))[4:8]
        b'TFL3'
        >>> runtimes.get("litert:gpu,enforce_f32=1").name
        'litert:gpu,enforce_f32=1'
    """

    device: str = ""

    suffix = ".tflite"
    times_kernels = False
    conversion_fusions = frozenset(
        [f"{kind}+batch_norm" for kind in ("conv2d", "depthwise_conv2d", "conv2d_transpose", "dense")]
        + [f"{kind}+{activation}" for kind in sorted(_FUSING) for activation in sorted(_FUSABLE)]
        + ["pad+conv2d", "pad+depthwise_conv2d"]  # a pad that is not what "same" comes to is in the merged model
    )
    expected_fusions = frozenset[str]()

    @property
    def name(self) -> str:
        """ "litert", with ":" and the device where it is not the CPU."""
        return f"litert:{self.device}" if self.device else "litert"

    @property
    def pays_for_calls(self) -> bool:
        """On an accelerator."""
        return bool(self.device)

    def on(self, device: str) -> LiteRT:
        """The same runtime on a device.

        Args:
            device: "gpu", "npu", "edgetpu", or the path of the library of a delegate there: what has "." or "/" in it.
                Options stand behind commas: "gpu,enforce_f32=1".

        Raises:
            UsageError: this names no device.
        """
        given, options = base.device_and_options("litert", device)
        short = given.lower()
        if short not in _DEVICES and not {".", "/"} & set(given):
            near = difflib.get_close_matches(short, _DEVICES, n=1)
            hint = f" Did you mean 'litert:{near[0]}'?" if near else ""
            raise UsageError(
                f"Invalid device. Expected {', '.join(_DEVICES)} or the path of a delegate's library behind 'litert:'. "
                f"Received: runtime={f'litert:{device}'!r}.{hint}"
            )
        if short == "cpu":
            return LiteRT()
        return LiteRT(worker.device_name(short if short in _DEVICES else given, options))

    def fusions(self, precision: str) -> tuple[frozenset[str], frozenset[str]]:
        """Merges before and on loading of models of this precision: the converter does the same for all.

        Raises:
            UsageError: the device computes in another precision, or no operation that is built here.
        """
        reason = self._reason_of_precision(precision)
        if reason:
            raise UsageError(f"{self.name}: {reason}")
        return self.conversion_fusions, self.expected_fusions

    def build(self, network: Network) -> bytes:
        """Bytes of a .tflite file of this network: inputs and outputs channels last, in the network's order.

        Raises:
            UnsupportedOpError: an operation cannot be built.
            UsageError: the nodes do not fit together.
            MissingRuntimeError: ai-edge-litert is not installed.
        """
        base.check(self, network)
        network = base.in_context(self, network)
        if base.in_float16(network):
            return self.build(network.of_type("float32")) + worker.FLOAT16_MARK
        shapes = base.tensor_shapes(network)
        try:
            from latency_lab.runtimes._tflite import Writer
        except ModuleNotFoundError as error:
            raise missing(error, "A TFLite file") or error from error
        writer = Writer()
        inputs = [
            writer.tensor(f"input{k}", shape, _input_quantisation(network, -1 - k))
            for k, shape in enumerate(shapes.inputs)
        ]
        outputs: list[int] = []
        for i, (op, sources) in enumerate(network.nodes):
            operands = [outputs[source] if source >= 0 else inputs[-1 - source] for source in sources]
            outputs.append(_emit(writer, op, i, shapes.outputs[i], operands))
            writer.rename(outputs[-1], f"op{i}")
        return writer.to_bytes(inputs, [outputs[i] for i in network.outputs])

    def contexts_of(self, op: OpConfig) -> tuple[OpConfig, ...]:
        """On the CPU, a number for each of few channels, as images are normalised by, between two products by a number.

        Inside of a network XNNPACK computes it in place, where each of its short rows waits for the one before to be
        written: three times as long as from one buffer into another.
        """
        if self.device or not has_short_rows(op) or op.dtype != "float32" or op.depth > 1:
            return ()
        scale = dataclasses.replace(op, kind="multiply", broadcast="scalar", activation=None)
        return (scale, scale)

    def reason_unsupported(self, op: OpConfig) -> str | None:
        """None if the operation can be built, else why not, in a sentence."""
        by_device = op.dtype == "float16" or self._is_edge_tpu
        reason = self._reason_of_precision(op.dtype) if by_device else _reason_of_type(op)
        return reason or _reason_of_kind(op) or _reason_of_geometry(op) or base.reason_of_groups(op)

    def _reason_of_precision(self, precision: str) -> str | None:
        """Why the device does not compute in a precision; None where it does."""
        name, options = base.device_and_options("litert", self.device or "cpu")
        if precision == "float16" and name != "gpu":
            return "LiteRT computes float16 weights in float32. Ask for precision float32, or name litert:gpu."
        if precision == "float16" and worker.forces_float32(options):
            return "enforce_f32 computes in float32. Ask for precision float32, or leave the option out."
        if precision == "float32" and name == "gpu" and not worker.forces_float32(options):
            return (
                "LiteRT's GPU accelerator computes in float16 unless it is told otherwise. Ask for precision float16, "
                "or name litert:gpu,enforce_f32=1."
            )
        return _COMPILED_ALONE if self._is_edge_tpu else None

    @property
    def _is_edge_tpu(self) -> bool:
        """By its name, or by that of its library."""
        name = self.device.partition(",")[0]
        return name == "edgetpu" or "libedgetpu" in name


def _emit(writer: Writer, op: OpConfig, index: int, shape: base.Shape, operands: list[int]) -> int:
    """Write the operators of a node; its output tensor."""
    from latency_lab.runtimes import _tflite_arithmetic, _tflite_kernels, _tflite_moves  # noqa: F401 (they register)
    from latency_lab.runtimes._tflite_activations import activation
    from latency_lab.runtimes._tflite_node import KINDS, Node

    for operand in operands:
        if (writer.quantisation(operand) is not None) != _reads_int8(op):
            raise UsageError(
                f"Node {index} ({op.key}) reads {'int8' if _reads_int8(op) else 'float32'}, its operand is of the "
                "other type. Put a quantize or dequantize operation between the two."
            )
    node = Node(writer, op, index, shape)
    if op.kind == "activation":
        return activation(node, operands[0], str(op.activation))
    residual = operands.pop() if op.residual else None
    fused = op.activation if _fuses(op) else None
    output = KINDS[op.kind](node, operands, None if op.residual else fused)
    if residual is not None:
        output = node.operator("ADD", [output, residual], "Add", activation=fused)
    return output if fused == op.activation else activation(node, output, str(op.activation))


def _fuses(op: OpConfig) -> bool:
    """Whether the activation of an operation is fused into its last operator."""
    if op.activation not in _FUSABLE or op.kind not in _FUSING:
        return False
    return op.residual or op.use_bias or op.kind not in _FUSING_BY_BIAS


def _reads_int8(op: OpConfig) -> bool:
    return op.dtype == "int8" and op.kind != "quantize"


def _input_quantisation(network: Network, index: int) -> Quantisation | None:
    """What the integers of a network input stand for; None of floats."""
    from latency_lab.runtimes._tflite_node import ACTIVATION, POSITIVE

    readers = [op for op, sources in network.nodes if index in sources]
    if not _reads_int8(readers[0]):
        return None
    positive = any(op.kind == "activation" and op.activation in _READS_POSITIVE for op in readers)
    return POSITIVE if positive else ACTIVATION


# ---- what cannot be built -----------------------------------------------------------------------------------------


def _reason_of_type(op: OpConfig) -> str | None:
    if op.dtype not in {"float32", "int8"}:
        return f"only float32 and int8 models are built, this is {op.dtype}."
    if op.kind in CASTS and op.dtype != "int8":
        return f"a {op.kind} operation is of dtype 'int8', this is {op.dtype}."
    return None


def _reason_of_kind(op: OpConfig) -> str | None:
    if op.kind in REORDERS:
        return "LiteRT keeps channels last throughout: there is no operator that reorders them."
    if op.broadcast == "innermost":
        return "LiteRT keeps channels last throughout: a constant by channels is innermost already."
    if op.activation == "erf":
        return "TFLite has no operator for erf; a GELU is one operator of its own."
    if op.kind == "activation" and op.activation is None:
        return "an activation operation names what it does."
    if op.kind == "divide" and op.operands > 1 and op.dtype == "int8":
        return "TFLite's int8 DIV refuses to run where the divisor has a 0, as made-up numbers have."
    if op.depth > 1 and op.kind not in _WITH_DEPTH:
        return f"{op.kind} is not written over three axes of positions."
    return None


def _reason_of_geometry(op: OpConfig) -> str | None:
    explicit = isinstance(op.padding, tuple) and any(map(any, op.padding))
    if explicit and op.kind in POOLS | {"conv3d"}:
        return f"TFLite pads a {op.kind} as 'same' or 'valid', not by given counts."
    if op.kind in POOLS and op.dilation != (1, 1):
        return f"TFLite has no {op.kind} that is dilated."
    if op.kind == "depthwise_conv2d" and op.dilation != (1, 1) and op.strides != (1, 1):
        return "TFLite has no depthwise convolution that is strided and dilated."
    if op.kind == "conv2d_transpose" and op.dilation != (1, 1):
        return "TFLite has no transposed convolution that is dilated."
    if op.kind in {"conv2d_transpose", "conv3d"} and op.groups > 1:
        return f"TFLite has no {op.kind} of groups of channels."
    return None
