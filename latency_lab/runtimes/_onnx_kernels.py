"""ONNX operators of convolutions, dense layers, binary operations and poolings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from latency_lab.ops import BINARY
from latency_lab.runtimes import base
from latency_lab.runtimes._onnx_ops import Node, builds

_BINARY = {"add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "maximum": "Max", "minimum": "Min"}


@builds("conv2d")
def _conv2d(node: Node, operands: list[str]) -> str:
    return _conv(node, operands[0], base.kernel(node.op, node.index).transpose(0, 3, 1, 2), node.op.groups)


@builds("depthwise_conv2d")
def _depthwise_conv2d(node: Node, operands: list[str]) -> str:
    kernel = base.kernel(node.op, node.index)[None].transpose(3, 0, 1, 2)
    return _conv(node, operands[0], kernel, node.op.in_channels)


def _conv(node: Node, data: str, kernel: base.Array, group: int) -> str:
    op = node.op
    if op.height * op.width == 1 and node.exported:  # what is left of the transposes around one position
        data = node.one_position(data)
    inputs = [data, *_weights(node, kernel)]
    return node.add("Conv", inputs, **node.window(), dilations=op.dilation, group=group)


@builds("conv2d_transpose")
def _conv2d_transpose(node: Node, operands: list[str]) -> str:
    op = node.op
    kernel = base.kernel(op, node.index).transpose(3, 0, 1, 2)
    (top, bottom), (left, right) = _cut(node)
    windows = zip(op.kernel_size, op.dilation, op.strides, strict=True)
    attributes: dict[str, Any] = {
        "kernel_shape": op.kernel_size,
        "strides": op.strides,
        "dilations": op.dilation,
        "pads": [top, left, bottom, right],
        "output_padding": [max(stride - (size - 1) * dilation - 1, 0) for size, dilation, stride in windows],
    }
    return node.add("ConvTranspose", [operands[0], *_weights(node, kernel)], **attributes)


def _cut(node: Node) -> list[tuple[int, int]]:
    """Counts that are cut off the output of a transposed convolution: (top, bottom), (left, right)."""
    op = node.op
    if isinstance(op.padding, tuple):
        return list(op.padding)
    if op.padding == "valid":
        return [(0, 0), (0, 0)]
    windows = zip(op.kernel_size, op.dilation, op.strides, strict=True)
    totals = [max((size - 1) * dilation + 1 - stride, 0) for size, dilation, stride in windows]
    return [(total // 2, total - total // 2) for total in totals]


@builds("conv3d")
def _conv3d(node: Node, operands: list[str]) -> str:
    op = node.op
    kernel = base.kernel(op, node.index).transpose(0, 4, 1, 2, 3)
    (top, bottom), (left, right) = op.pads
    total = max((op.output_depth - 1) * op.stride_depth + op.kernel_depth - op.depth, 0)
    attributes: dict[str, Any] = {
        "kernel_shape": (op.kernel_depth, *op.kernel_size),
        "strides": (op.stride_depth, *op.strides),
        "dilations": (1, *op.dilation),
        "pads": [total // 2, top, left, total - total // 2, bottom, right],
        "group": op.groups,
    }
    return node.add("Conv", [operands[0], *_weights(node, kernel)], **attributes)


def _weights(node: Node, kernel: base.Array) -> list[str]:
    return [node.constant("kernel", kernel), *([node.bias()] if node.op.use_bias else [])]


@builds("dense")
def _dense(node: Node, operands: list[str]) -> str:
    op = node.op
    kernel = node.constant("kernel", base.kernel(op, node.index).T)
    if len(node.shape) > 2:
        rows = node.constant("rows", [math.prod(node.shape[:-1]), op.in_channels])
        flat = node.add("Reshape", [operands[0], rows], "rows")
        product = node.add("MatMul", [flat, kernel], "product")
        output = node.add("Reshape", [product, node.constant("shape", list(node.shape))])
        return node.add("Add", [output, node.bias()], "bias") if op.use_bias else output
    if op.use_bias:
        return node.add("Gemm", [operands[0], kernel, node.bias()])
    return node.add("MatMul", [operands[0], kernel])


@builds(*BINARY)
def _binary(node: Node, operands: list[str]) -> str:
    op = node.op
    output, *others = operands
    if op.operands == 1:
        return _with_constant(node, output)
    if op.broadcast and node.operand_ranks[1] == 2 and node.operand_ranks[0] > 2 and op.broadcast != "scalar":
        others = [node.one_position(others[0], node.operand_ranks[0])]
    for k, other in enumerate(others):
        output = _pair(node, output, other, str(k) if k else "")
    return output


def _pair(node: Node, first: str, second: str, suffix: str = "") -> str:
    if node.op.kind == "squared_difference":
        difference = node.add("Sub", [first, second], f"{suffix}difference")
        return node.add("Mul", [difference, difference], suffix)
    return node.add(_BINARY[node.op.kind], [first, second], suffix)


def _with_constant(node: Node, data: str) -> str:
    values = base.operand(node.op, node.index)
    if node.channels_first and values.ndim > 1:
        values = np.moveaxis(values, -1, 0)
    elif node.channels_first and values.ndim == 1 and len(node.shape) > 2:
        values = values.reshape(1, -1, *[1] * (len(node.shape) - 2))
    if node.op.kind == "divide":
        return node.add("Mul", [data, node.constant("operand", 1 / values)])
    return _pair(node, data, node.constant("operand", values))


@builds("max_pool")
def _max_pool(node: Node, operands: list[str]) -> str:
    dilated: dict[str, Any] = {"dilations": node.op.dilation} if node.op.dilation != (1, 1) else {}
    return node.add("MaxPool", operands, **node.window(), **dilated)


@builds("avg_pool")
def _avg_pool(node: Node, operands: list[str]) -> str:
    merged_pad = int(isinstance(node.op.padding, tuple))  # zeros that were there before the pooling count
    return node.add("AveragePool", operands, **node.window(), count_include_pad=merged_pad)


@builds("global_avg_pool")
def _global_avg_pool(node: Node, operands: list[str]) -> str:
    return _squeezed(node, node.add("GlobalAveragePool", operands))


@builds("global_max_pool")
def _global_max_pool(node: Node, operands: list[str]) -> str:
    return _squeezed(node, node.add("GlobalMaxPool", operands))


def _squeezed(node: Node, pooled: str) -> str:
    if len(node.shape) > 2:
        return pooled
    axes = list(range(2, node.operand_ranks[0]))
    return node.add("Squeeze", [pooled, node.constant("axes", axes)], "squeeze")
