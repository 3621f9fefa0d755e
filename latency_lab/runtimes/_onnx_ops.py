"""How each kind of operation looks in an ONNX graph that `keras.Model.export(format="onnx")` wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from latency_lab.errors import UsageError
from latency_lab.ops import OpConfig
from latency_lab.runtimes import base

if TYPE_CHECKING:
    from latency_lab.runtimes._onnx import Writer

Builder = Callable[["Node", list[str]], str]
"""Writes the operators of one kind for these operands; their output tensor."""

_BUILDERS: dict[str, Builder] = {}


def builds(*kinds: str) -> Callable[[Builder], Builder]:
    """Registers what builds these kinds, or activations."""

    def register(function: Builder) -> Builder:
        _BUILDERS.update(dict.fromkeys(kinds, function))
        return function

    return register


class Node:
    """One node of a network while it is written.

    Args:
        writer: of the graph.
        op: what it does.
        index: of the node in its network.
        shape: of its output, channels last.
        operand_ranks: of its operands.
        channels_first: whether images are (batch, channels, height, width), operands and output alike.
        exported: with what an export leaves around the operation.
    """

    def __init__(
        self,
        writer: Writer,
        op: OpConfig,
        index: int,
        shape: base.Shape,
        operand_ranks: list[int],
        channels_first: bool,
        exported: bool,
    ) -> None:
        self.op = op
        self.index = index
        self.shape = shape
        self.operand_ranks = operand_ranks
        self.channels_first = channels_first
        self.exported = exported
        self._writer = writer

    def emit(self, operands: list[str]) -> str:
        """Write the operators of this node; its output tensor."""
        op = self.op
        if op.kind == "activation":
            return self._activation(operands[0])
        residual = [operands.pop()] if op.residual else []
        output = _BUILDERS[op.kind](self, operands)
        if residual:
            output = self.add("Add", [output, *residual], "add")
        return self._activation(output) if op.activation else output

    # ---- parts that builders share ----------------------------------------------------------------------------

    @property
    def channel_axis(self) -> int:
        """The axis of channels."""
        return 1 if self.channels_first else len(self.shape) - 1

    def add(self, kind: str, inputs: list[str], suffix: str = "", **attributes: Any) -> str:
        """Write one operator; its output."""
        name = f"op{self.index}_{suffix}" if suffix else f"op{self.index}"
        return self._writer.node(kind, inputs, name, **attributes)

    def constant(self, name: str, values: Any) -> str:
        """Write a constant of this node."""
        return self._writer.constant(f"op{self.index}.{name}", values)

    def shared(self, name: str, values: Any) -> str:
        """Write a constant that other nodes may have as well."""
        return self._writer.constant(name, values)

    def per_channel(self, name: str, values: base.Array) -> str:
        """Write a constant of one number a channel, in a shape that goes with the output."""
        if self.channels_first and len(self.shape) > 2:
            values = values.reshape(1, -1, *[1] * (len(self.shape) - 2))
        return self.constant(name, values)

    def bias(self) -> str:
        """Write the bias [out_channels]."""
        return self.constant("bias", base.bias(self.op, self.index))

    def one_position(self, data: str, rank: int = 4) -> str:
        """(batch, channels) as an image of one position, of so many axes in all."""
        op, ones = self.op, [1] * (rank - 2)
        shape = [op.batch, op.in_channels, *ones] if self.channels_first else [op.batch, *ones, op.in_channels]
        return self.add("Reshape", [data, self.constant("position", shape)], "reshape")

    def window(self) -> dict[str, Any]:
        """Attributes of a convolution or pooling over images."""
        (top, bottom), (left, right) = self.op.pads
        return {
            "kernel_shape": self.op.kernel_size,
            "strides": self.op.strides,
            "pads": [top, left, bottom, right],
        }

    def _activation(self, data: str) -> str:
        builder = _BUILDERS.get(self.op.activation or "")
        if builder is None:
            raise UsageError(f"An activation operation names what it does. Received: {self.op!r}")
        return builder(self, [data])
