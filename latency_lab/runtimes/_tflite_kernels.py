"""Operations with kernels of weights as TFLite operators."""

from __future__ import annotations

import dataclasses
from typing import Any

from latency_lab.ops import OpConfig, Pads
from latency_lab.runtimes import base
from latency_lab.runtimes._tflite_node import Node, writes

_GROUPED_VERSION = 6
_DILATED_DEPTHWISE_VERSION = 2
_KEEP_DIMENSIONS_VERSION = 5


@writes("conv2d")
def _conv2d(node: Node, operands: list[int], fused: str | None) -> int:
    data, padding = node.padded(_scaled(node, operands[0]) if node.op.broadcast else operands[0])
    kernel = node.kernel(data)
    version = _GROUPED_VERSION if node.op.groups > 1 else None
    inputs = [data, kernel, node.bias(data, kernel)]
    return node.operator("CONV_2D", inputs, "Conv2D", version=version, activation=fused, **_window(node, padding))


def _scaled(node: Node, image: int) -> int:
    """The image scaled and shifted by constants, as `Rescaling` and `Normalization` are converted."""
    values = base.operand(dataclasses.replace(node.op, kind="multiply"), node.index)
    shape = node.writer.shape(image)
    scaled = node.operator("MUL", [image, node.constant("scale", values, image)], "Mul", shape)
    return node.operator("ADD", [scaled, node.constant("shift", values, scaled)], "Add", shape)


@writes("depthwise_conv2d")
def _depthwise(node: Node, operands: list[int], fused: str | None) -> int:
    data, padding = node.padded(operands[0])
    kernel = node.kernel(data, lambda kernel: kernel[None], channel_axis=3)
    floats = node.writer.quantisation(data) is None
    version = _DILATED_DEPTHWISE_VERSION if floats and node.op.dilation != (1, 1) else None
    fields = {**_window(node, padding), "depthMultiplier": node.op.out_channels // node.op.in_channels}
    inputs = [data, kernel, node.bias(data, kernel)]
    return node.operator("DEPTHWISE_CONV_2D", inputs, "DepthwiseConv2D", version=version, activation=fused, **fields)


@writes("dense")
def _dense(node: Node, operands: list[int], fused: str | None) -> int:
    (data,) = operands
    kernel = node.kernel(data)
    keep = len(node.shape) > 2
    version = _KEEP_DIMENSIONS_VERSION if keep else None
    inputs = [data, kernel, node.bias(data, kernel) if node.op.use_bias else -1]
    return node.operator(
        "FULLY_CONNECTED", inputs, "FullyConnected", version=version, activation=fused, keepNumDims=keep
    )


@writes("conv2d_transpose")
def _conv2d_transpose(node: Node, operands: list[int], fused: str | None) -> int:
    """Without a bias, nothing is fused. Counts other than those of "same" are cut off by an operator of their own."""
    op, (data,) = node.op, operands
    same = op.padding == "same" or op.padding == _cut_by_same(op)
    sized = dataclasses.replace(op, padding="same" if same else "valid")
    shape = (op.batch, sized.output_height, sized.output_width, op.out_channels)
    kernel = node.kernel(data)
    inputs = [node.counts("shape", list(shape)), kernel, data]
    version = 1 if node.writer.quantisation(data) is None else 2
    if op.use_bias:
        inputs.append(node.bias(data, kernel))
        version = 4 if fused else 3
    fields: dict[str, Any] = {"padding": int(not same), "strideH": op.strides[0], "strideW": op.strides[1]}
    output = node.operator(
        "TRANSPOSE_CONV", inputs, "TransposeConv", shape, version=version, activation=fused, **fields
    )
    if shape == node.shape:
        return output
    (top, _), (left, _) = op.pads
    return node.cut(output, [0, top, left, 0], node.shape)


@writes("conv3d")
def _conv3d(node: Node, operands: list[int], fused: str | None) -> int:
    """The bias is an operator of its own; an activation is fused into that one."""
    op = node.op
    fields: dict[str, Any] = {"padding": int(op.padding != "same"), "strideD": op.stride_depth}
    fields |= {"strideH": op.strides[0], "strideW": op.strides[1]}
    fields |= {"dilationDFactor": 1, "dilationHFactor": op.dilation[0], "dilationWFactor": op.dilation[1]}

    def conv(data: int) -> int:
        kernel = node.kernel(data, lambda kernel: kernel.transpose(1, 2, 3, 4, 0))
        return node.operator("CONV_3D", [data, kernel, -1], "Conv3D", activation=None, **fields)

    output = node.in_floats(operands[0], conv)
    if not op.use_bias:
        return output
    bias = node.constant("bias", base.bias(op, node.index), output)
    return node.operator("ADD", [output, bias], "Add", activation=fused)


def _cut_by_same(op: OpConfig) -> Pads:
    """((top, bottom), (left, right)) positions that a transposed conv with padding "same" cuts off its output."""
    totals = [max(kernel - stride, 0) for kernel, stride in zip(op.kernel_size, op.strides, strict=True)]
    (rows, columns) = totals
    return ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))


def _window(node: Node, padding: int) -> dict[str, Any]:
    (rows, columns), dilation = node.op.strides, node.op.dilation
    strides = {"strideH": rows, "strideW": columns, "padding": padding}
    return {**strides, "dilationHFactor": dilation[0], "dilationWFactor": dilation[1]}
