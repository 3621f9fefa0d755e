"""Operations between tensors and normalisations as TFLite operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from latency_lab.runtimes import base
from latency_lab.runtimes._tflite_node import POSITIVE, Node, writes

_BINARY = {
    "add": ("ADD", "Add"),
    "subtract": ("SUB", "Sub"),
    "multiply": ("MUL", "Mul"),
    "divide": ("DIV", "Div"),
    "maximum": ("MAXIMUM", "MaximumMinimum"),
    "minimum": ("MINIMUM", "MaximumMinimum"),
    "squared_difference": ("SQUARED_DIFFERENCE", "SquaredDifference"),
}
_ONE_SCALE = frozenset({"maximum", "minimum"})
"""Kinds whose int8 kernels read and write one quantisation."""
_SUB_OF_FIVE_AXES = 3


@writes(*_BINARY)
def _binary(node: Node, operands: list[int], fused: str | None) -> int:
    op = node.op
    if op.kind == "divide" and op.operands == 1:  # the converter multiplies by the inverse
        return _apply(node, "multiply", [operands[0], _constant(node, operands[0], inverse=True)], fused)
    if op.operands == 1:
        return _apply(node, op.kind, [operands[0], _constant(node, operands[0])], fused)
    output, *others = operands
    if op.broadcast == "channels" and len(node.writer.shape(others[0])) == 2 and op.batch > 1:
        ones = (1,) * (len(node.shape) - 2)
        others = [node.reshaped(others[0], (op.batch, *ones, op.in_channels))]
    for k, other in enumerate(others):
        output = _apply(node, op.kind, [output, other], fused if k == len(others) - 1 else None)
    return output


def _apply(node: Node, kind: str, operands: list[int], fused: str | None) -> int:
    code, options = _BINARY[kind]
    if kind in _ONE_SCALE:
        return node.moved(code, node.alike(operands), options)
    fields: dict[str, Any] = {} if kind == "squared_difference" else {"activation": fused}
    return node.operator(code, operands, options, **fields)


def _constant(node: Node, data: int, inverse: bool = False) -> int:
    values, quantisation = base.operand(node.op, node.index), node.writer.quantisation(data)
    if node.op.kind in _ONE_SCALE and quantisation is not None:
        return node.integers("operand", values, quantisation)
    return node.constant("operand", 1 / values if inverse else values, data)


@writes("concatenate")
def _concatenate(node: Node, operands: list[int], _fused: str | None) -> int:
    return node.moved("CONCATENATION", node.alike(operands), "Concatenation", axis=-1)


# ---- normalisations -----------------------------------------------------------------------------------------------


@writes("batch_norm")
def _batch_norm(node: Node, operands: list[int], fused: str | None) -> int:
    op, (data,) = node.op, operands
    scaled = node.operator("MUL", [data, node.constant("scale", base.scale(op, node.index), data)], "Mul")
    bias = node.constant("bias", base.bias(op, node.index), scaled)
    return node.operator("ADD", [scaled, bias], "Add", activation=fused)


@writes("layer_norm")
def _layer_norm(node: Node, operands: list[int], fused: str | None) -> int:
    """As Keras' LayerNormalization is converted: x * scale + (bias - mean * scale)."""
    (data,) = operands
    channels = (1,) * (len(node.shape) - 1) + (node.op.in_channels,)
    mean = node.mean(data, [-1])
    negative = node.in_floats(mean, lambda tensor: _negated(node, tensor))
    distance = node.operator("SQUARED_DIFFERENCE", [data, mean], "SquaredDifference", quantisation=POSITIVE)
    scale = _scale(node, node.mean(distance, [-1], POSITIVE), channels, node.shape)
    shift = _shift(node, negative, scale, channels)
    scaled = node.operator("MUL", [data, scale], "Mul")
    return node.operator("ADD", [scaled, shift], "Add", activation=fused)


@writes("group_norm")
def _group_norm(node: Node, operands: list[int], _fused: str | None) -> int:
    """As Keras' GroupNormalization is converted: the same over an axis of groups."""
    op, (image,) = node.op, operands
    width = op.in_channels // op.groups
    grouped = (*node.shape[:-1], op.groups, width)
    axes = [*range(1, len(node.shape) - 1), len(node.shape)]
    channels = (1,) * (len(node.shape) - 1) + (op.groups, width)
    each = (op.batch, *channels[1:])
    data = node.reshaped(image, grouped)
    mean = node.mean(data, axes)
    negative = node.in_floats(mean, lambda tensor: _negated(node, tensor))
    version = _SUB_OF_FIVE_AXES if len(grouped) > 4 else None
    centred = node.operator("SUB", [data, mean], "Sub", grouped, version=version)
    squares = node.in_floats(centred, lambda tensor: node.operator("SQUARE", [tensor], "Square", grouped), POSITIVE)
    scale = _scale(node, node.mean(squares, axes, POSITIVE), channels, each)
    shift = _shift(node, negative, scale, channels)
    scaled = node.operator("MUL", [data, scale], "Mul", grouped)
    output = node.operator("ADD", [scaled, shift], "Add", grouped)
    return node.reshaped(output, node.shape)


def _negated(node: Node, mean: int) -> int:
    return node.operator("NEG", [mean], "Neg", node.writer.shape(mean))


def _scale(node: Node, variance: int, channels: base.Shape, shape: base.Shape) -> int:
    """Learned scale over standard deviation."""
    small = node.constant("epsilon", np.float32(base.NORM_EPSILON), variance)
    size = node.writer.shape(variance)
    deviation = node.operator("ADD", [variance, small], "Add", size, POSITIVE)
    inverse = node.operator("RSQRT", [deviation], "", size, POSITIVE)
    learned = node.constant("scale", base.scale(node.op, node.index).reshape(channels), inverse)
    return node.operator("MUL", [inverse, learned], "Mul", shape)


def _shift(node: Node, negative: int, scale: int, channels: base.Shape) -> int:
    """Learned bias less the scaled mean."""
    shape = node.writer.shape(scale)
    product = node.operator("MUL", [negative, scale], "Mul", shape)
    bias = node.constant("bias", base.bias(node.op, node.index).reshape(channels), product)
    return node.operator("ADD", [product, bias], "Add", shape)


@writes("local_response_norm")
def _local_response_norm(node: Node, operands: list[int], _fused: str | None) -> int:
    size = base.RESPONSE_SIZE
    fields: dict[str, Any] = {"radius": size // 2, "bias": base.RESPONSE_BIAS, "beta": base.RESPONSE_BETA}
    fields["alpha"] = base.RESPONSE_ALPHA / size
    code, options = "LOCAL_RESPONSE_NORMALIZATION", "LocalResponseNormalization"
    return node.in_floats(operands[0], lambda data: node.operator(code, [data], options, **fields))
