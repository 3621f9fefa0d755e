"""LiteRT (TFLite): flatbuffers as the TensorFlow converter writes them, channels last, float32."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from latency_lab.errors import UsageError
from latency_lab.extras import missing
from latency_lab.ops import Network, OpConfig
from latency_lab.runtimes import base

if TYPE_CHECKING:
    from latency_lab.runtimes._tflite import Writer

_FUSABLE = frozenset({"relu", "relu6"})
_FUSING = ("conv2d", "depthwise_conv2d", "dense", "add", "multiply", "batch_norm", "max_pool", "avg_pool")
"""Kinds that the converter fuses ReLU and ReLU6 into. Seen not to: concatenate, pad, global_avg_pool."""
_BINARY = {"add": ("ADD", "Add"), "multiply": ("MUL", "Mul")}
_SIMPLE_ACTIVATIONS = {
    "relu": "RELU",
    "relu6": "RELU6",
    "sigmoid": "LOGISTIC",
    "tanh": "TANH",
    "hard_swish": "HARD_SWISH",
    "elu": "ELU",
    "exponential": "EXP",
}
_LEAKY_SLOPE = 0.2
"""Of Keras' leaky_relu activation."""


class LiteRT:
    """Builds .tflite files.

    Each node's last tensor is named "op{i}", those before it "op{i}_...".

    Example:
        >>> from latency_lab import runtimes
        >>> from latency_lab.ops import Network, OpConfig
        >>> op = OpConfig("conv2d", height=8, width=8, in_channels=4, out_channels=8, activation="relu")
        >>> runtimes.get("litert").build(Network.of(op))[4:8]
        b'TFL3'
    """

    name = "litert"
    suffix = ".tflite"
    times_kernels = False
    conversion_fusions = frozenset(
        [f"{kind}+batch_norm" for kind in ("conv2d", "depthwise_conv2d", "dense")]
        + [f"{kind}+{activation}" for kind in _FUSING for activation in sorted(_FUSABLE)]
        + ["pad+conv2d", "pad+depthwise_conv2d"]  # a pad that is not what "same" comes to is in the merged model
    )
    expected_fusions: frozenset[str] = frozenset()

    def build(self, network: Network) -> bytes:
        """Bytes of a .tflite file of this network: inputs and outputs channels last, in the network's order.

        Raises:
            UnsupportedOpError: an operation cannot be built.
            UsageError: the nodes do not fit together.
            MissingRuntimeError: ai-edge-litert is not installed.
        """
        base.check(self, network)
        shapes = base.tensor_shapes(network)
        try:
            from latency_lab.runtimes._tflite import Writer
        except ModuleNotFoundError as error:
            raise missing(error, "A TFLite file") or error from error
        writer = Writer()
        inputs = [writer.tensor(f"input{k}", shape) for k, shape in enumerate(shapes.inputs)]
        outputs: list[int] = []
        for i, (op, sources) in enumerate(network.nodes):
            operands = [outputs[source] if source >= 0 else inputs[-1 - source] for source in sources]
            ranks = [len(shapes.of(source)) for source in sources]
            node = _Node(writer, op, i, shapes.outputs[i], ranks)
            outputs.append(node.emit(operands))
            writer.rename(outputs[-1], f"op{i}")
        return writer.to_bytes(inputs, [outputs[i] for i in network.outputs])

    def reason_unsupported(self, op: OpConfig) -> str | None:
        """None if the operation can be built, else why not, in a sentence."""
        if op.dtype != "float32":
            return f"only float32 models are built, this is {op.dtype}."
        if op.kind in {"max_pool", "avg_pool"} and isinstance(op.padding, tuple) and any(map(any, op.padding)):
            return "TFLite pools pad as 'same' or 'valid', not by given counts."
        if op.kind == "depthwise_conv2d" and op.dilation != (1, 1) and op.strides != (1, 1):
            return "TFLite has no depthwise convolution that is strided and dilated."
        return None


class _Node:
    """One node of the network while it is written."""

    def __init__(self, writer: Writer, op: OpConfig, index: int, shape: base.Shape, operand_ranks: list[int]) -> None:
        self._writer = writer
        self._op = op
        self._index = index
        self._shape = shape
        self._operand_ranks = operand_ranks

    def emit(self, operands: list[int]) -> int:
        """Write the operators of this node; its output tensor."""
        op = self._op
        fused = op.activation if op.activation in _FUSABLE and op.kind in _FUSING else None
        if op.kind == "activation":
            return self._activation(operands[0], op.activation)
        residual = operands.pop() if op.residual else None
        output = getattr(self, f"_{_METHODS.get(op.kind, op.kind)}")(operands, None if op.residual else fused)
        if residual is not None:
            output = self._operator("ADD", [output, residual], "Add", activation=fused)
        return output if fused == op.activation else self._activation(output, op.activation)

    # ---- kinds ------------------------------------------------------------------------------------------------

    def _conv2d(self, operands: list[int], fused: str | None) -> int:
        data, padding = self._padded(operands[0])
        kernel, bias = self._constant("kernel", base.kernel(self._op, self._index)), self._bias()
        window = {**self._window(), "padding": padding}
        return self._operator("CONV_2D", [data, kernel, bias], "Conv2D", activation=fused, **window)

    def _depthwise_conv2d(self, operands: list[int], fused: str | None) -> int:
        op = self._op
        data, padding = self._padded(operands[0])
        kernel, bias = self._constant("kernel", base.kernel(op, self._index)[None]), self._bias()
        window = {**self._window(), "padding": padding, "depthMultiplier": op.out_channels // op.in_channels}
        return self._operator("DEPTHWISE_CONV_2D", [data, kernel, bias], "DepthwiseConv2D", activation=fused, **window)

    def _dense(self, operands: list[int], fused: str | None) -> int:
        kernel = self._constant("kernel", base.kernel(self._op, self._index))
        bias = self._bias() if self._op.use_bias else -1
        return self._operator("FULLY_CONNECTED", [operands[0], kernel, bias], "FullyConnected", activation=fused)

    def _binary(self, operands: list[int], fused: str | None) -> int:
        code, options = _BINARY[self._op.kind]
        output, *others = operands
        if self._op.broadcast and self._operand_ranks[1] == 2 and self._op.batch > 1:
            others = [self._reshape(others[0], (self._op.batch, 1, 1, self._op.in_channels))]
        for k, other in enumerate(others):
            output = self._operator(code, [output, other], options, activation=fused if k == len(others) - 1 else None)
        return output

    def _concatenate(self, operands: list[int], _fused: str | None) -> int:
        return self._operator("CONCATENATION", operands, "Concatenation", axis=-1)

    def _batch_norm(self, operands: list[int], fused: str | None) -> int:
        scale = self._constant("scale", base.scale(self._op, self._index))
        scaled = self._operator("MUL", [operands[0], scale], "Mul")
        return self._operator("ADD", [scaled, self._bias()], "Add", activation=fused)

    def _pool(self, operands: list[int], fused: str | None) -> int:
        op = self._op
        code = "MAX_POOL_2D" if op.kind == "max_pool" else "AVERAGE_POOL_2D"
        window = {"strideH": op.strides[0], "strideW": op.strides[1], "padding": int(op.padding != "same")}
        window |= {"filterHeight": op.kernel_size[0], "filterWidth": op.kernel_size[1]}
        return self._operator(code, operands, "Pool2D", activation=fused, **window)

    def _global_pool(self, operands: list[int], _fused: str | None) -> int:
        code = "MEAN" if self._op.kind == "global_avg_pool" else "REDUCE_MAX"
        axes = self._constant("axes", [1, 2])
        return self._operator(code, [operands[0], axes], "Reducer", keepDims=len(self._shape) == 4)

    def _softmax(self, operands: list[int], _fused: str | None) -> int:
        return self._operator("SOFTMAX", operands, "Softmax", beta=1.0)

    def _pad(self, operands: list[int], _fused: str | None) -> int:
        return self._pad_by(operands[0])

    def _flatten(self, operands: list[int], _fused: str | None) -> int:
        return self._reshape(operands[0], self._shape)

    def _transpose(self, operands: list[int], _fused: str | None) -> int:
        return self._operator("TRANSPOSE", [operands[0], self._constant("permutation", [0, 3, 1, 2])], "Transpose")

    def _activation(self, data: int, activation: str | None) -> int:
        if activation is None:
            raise UsageError(f"An activation operation names what it does. Received: {self._op!r}")
        if activation == "silu":
            return self._operator("MUL", [data, self._operator("LOGISTIC", [data])], "Mul")
        if activation == "hard_sigmoid":
            shifted = self._operator("ADD", [data, self._constant("three", 3.0)], "Add", activation="relu6")
            return self._operator("MUL", [shifted, self._constant("sixth", 1 / 6)], "Mul")
        if activation == "gelu":
            return self._operator("GELU", [data], "Gelu")
        if activation == "leaky_relu":
            return self._operator("LEAKY_RELU", [data], "LeakyRelu", alpha=_LEAKY_SLOPE)
        return self._operator(_SIMPLE_ACTIVATIONS[activation], [data])

    # ---- parts ------------------------------------------------------------------------------------------------

    def _operator(self, code: str, inputs: list[int], options: str = "", **fields: object) -> int:
        return self._writer.operator(code, inputs, f"op{self._index}_{code.lower()}", self._shape, options, **fields)

    def _constant(self, name: str, values: object) -> int:
        return self._writer.constant(f"op{self._index}_{name}", values)  # type: ignore[arg-type]

    def _bias(self) -> int:
        return self._constant("bias", base.bias(self._op, self._index))

    def _window(self) -> dict[str, int]:
        (rows, columns), dilation = self._op.strides, self._op.dilation
        return {"strideH": rows, "strideW": columns, "dilationHFactor": dilation[0], "dilationWFactor": dilation[1]}

    def _padded(self, data: int) -> tuple[int, int]:
        """Input of a conv and its padding code (0 same, 1 valid). Given counts are an operator of their own, unless
        they are what "same" comes to: the converter sees that."""
        op = self._op
        if op.padding == "same" or op.pads == dataclasses.replace(op, padding="same").pads:
            return data, 0
        return (self._pad_by(data) if any(map(any, op.pads)) else data), 1

    def _pad_by(self, data: int) -> int:
        op = self._op
        (top, bottom), (left, right) = op.pads
        counts = self._constant("pads", [[0, 0], [top, bottom], [left, right], [0, 0]])
        shape = (op.batch, op.height + top + bottom, op.width + left + right, op.in_channels)
        return self._writer.operator("PAD", [data, counts], f"op{self._index}_pad", shape, "Pad")

    def _reshape(self, data: int, shape: base.Shape) -> int:
        name, counts = f"op{self._index}_reshape", self._constant("shape", list(shape))
        return self._writer.operator("RESHAPE", [data, counts], name, shape, "Reshape", newShape=list(shape))


_METHODS = {
    "add": "binary",
    "multiply": "binary",
    "max_pool": "pool",
    "avg_pool": "pool",
    "global_avg_pool": "global_pool",
    "global_max_pool": "global_pool",
}
