"""What each operator on single numbers is: activations, and arithmetic with constants and of tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from latency_lab.graph.onnx_file import Constant, Operator
from latency_lab.graph.onnx_graph import Effect, Reader, Tensor
from latency_lab.graph.onnx_patterns import bounds
from latency_lab.ops import CONVS

ELEMENTWISE: dict[str, Effect] = {}
"""ONNX operator -> what reads it."""


def _reads(*kinds: str) -> Callable[[Effect], Effect]:
    def register(effect: Effect) -> Effect:
        ELEMENTWISE.update(dict.fromkeys(kinds, effect))
        return effect

    return register


# ---- activations ----------------------------------------------------------------------------------------------

_ACTIVATIONS = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Elu": "elu",
    "Selu": "selu",
    "LeakyRelu": "leaky_relu",
    "PRelu": "prelu",
    "HardSigmoid": "hard_sigmoid",
    "Softplus": "softplus",
    "Gelu": "gelu",
    "QuickGelu": "silu",
    "Swish": "silu",
    "Erf": "erf",
    "Exp": "exponential",
    "Log": "log",
    "Sqrt": "sqrt",
    "Abs": "abs",
    "Neg": "negative",
}


@_reads(*_ACTIVATIONS)
def _activation(reader: Reader, operator: Operator) -> list[Tensor] | None:
    return _activated(reader, operator, _ACTIVATIONS[operator.kind])


@_reads("Clip")
def _clip(reader: Reader, operator: Operator) -> list[Tensor] | None:
    return _activated(reader, operator, "relu" if bounds(reader.file, operator) == (0, math.inf) else "relu6")


@_reads("HardSwish")
def _hard_swish(reader: Reader, operator: Operator) -> list[Tensor] | None:
    """Two operations: a runtime expands the operator to x * hard_sigmoid(x)."""
    x = reader.tensor(operator.inputs[0])
    if x is None:
        return None
    op = dataclasses.replace(x.op("activation"), activation="hard_sigmoid")
    gate = dataclasses.replace(x, source=reader.node(f"{operator.name}.hard_sigmoid", op, [x]))
    op = dataclasses.replace(x.op("multiply"), operands=2)
    return [reader.made(operator.name, op, [x, gate], x)]


def _activated(reader: Reader, operator: Operator, name: str) -> list[Tensor] | None:
    x = reader.tensor(operator.inputs[0])
    if x is None:
        return None
    if x.state == "unquantized":  # the int8 operation before it takes it along
        node = reader.nodes[x.source]
        reader.nodes[x.source] = dataclasses.replace(node, op=dataclasses.replace(node.op, activation=name))
        return [x]
    return [reader.made(operator.name, dataclasses.replace(x.op("activation"), activation=name), [x], x)]


# ---- arithmetic -----------------------------------------------------------------------------------------------

_BINARY = {
    "Add": "add",
    "Sum": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "Div": "divide",
    "Max": "maximum",
    "Min": "minimum",
}


@_reads(*_BINARY)
def _binary(reader: Reader, operator: Operator) -> list[Tensor] | None:
    operands = reader.tensors(operator)
    constants = [reader.file.constants[name] for name in operator.inputs if name in reader.file.constants]
    if len(operands) + len(constants) != len(operator.inputs) or not operands:
        return None
    if len(operator.inputs) == 1:
        return operands
    if operator.kind == "Mul" and len(operands) == 2 and operator.inputs[0] == operator.inputs[1]:
        return _activated(reader, operator, "square")
    if not constants:
        return _of_tensors(reader, operator, operands)
    return _with_constant(reader, operator, operands[0], constants[0]) if len(operands) == 1 else None


@_reads("Pow")
def _power(reader: Reader, operator: Operator) -> list[Tensor] | None:
    name = {2.0: "square", 0.5: "sqrt"}.get(reader.file.scalar(operator.inputs[1]) or 0.0)
    return None if name is None else _activated(reader, operator, name)


@_reads("Reciprocal")
def _reciprocal(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = reader.tensor(operator.inputs[0])
    if x is None:
        return None
    return [reader.made(operator.name, dataclasses.replace(x.op("divide"), broadcast="scalar"), [x], x)]


def _of_tensors(reader: Reader, operator: Operator, operands: list[Tensor]) -> list[Tensor] | None:
    widest = max(range(len(operands)), key=lambda i: operands[i].count)
    wide, others = operands[widest], [*operands[:widest], *operands[widest + 1 :]]
    shape = reader.file.shape(operator.output)
    if shape is None or math.prod(shape) != wide.count:
        return None
    broadcasts = {_broadcast(wide, tensor.shape) for tensor in others}
    if None in broadcasts or (len(operands) > 2 and broadcasts != {""}):
        return None
    op = dataclasses.replace(wide.op(_BINARY[operator.kind]), operands=len(operands), broadcast=broadcasts.pop() or "")
    return [reader.made(operator.name, op, [wide, *others], wide)]


def _with_constant(reader: Reader, operator: Operator, x: Tensor, constant: Constant) -> list[Tensor] | None:
    broadcast, like = _broadcast(x, constant.shape), x
    if broadcast is None and sum(size > 1 for size in constant.shape) == 1:  # along an axis of positions
        axis = len(x.shape) - len(constant.shape) + max(range(len(constant.shape)), key=constant.shape.__getitem__)
        x = dataclasses.replace(x, axis=axis)
        broadcast = _broadcast(x, constant.shape)
    if broadcast is None:
        return None
    if broadcast == "channels" and x is like and operator.kind in {"Add", "Sub", "Mul"}:
        absorbed = _absorbed(reader, operator, x)
        if absorbed is not None:
            return [absorbed]
    if broadcast == "channels" and len(x.shape) > 2 and x.axis == len(x.shape) - 1 and x.count > x.channels:
        broadcast = "innermost"
    op = dataclasses.replace(x.op(_BINARY[operator.kind]), broadcast=broadcast)
    return [reader.made(operator.name, op, [x], like)]


def _absorbed(reader: Reader, operator: Operator, x: Tensor) -> Tensor | None:
    """Scale or shift of each channel right after a convolution, as an exported batch norm or bias; None elsewhere.

    The runtime folds either into the weights.
    """
    names = [name for name in operator.inputs if name not in reader.file.constants]
    if x.source < 0 or reader.file.only_reader(names[0]) is None:
        return None
    node = reader.nodes[x.source]
    before = reader.nodes[node.inputs[0]] if node.op.kind == "batch_norm" and node.inputs[0] >= 0 else None
    if before is not None and before.op.kind in CONVS:
        return x  # the norm takes it along
    if operator.kind != "Mul" and node.op.kind in CONVS | {"dense"} and not node.op.use_bias:
        reader.nodes[x.source] = dataclasses.replace(node, op=dataclasses.replace(node.op, use_bias=True))
        return x
    if node.op.kind in CONVS and operator.kind != "Sub":
        return reader.made(operator.name, x.op("batch_norm"), [x], x)
    return None


def _broadcast(x: Tensor, shape: tuple[int, ...]) -> str | None:
    """How an operand of this shape is spread over a tensor; None where it is spread in no way that has a name."""
    if len(shape) > len(x.shape):
        shape = shape[-len(x.shape) :] if math.prod(shape[: -len(x.shape) or None]) == 1 else ()
    shape = (*[1] * (len(x.shape) - len(shape)), *shape)
    wide = {i for i, size in enumerate(shape) if size > 1}
    needed = {i for i, size in enumerate(x.shape) if size > 1}
    if any(shape[i] != x.shape[i] for i in wide):
        return None
    if wide == needed:
        return ""
    if not wide:
        return "scalar"
    if wide <= {0, x.axis}:
        return "channels"
    return "positions" if needed - wide <= {x.axis, 0} else None
