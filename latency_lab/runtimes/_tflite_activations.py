"""What an "activation" operation does, as TFLite operators."""

from __future__ import annotations

import numpy as np

from latency_lab.runtimes import base
from latency_lab.runtimes._tflite import Quantisation
from latency_lab.runtimes._tflite_node import ACTIVATION, POSITIVE, PROBABILITY, TANH, Node

_EXPONENTIAL = Quantisation(0.1, -128)
"""Of what an exponential gives: 0 to 25.5."""
_PLAIN = {
    "relu": ("RELU", "", POSITIVE),
    "relu6": ("RELU6", "", POSITIVE),
    "sigmoid": ("LOGISTIC", "", PROBABILITY),
    "tanh": ("TANH", "", TANH),
    "hard_swish": ("HARD_SWISH", "HardSwish", ACTIVATION),
    "gelu": ("GELU", "Gelu", ACTIVATION),
    "exponential": ("EXP", "Exp", _EXPONENTIAL),
    "abs": ("ABS", "Abs", POSITIVE),
}
_OF_POSITIVE = {"log": "LOG", "sqrt": "SQRT", "rsqrt": "RSQRT"}
"""Whose int8 kernels refuse a quantisation with negative values."""
_IN_FLOATS = {"elu": ("ELU", ""), "square": ("SQUARE", "Square"), "negative": ("NEG", "Neg")}
"""Without int8 kernels."""
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def activation(node: Node, data: int, name: str) -> int:
    """Write an activation of a tensor of the node's shape; the output tensor."""
    if name in _PLAIN:
        code, options, quantisation = _PLAIN[name]
        return node.operator(code, [data], options, quantisation=quantisation)
    if name in _OF_POSITIVE:
        return node.operator(_OF_POSITIVE[name], [_positive(node, data)], quantisation=_quantisation_of(name))
    if name in _IN_FLOATS:
        code, options = _IN_FLOATS[name]
        return node.in_floats(data, lambda tensor: node.operator(code, [tensor], options))
    if name == "leaky_relu":
        return node.operator("LEAKY_RELU", [data], "LeakyRelu", alpha=base.LEAKY_SLOPE)
    if name == "silu":
        gate = activation(node, data, "sigmoid")
        return node.operator("MUL", [data, gate], "Mul")
    made = {"hard_sigmoid": _hard_sigmoid, "prelu": _prelu, "selu": _selu, "softplus": _softplus}
    return made[name](node, data)


def _quantisation_of(name: str) -> Quantisation:
    return ACTIVATION if name == "log" else POSITIVE


def _positive(node: Node, data: int) -> int:
    found = node.writer.quantisation(data)
    return data if found is None or found.zero_point == POSITIVE.zero_point else node.quantised(data, POSITIVE)


def _scalar(node: Node, name: str, value: float, beside: int) -> int:
    return node.constant(name, np.float32(value), beside)


def _hard_sigmoid(node: Node, data: int) -> int:
    three = _scalar(node, "three", 3.0, data)
    shifted = node.operator("ADD", [data, three], "Add", quantisation=POSITIVE, activation="relu6")
    sixth = _scalar(node, "sixth", 1 / 6, shifted)
    return node.operator("MUL", [shifted, sixth], "Mul", quantisation=PROBABILITY)


def _prelu(node: Node, data: int) -> int:
    slopes = base.slopes(node.op, node.index).reshape((1,) * (len(node.shape) - 2) + (-1,))
    if node.writer.quantisation(data) is None:
        slope = node.constant("slopes", slopes, data)
    else:
        slope = node.integers("slopes", slopes, Quantisation(float(np.abs(slopes).max()) / 127))
    return node.operator("PRELU", [data, slope])


def _selu(node: Node, data: int) -> int:
    positive = node.test("GREATER", [data, _scalar(node, "zero", 0.0, data)], "Greater")
    above = node.operator("MUL", [data, _scalar(node, "scale", _SELU_SCALE, data)], "Mul")
    exponential = activation(node, data, "exponential")
    less_one = node.operator("SUB", [exponential, _scalar(node, "one", 1.0, exponential)], "Sub")
    factor = _scalar(node, "factor", _SELU_SCALE * _SELU_ALPHA, less_one)
    below = node.operator("MUL", [less_one, factor], "Mul")
    return node.operator("SELECT", [positive, above, below], "Select")


def _softplus(node: Node, data: int) -> int:
    exponential = activation(node, data, "exponential")
    one = _scalar(node, "one", 1.0, exponential)
    more_one = node.operator("ADD", [exponential, one], "Add", quantisation=_EXPONENTIAL)
    return node.operator("LOG", [more_one], quantisation=POSITIVE)
