"""ONNX operators of normalisations, softmax and means over channels."""

from __future__ import annotations

import numpy as np

from latency_lab.runtimes import base
from latency_lab.runtimes._onnx_ops import Node, builds


@builds("batch_norm")
def _batch_norm(node: Node, operands: list[str]) -> str:
    scaled = node.add("Mul", [operands[0], node.per_channel("scale", base.scale(node.op, node.index))])
    return node.add("Add", [scaled, node.per_channel("shift", base.bias(node.op, node.index))], "shift")


@builds("layer_norm")
def _layer_norm(node: Node, operands: list[str]) -> str:
    scale = node.per_channel("scale", base.scale(node.op, node.index))
    shift = node.per_channel("shift", base.bias(node.op, node.index))
    return _normalised(node, operands[0], [node.channel_axis], scale, shift)


@builds("group_norm")
def _group_norm(node: Node, operands: list[str]) -> str:
    """Of (batch, ..., channels), as (batch, ..., groups, channels of a group)."""
    op, shape = node.op, node.shape
    parted = (op.groups, op.in_channels // op.groups)
    data = node.add("Reshape", [operands[0], node.constant("parted", [-1, *shape[1:-1], *parted])], "part")
    ones = [1] * (len(shape) - 1)
    scale = node.constant("scale", base.scale(op, node.index).reshape(*ones, *parted))
    shift = node.constant("shift", base.bias(op, node.index).reshape(*ones, *parted))
    axes = [*range(1, len(shape) - 1), len(shape)]
    data = _normalised(node, data, axes, scale, shift)
    return node.add("Reshape", [data, node.constant("whole", list(shape))], "whole")


def _normalised(node: Node, data: str, axes: list[int], scale: str, shift: str) -> str:
    """x * scale / deviation + (shift - mean * scale / deviation)"""
    mean = node.add("ReduceMean", [data], "mean", axes=axes, keepdims=1)
    negative = node.add("Neg", [mean], "negative")
    difference = node.add("Sub", [data, mean], "difference")
    square = node.add("Mul", [difference, difference], "square")
    variance = node.add("ReduceMean", [square], "variance", axes=axes, keepdims=1)
    variance = node.add("Add", [variance, node.constant("epsilon", np.float32(base.NORM_EPSILON))], "epsilon")
    inverse = node.add("Reciprocal", [node.add("Sqrt", [variance], "deviation")], "inverse")
    factor = node.add("Mul", [inverse, scale], "factor")
    scaled = node.add("Mul", [data, factor], "scaled")
    offset = node.add("Add", [node.add("Mul", [negative, factor], "offset"), shift], "shift")
    return node.add("Add", [scaled, offset])


@builds("local_response_norm")
def _local_response_norm(node: Node, operands: list[str]) -> str:
    return node.add(
        "LRN",
        operands,
        size=base.RESPONSE_SIZE,
        alpha=base.RESPONSE_ALPHA,
        beta=base.RESPONSE_BETA,
        bias=base.RESPONSE_BIAS,
    )


@builds("channel_mean")
def _channel_mean(node: Node, operands: list[str]) -> str:
    return node.add("ReduceMean", operands, axes=[node.channel_axis], keepdims=1)


@builds("softmax")
def _softmax(node: Node, operands: list[str]) -> str:
    return node.add("Softmax", operands, axis=node.channel_axis)
