"""One node of a network while it is written as TFLite operators, and who writes which kind.

Types follow the data: an operator that reads int8 tensors is written as the converter's post-training quantisation
writes it, one that reads floats in floats.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab.ops import OpConfig
from latency_lab.runtimes import base
from latency_lab.runtimes._tflite import Quantisation, Writer

ACTIVATION = Quantisation(0.05, -20)
"""Of all int8 tensors that are free to choose: -5.4 to 7.35. One for all, so that concatenations and maxima need no
requantising, as in a converted network, where the quantiser carries their scale back to what they read."""
POSITIVE = Quantisation(0.025, -128)
"""Of int8 tensors that are never negative: what a square root or logarithm must read."""
PROBABILITY = Quantisation(1 / 256, -128)
"""Of what a sigmoid or softmax gives: TFLite asks for just this."""
TANH = Quantisation(1 / 128, 0)
"""Of what a tanh gives: TFLite asks for just this."""

_INT8_VERSION = 2
_INT8_VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "TILE": 3}
_INT8_VERSIONS |= dict.fromkeys(("RESHAPE", "HARD_SWISH", "LEAKY_RELU", "PRELU", "DIV", "SELECT", "QUANTIZE"), 1)
"""Versions of the converter's int8 operators, where not 2. Those of float operators are 1, unless a kind says so."""

Arrange = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
Emit = Callable[["Node", list[int], "str | None"], int]
"""(node, operand tensors, fused activation) to the output tensor; writes the operators of one kind."""
KINDS: dict[str, Emit] = {}


def writes(*kinds: str) -> Callable[[Emit], Emit]:
    """Register the writer of these kinds."""

    def register(function: Emit) -> Emit:
        KINDS.update(dict.fromkeys(kinds, function))
        return function

    return register


class Node:
    """One node of the network while it is written.

    Args:
        writer: of the file.
        op: what it does.
        index: of the node in its network.
        shape: of its output.
    """

    def __init__(self, writer: Writer, op: OpConfig, index: int, shape: base.Shape) -> None:
        self.writer = writer
        self.op = op
        self.index = index
        self.shape = shape
        self._names: Counter[str] = Counter()

    # ---- operators ----------------------------------------------------------------------------------------------

    def operator(
        self,
        code: str,
        inputs: list[int],
        options: str = "",
        shape: base.Shape | None = None,
        quantisation: Quantisation | None = None,
        version: int | None = None,
        **fields: Any,
    ) -> int:
        """An operator of one output.

        Args:
            code, inputs, options, fields: as of `Writer.operator`.
            shape: of the output; by default that of the node's.
            quantisation: of the output where the inputs are int8; by default `ACTIVATION`.
            version: where it is not the one that the converter always gives.
        """
        quantised = any(self.writer.quantisation(tensor) is not None for tensor in inputs)
        output = self._output(code, shape, (quantisation or ACTIVATION) if quantised else None)
        if version is None:
            version = _INT8_VERSIONS.get(code, _INT8_VERSION) if quantised else 1
        return self.writer.operator(code, inputs, output, options, version, **fields)

    def moved(
        self, code: str, inputs: list[int], options: str = "", shape: base.Shape | None = None, **more: Any
    ) -> int:
        """An operator that computes nothing: its output has the quantisation of its first input."""
        return self.operator(code, inputs, options, shape, self.writer.quantisation(inputs[0]), **more)

    def test(self, code: str, inputs: list[int], options: str) -> int:
        """An operator that gives truth values."""
        output = self.writer.tensor(self._name(code), self.shape, boolean=True)
        quantised = self.writer.quantisation(inputs[0]) is not None
        return self.writer.operator(code, inputs, output, options, _INT8_VERSION if quantised else 1)

    def in_floats(self, data: int, write: Callable[[int], int], quantisation: Quantisation = ACTIVATION) -> int:
        """What `write` makes of a tensor in floats, though it may be int8: TFLite has no int8 kernel, so that the
        converter sets the operator between a DEQUANTIZE and a QUANTIZE."""
        if self.writer.quantisation(data) is None:
            return write(data)
        return self.quantised(write(self.dequantised(data)), quantisation)

    def quantised(self, data: int, quantisation: Quantisation = ACTIVATION) -> int:
        """A tensor of floats, or of integers that stand for something else, in int8."""
        if self.writer.quantisation(data) == quantisation:
            return data
        output = self._output("QUANTIZE", self.writer.shape(data), quantisation)
        return self.writer.operator("QUANTIZE", [data], output, "Quantize")

    def dequantised(self, data: int) -> int:
        """An int8 tensor in floats."""
        output = self._output("DEQUANTIZE", self.writer.shape(data), None)
        return self.writer.operator("DEQUANTIZE", [data], output, "Dequantize", 2)

    def alike(self, tensors: list[int]) -> list[int]:
        """The tensors in one quantisation, for an operator that cannot read several."""
        found = {self.writer.quantisation(tensor) for tensor in tensors}
        return tensors if len(found) == 1 else [self.quantised(tensor) for tensor in tensors]

    def reshaped(self, data: int, shape: base.Shape) -> int:
        """The same numbers in another shape."""
        counts = self.counts("shape", list(shape))
        return self.moved("RESHAPE", [data, counts], "Reshape", shape, newShape=list(shape))

    def mean(self, data: int, axes: list[int], quantisation: Quantisation | None = None, keep: bool = True) -> int:
        """The mean over axes."""
        shape = tuple(1 if axis in axes else n for axis, n in enumerate(self.writer.shape(data)))
        if axes == [-1]:
            shape = (*shape[:-1], 1)
        inputs = [data, self.counts("axes", axes)]
        return self.operator("MEAN", inputs, "Reducer", shape if keep else self.shape, quantisation, keepDims=keep)

    def padded(self, data: int) -> tuple[int, int]:
        """Input of a conv and its padding code (0 same, 1 valid). Given counts are an operator of their own, unless
        they are what "same" comes to: the converter sees that."""
        op = self.op
        if op.padding == "same" or op.pads == dataclasses.replace(op, padding="same").pads:
            return data, 0
        return (self.padded_by_counts(data) if any(map(any, op.pads)) else data), 1

    def padded_by_counts(self, data: int) -> int:
        """The input with the operation's pads around it."""
        op = self.op
        (top, bottom), (left, right) = op.pads
        counts = self.counts("pads", [[0, 0], [top, bottom], [left, right], [0, 0]])
        shape = (op.batch, op.height + top + bottom, op.width + left + right, op.in_channels)
        return self.moved("PAD", [data, counts], "Pad", shape)

    def cut(self, data: int, begin: list[int], shape: base.Shape) -> int:
        """The part of a tensor from here, of this shape."""
        end = [first + count for first, count in zip(begin, shape, strict=True)]
        whole = [n == count for n, count in zip(self.writer.shape(data), shape, strict=True)]
        places = [self.counts(name, values) for name, values in (("begin", begin), ("end", end))]
        steps = self.counts("steps", [1] * len(begin))
        mask = sum(1 << axis for axis, all_of_it in enumerate(whole) if all_of_it)
        return self.moved("STRIDED_SLICE", [data, *places, steps], "StridedSlice", shape, beginMask=mask, endMask=mask)

    # ---- constants ----------------------------------------------------------------------------------------------

    def counts(self, name: str, values: object) -> int:
        """A constant of whole numbers: axes, sizes, pads."""
        return self.writer.constant(self._name(name), np.asarray(values, np.int32))

    def constant(self, name: str, values: npt.ArrayLike, beside: int) -> int:
        """A constant operand, in the type of the tensor that it is computed with."""
        if self.writer.quantisation(beside) is None:
            return self.writer.constant(self._name(name), np.asarray(values, np.float32))
        return self.integers(name, values, Quantisation.spanning(values))

    def integers(self, name: str, values: npt.ArrayLike, quantisation: Quantisation) -> int:
        """A constant int8 operand."""
        return self.writer.constant(self._name(name), quantisation.integers(values), quantisation)

    def kernel(self, data: int, arrange: Arrange = np.asarray, channel_axis: int = 0) -> int:
        """The kernel that is applied to a tensor.

        Args:
            data: what it is applied to.
            arrange: what brings an array of the form of `base.kernel` into that which the operator wants.
            channel_axis: of the output channels in that form.
        """
        op, name = self.op, self._name("kernel")
        if self.writer.quantisation(data) is None:
            values: npt.NDArray[Any] = base.kernel(op, self.index)
            quantisation = None
        else:
            values, step = base.int8_kernel(op, self.index)
            quantisation = Quantisation(step, 0, channel_axis, op.out_channels)
        return self.writer.constant(name, arrange(values), quantisation)

    def bias(self, data: int, kernel: int) -> int:
        """The bias that is added to a tensor times a kernel."""
        values, name = base.bias(self.op, self.index), self._name("bias")
        read, weighed = self.writer.quantisation(data), self.writer.quantisation(kernel)
        if read is None or weighed is None:
            return self.writer.constant(name, values)
        quantisation = Quantisation(read.scale * weighed.scale, 0, 0, self.op.out_channels)
        return self.writer.constant(name, np.rint(values / quantisation.scale).astype(np.int32), quantisation)

    # ---- names --------------------------------------------------------------------------------------------------

    def _output(self, code: str, shape: base.Shape | None, quantisation: Quantisation | None) -> int:
        return self.writer.tensor(self._name(code), self.shape if shape is None else shape, quantisation)

    def _name(self, part: str) -> str:
        self._names[part] += 1
        count = self._names[part]
        return f"op{self.index}_{part.lower()}" + (f"_{count}" if count > 1 else "")
