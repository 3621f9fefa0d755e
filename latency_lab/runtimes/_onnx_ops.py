"""How each kind of operation looks in an ONNX graph that `keras.Model.export(format="onnx")` wrote."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from latency_lab.errors import UsageError
from latency_lab.ops import OpConfig
from latency_lab.runtimes import base

if TYPE_CHECKING:
    from latency_lab.runtimes._onnx import Writer

_BINARY = {"add": "Add", "multiply": "Mul"}
_SIMPLE_ACTIVATIONS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "elu": "Elu", "exponential": "Exp"}
_LEAKY_SLOPE = 0.2
"""Of Keras' leaky_relu activation."""


class Node:
    """One node of a network while it is written, images channels first.

    Args:
        writer: of the graph.
        op: what it does.
        index: of the node in its network.
        rank: of its output: 4 for an image, 2 for (batch, channels).
        operand_ranks: of its operands.
        exported: with what an export leaves around the operation.
    """

    def __init__(
        self, writer: Writer, op: OpConfig, index: int, rank: int, operand_ranks: list[int], exported: bool
    ) -> None:
        self._writer = writer
        self._op = op
        self._index = index
        self._rank = rank
        self._operand_ranks = operand_ranks
        self._exported = exported

    def emit(self, operands: list[str]) -> str:
        """Write the operators of this node; its output tensor."""
        op = self._op
        if op.kind == "activation":
            return self._activation(operands[0], op.activation)
        residual = [operands.pop()] if op.residual else []
        output: str = getattr(self, f"_{_METHODS.get(op.kind, op.kind)}")(operands)
        if residual:
            output = self._node("Add", [output, *residual], "add")
        return self._activation(output, op.activation) if op.activation else output

    # ---- kinds ------------------------------------------------------------------------------------------------

    def _conv2d(self, operands: list[str]) -> str:
        return self._conv(operands[0], base.kernel(self._op, self._index).transpose(0, 3, 1, 2), self._op.groups)

    def _depthwise_conv2d(self, operands: list[str]) -> str:
        kernel = base.kernel(self._op, self._index)[None].transpose(3, 0, 1, 2)
        return self._conv(operands[0], kernel, self._op.in_channels)

    def _conv(self, data: str, kernel: base.Array, group: int) -> str:
        op = self._op
        if op.height * op.width == 1 and self._exported:  # what is left of the transposes around one position
            data = self._one_position(data)
        inputs = [data, self._constant("kernel", kernel), *([self._bias()] if op.use_bias else [])]
        return self._node("Conv", inputs, **self._window(), dilations=op.dilation, group=group)

    def _dense(self, operands: list[str]) -> str:
        kernel = self._constant("kernel", base.kernel(self._op, self._index).T)
        if self._op.use_bias:
            return self._node("Gemm", [operands[0], kernel, self._bias()])
        return self._node("MatMul", [operands[0], kernel])

    def _binary(self, operands: list[str]) -> str:
        op = self._op
        output, *others = operands
        if op.broadcast and self._operand_ranks[1] == 2:
            others = [self._one_position(others[0])]
        for k, other in enumerate(others):
            output = self._node(_BINARY[op.kind], [output, other], str(k) if k else "")
        return output

    def _concatenate(self, operands: list[str]) -> str:
        return self._node("Concat", operands, axis=1)

    def _batch_norm(self, operands: list[str]) -> str:
        shape = (1, self._op.in_channels, 1, 1) if self._rank == 4 else (self._op.in_channels,)
        scale = self._constant("scale", base.scale(self._op, self._index).reshape(shape))
        scaled = self._node("Mul", [operands[0], scale])
        shift = self._constant("shift", base.bias(self._op, self._index).reshape(shape))
        return self._node("Add", [scaled, shift], "shift")

    def _pool(self, operands: list[str]) -> str:
        if self._op.kind == "max_pool":
            return self._node("MaxPool", operands, **self._window())
        merged_pad = int(isinstance(self._op.padding, tuple))  # zeros that were there before the pooling count
        return self._node("AveragePool", operands, **self._window(), count_include_pad=merged_pad)

    def _global_pool(self, operands: list[str]) -> str:
        pooled = self._node("GlobalAveragePool" if self._op.kind == "global_avg_pool" else "GlobalMaxPool", operands)
        return pooled if self._rank == 4 else self._node("Squeeze", [pooled, self._constant("axes", [2, 3])], "squeeze")

    def _softmax(self, operands: list[str]) -> str:
        return self._node("Softmax", operands, axis=1)

    def _pad(self, operands: list[str]) -> str:
        (top, bottom), (left, right) = self._op.pads
        return self._node("Pad", [operands[0], self._constant("pads", [0, 0, top, left, 0, 0, bottom, right])])

    def _flatten(self, operands: list[str]) -> str:
        data = operands[0]
        if self._op.height * self._op.width > 1:
            data = self._node("Transpose", [data], "transpose", perm=(0, 2, 3, 1))
        return self._node("Reshape", [data, self._constant("shape", [self._op.batch, self._op.out_channels])])

    # ---- activations ------------------------------------------------------------------------------------------

    def _activation(self, data: str, name: str | None) -> str:
        if name in _SIMPLE_ACTIVATIONS:
            return self._node(_SIMPLE_ACTIVATIONS[name], [data], name)
        if name == "relu6":
            return self._clip(data, name)
        if name == "leaky_relu":
            return self._node("LeakyRelu", [data], name, alpha=_LEAKY_SLOPE)
        if name == "silu":
            return self._node("Mul", [data, self._node("Sigmoid", [data], "silu_sigmoid")], name)
        if name == "hard_sigmoid":
            return self._hard_sigmoid(data)
        if name == "hard_swish":
            return self._node("Mul", [data, self._hard_sigmoid(data)], name)
        if name == "gelu":
            return self._gelu(data)
        raise UsageError(f"An activation operation names what it does. Received: {self._op!r}")

    def _clip(self, data: str, name: str) -> str:
        return self._node("Clip", [data, self._writer.constant("zero", 0.0), self._writer.constant("six", 6.0)], name)

    def _hard_sigmoid(self, data: str) -> str:
        """relu6(x + 3) / 6"""
        three = self._writer.constant(f"three{self._rank}", [[[[3.0]]]] if self._rank == 4 else [3.0])
        clipped = self._clip(self._node("Add", [data, three], "hard_sigmoid_add"), "hard_sigmoid_clip")
        return self._node("Mul", [clipped, self._writer.constant("sixth", 1 / 6)], "hard_sigmoid")

    def _gelu(self, data: str) -> str:
        """x / 2 * (1 - erf(-x / sqrt(2)))"""
        half = self._node("Mul", [self._writer.constant("half", 0.5), data], "gelu_half")
        negative = self._node("Neg", [data], "gelu_neg")
        scaled = self._node("Mul", [negative, self._writer.constant("sqrt_half", math.sqrt(0.5))], "gelu_mul")
        erf = self._node("Erf", [scaled], "gelu_erf")
        complement = self._node("Sub", [self._writer.constant("one", 1.0), erf], "gelu_sub")
        return self._node("Mul", [half, complement], "gelu")

    # ---- parts ------------------------------------------------------------------------------------------------

    def _node(self, kind: str, inputs: list[str], suffix: str = "", **attributes: Any) -> str:
        name = f"op{self._index}_{suffix}" if suffix else f"op{self._index}"
        return self._writer.node(kind, inputs, name, **attributes)

    def _constant(self, name: str, values: Any) -> str:
        return self._writer.constant(f"op{self._index}.{name}", values)

    def _bias(self) -> str:
        return self._constant("bias", base.bias(self._op, self._index))

    def _one_position(self, data: str) -> str:
        """(batch, channels) as an image of one position."""
        return self._node(
            "Reshape", [data, self._constant("position", [self._op.batch, self._op.in_channels, 1, 1])], "reshape"
        )

    def _window(self) -> dict[str, Any]:
        (top, bottom), (left, right) = self._op.pads
        return {
            "kernel_shape": self._op.kernel_size,
            "strides": self._op.strides,
            "pads": [top, left, bottom, right],
        }


_METHODS = {
    "add": "binary",
    "multiply": "binary",
    "max_pool": "pool",
    "avg_pool": "pool",
    "global_avg_pool": "global_pool",
    "global_max_pool": "global_pool",
}
