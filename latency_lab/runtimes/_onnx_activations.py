"""ONNX operators of activations."""

from __future__ import annotations

import math

from latency_lab.runtimes import base
from latency_lab.runtimes._onnx_ops import Node, builds

_SINGLE = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "elu": "Elu",
    "selu": "Selu",
    "softplus": "Softplus",
    "exponential": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "negative": "Neg",
    "erf": "Erf",
}


@builds(*_SINGLE)
def _single(node: Node, operands: list[str]) -> str:
    name = str(node.op.activation)
    return node.add(_SINGLE[name], operands, name)


@builds("leaky_relu")
def _leaky_relu(node: Node, operands: list[str]) -> str:
    return node.add("LeakyRelu", operands, "leaky_relu", alpha=base.LEAKY_SLOPE)


@builds("prelu")
def _prelu(node: Node, operands: list[str]) -> str:
    """relu(x) + relu(-x) * -slope"""
    negative = node.add("Relu", [node.add("Neg", operands, "prelu_neg")], "prelu_below")
    slopes = node.per_channel("slopes", -base.slopes(node.op, node.index))
    above = node.add("Relu", operands, "prelu_above")
    return node.add("Add", [above, node.add("Mul", [negative, slopes], "prelu_mul")], "prelu")


@builds("rsqrt")
def _rsqrt(node: Node, operands: list[str]) -> str:
    return node.add("Reciprocal", [node.add("Sqrt", operands, "rsqrt_sqrt")], "rsqrt")


@builds("square")
def _square(node: Node, operands: list[str]) -> str:
    return node.add("Mul", [operands[0], operands[0]], "square")


@builds("relu6")
def _relu6(node: Node, operands: list[str]) -> str:
    return _clip(node, operands[0], "relu6")


@builds("silu")
def _silu(node: Node, operands: list[str]) -> str:
    return node.add("Mul", [operands[0], node.add("Sigmoid", operands, "silu_sigmoid")], "silu")


@builds("hard_sigmoid")
def _hard_sigmoid(node: Node, operands: list[str]) -> str:
    """relu6(x + 3) / 6"""
    images = len(node.shape) == 4 and node.channels_first
    three = node.shared("three4" if images else "three", [[[[3.0]]]] if images else [3.0])
    clipped = _clip(node, node.add("Add", [operands[0], three], "hard_sigmoid_add"), "hard_sigmoid_clip")
    return node.add("Mul", [clipped, node.shared("sixth", 1 / 6)], "hard_sigmoid")


@builds("hard_swish")
def _hard_swish(node: Node, operands: list[str]) -> str:
    return node.add("Mul", [operands[0], _hard_sigmoid(node, operands)], "hard_swish")


@builds("gelu")
def _gelu(node: Node, operands: list[str]) -> str:
    """x / 2 * (1 - erf(-x / sqrt(2)))"""
    half = node.add("Mul", [node.shared("half", 0.5), operands[0]], "gelu_half")
    negative = node.add("Neg", operands, "gelu_neg")
    scaled = node.add("Mul", [negative, node.shared("sqrt_half", math.sqrt(0.5))], "gelu_mul")
    erf = node.add("Erf", [scaled], "gelu_erf")
    complement = node.add("Sub", [node.shared("one", 1.0), erf], "gelu_sub")
    return node.add("Mul", [half, complement], "gelu")


def _clip(node: Node, data: str, name: str) -> str:
    return node.add("Clip", [data, node.shared("zero", 0.0), node.shared("six", 6.0)], name)
