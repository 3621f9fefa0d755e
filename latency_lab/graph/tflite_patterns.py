"""Operators of a .tflite file that are one operation together: what converters write for lack of a builtin."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from latency_lab.graph.tflite_file import Operator
from latency_lab.graph.tflite_kinds import read
from latency_lab.graph.tflite_shapes import SizedModel
from latency_lab.graph.tflite_step import NOT_AS_EXPECTED, Made, Step

_NO_ACTIVATION, _RELU6 = 0, 3
_OUTSIDE = -1
"""The position of a reader of the model's outputs."""

_Match = tuple[Made, list[int]]
"""The operation, and the positions of the operators before the last."""


def find(model: SizedModel) -> tuple[dict[int, Made], set[int]]:
    """The patterns of a model. Nothing outside of a pattern reads what is made inside of it.

        silu             x * LOGISTIC(x)
        hard_sigmoid     RELU6(x + 3) * (1 / 6)
        softplus         LOG(EXP(x) + 1)
        layer_norm       x * scale + (bias - mean * scale), scale = weight * RSQRT(variance + epsilon)
        resize_nearest   TILE of rows, TILE of columns, RESHAPE before and after each
        channel_shuffle  RESHAPE to (..., groups, channels / groups), TRANSPOSE of these two, RESHAPE back
        conv3d           CONV_3D, ADD of its bias

    Returns:
        position of the last operator -> the operation of the whole; positions of all other operators of patterns.
    """
    search = _Search(model)
    found: dict[int, Made] = {}
    inside: set[int] = set()
    for position, op in enumerate(model.operators):
        for rule in _RULES.get(op.code, ()) if op.builtin else ():
            match = _matched(rule, search, op)
            if match is not None and search.closed(match[1], position):
                found[position] = match[0]
                inside.update(match[1])
                break
    return found, inside


class _NoMatchError(KeyError):
    """A tensor is not made as a pattern has it."""


class _Search:
    """Who makes and who reads each tensor."""

    def __init__(self, model: SizedModel) -> None:
        self.model = model
        self._maker = {tensor: position for position, op in enumerate(model.operators) for tensor in op.outputs}
        self._readers: dict[int, set[int]] = {tensor: {_OUTSIDE} for tensor in model.file.outputs}
        for position, op in enumerate(model.operators):
            for tensor in op.inputs:
                self._readers.setdefault(tensor, set()).add(position)

    def maker(self, tensor: int) -> tuple[int, Operator]:
        """Position and operator that makes a tensor.

        Raises:
            _NoMatchError: no builtin does.
        """
        position = self._maker.get(tensor)
        if position is None or not self.model.operators[position].builtin:
            raise _NoMatchError(tensor)
        return position, self.model.operators[position]

    def by(self, tensor: int, *codes: str) -> tuple[int, Operator]:
        """Position and operator that makes a tensor.

        Raises:
            _NoMatchError: it is of none of these kinds, or it has an activation in it.
        """
        position, op = self.maker(tensor)
        if op.code not in codes or _activated(op):
            raise _NoMatchError(tensor)
        return position, op

    def closed(self, chain: Sequence[int], last: int) -> bool:
        """Whether what these operators make is read by themselves and the last alone."""
        whole = {*chain, last}
        made = (tensor for position in chain for tensor in self.model.operators[position].outputs)
        return all(self._readers.get(tensor, set()) <= whole for tensor in made)

    def made(self, kind: str, data: int, last: Operator, **fields: Any) -> Made:
        """One operation from tensor `data` to the output of the last operator."""
        step = Step(self.model, Operator(last.code, (data,), last.outputs))
        x = step.dims(0)
        return step.one(kind, x, x[3], **fields)[0]

    def is_constant(self, tensor: int, value: float) -> bool:
        """Whether a tensor is this one number. (Some converters keep it in float16.)"""
        known = self.model.known.get(tensor)
        return known is not None and known.size == 1 and bool(np.isclose(float(known.ravel()[0]), value, rtol=1e-3))

    def beside(self, op: Operator, value: float | None = None) -> int:
        """The operand of a binary operator whose other operand is a constant: this number, or any.

        Raises:
            _NoMatchError: there is none.
        """
        for data, number in _both(op):
            if self.model.constant[number] and not self.model.constant[data]:
                if value is None or self.is_constant(number, value):
                    return data
        raise _NoMatchError(value)


def _matched(rule: Callable[[_Search, Operator], _Match | None], search: _Search, op: Operator) -> _Match | None:
    try:
        return None if _activated(op) and rule is not _conv3d else rule(search, op)
    except NOT_AS_EXPECTED:
        return None


def _activated(op: Operator) -> bool:
    return bool(op.option("FusedActivationFunction") != _NO_ACTIVATION)


def _both(op: Operator) -> Iterator[tuple[int, int]]:
    """The operands of a binary operator in either order."""
    first, second = op.inputs
    yield first, second
    yield second, first


# ---- activations ----------------------------------------------------------------------------------------------------


def _silu(search: _Search, op: Operator) -> _Match | None:
    for data, gate in _both(op):
        try:
            logistic, maker = search.by(gate, "LOGISTIC")
        except _NoMatchError:
            continue
        if maker.inputs == (data,):
            return search.made("activation", data, op, activation="silu"), [logistic]
    return None


def _hard_sigmoid(search: _Search, op: Operator) -> _Match | None:
    gate = search.beside(op, 1 / 6 if op.code == "MUL" else 6.0)
    position, maker = search.maker(gate)
    chain = [position]
    if maker.code == "RELU6":
        position, maker = search.by(maker.inputs[0], "ADD")
        chain.append(position)
    elif maker.option("FusedActivationFunction") != _RELU6:
        return None
    if maker.code != "ADD":
        return None
    return search.made("activation", search.beside(maker, 3.0), op, activation="hard_sigmoid"), chain


def _softplus(search: _Search, op: Operator) -> _Match:
    add, maker = search.by(op.inputs[0], "ADD")
    exponential, maker = search.by(search.beside(maker, 1.0), "EXP")
    return search.made("activation", maker.inputs[0], op, activation="softplus"), [add, exponential]


# ---- norms and kernels ----------------------------------------------------------------------------------------------


def _layer_norm(search: _Search, op: Operator) -> _Match | None:
    for scaled, shift in _both(op):
        try:
            return _scaled_and_shifted(search, op, scaled, shift)
        except NOT_AS_EXPECTED:
            continue
    return None


def _scaled_and_shifted(search: _Search, op: Operator, scaled: int, shift: int) -> _Match:
    """x * scale and bias - mean * scale; the bias may be missing, and the weight of each channel in the scale too."""
    first, product = search.by(scaled, "MUL")
    second, negated = search.by(shift, "MUL", "ADD")
    chain = [first, second]
    if negated.code == "ADD":
        position, negated = search.by(search.beside(negated), "MUL")
        chain.append(position)
    (scale,) = set(product.inputs) & set(negated.inputs)
    (data,), (negative,) = ({*each.inputs} - {scale} for each in (product, negated))
    negation, positive = _negated(search, negative)
    mean, maker = _channel_mean(search, positive)
    if maker.inputs[0] != data:
        raise _NoMatchError(data)
    deviation = _deviation(search, scale, {data, positive})
    return search.made("layer_norm", data, op), [*chain, *negation, mean, *deviation]


def _negated(search: _Search, tensor: int) -> tuple[list[int], int]:
    """Positions of a NEG, in floats where all else is in int8, and the tensor that it negates."""
    position, maker = search.by(tensor, "NEG", "QUANTIZE")
    if maker.code == "NEG":
        return [position], maker.inputs[0]
    negation, maker = search.by(maker.inputs[0], "NEG")
    floats, maker = search.by(maker.inputs[0], "DEQUANTIZE")
    return [position, negation, floats], maker.inputs[0]


def _deviation(search: _Search, scale: int, pair: set[int]) -> list[int]:
    """Positions of the operators of weight * RSQRT(mean of the squared difference of this pair + epsilon)."""
    position, maker = search.by(scale, "MUL", "RSQRT")
    chain = [position]
    if maker.code == "MUL":
        position, maker = search.by(search.beside(maker), "RSQRT")
        chain.append(position)
    add, maker = search.by(maker.inputs[0], "ADD")
    variance, maker = _channel_mean(search, search.beside(maker))
    distance, maker = search.by(maker.inputs[0], "SQUARED_DIFFERENCE")
    if set(maker.inputs) != pair:
        raise _NoMatchError(scale)
    return [*chain, add, variance, distance]


def _channel_mean(search: _Search, tensor: int) -> tuple[int, Operator]:
    position, maker = search.by(tensor, "MEAN")
    found = read(search.model, maker)
    if found is None or found[0].op.kind != "channel_mean":
        raise _NoMatchError(tensor)
    return position, maker


def _conv3d(search: _Search, op: Operator) -> _Match | None:
    """The converter adds the bias of a CONV_3D after it, and the activation is in the sum."""
    position, maker = search.by(search.beside(op), "CONV_3D")
    sums, convs = read(search.model, op), read(search.model, maker)
    if not sums or not convs or sums[0].op.broadcast != "channels" or convs[0].op.use_bias:
        return None
    whole = dataclasses.replace(convs[0].op, use_bias=True, activation=sums[0].op.activation)
    return Made(whole, convs[0].inputs, op.outputs[0]), [position]


# ---- moves ----------------------------------------------------------------------------------------------------------


def _channel_shuffle(search: _Search, op: Operator) -> _Match | None:
    transpose, mover = search.by(op.inputs[0], "TRANSPOSE")
    reshape, maker = search.by(mover.inputs[0], "RESHAPE")
    data, order = maker.inputs[0], search.model.known[mover.inputs[1]]
    shape, apart = search.model.shapes[data], search.model.shapes[maker.outputs[0]]
    *kept, first, second = order.ravel().tolist()
    swapped = kept == list(range(len(kept))) and (first, second) == (len(kept) + 1, len(kept))
    if not swapped or shape != search.model.shapes[op.outputs[0]] or math.prod(apart[-2:]) != shape[-1]:
        return None
    return search.made("channel_shuffle", data, op, groups=apart[-2]), [transpose, reshape]


def _resize_nearest(search: _Search, op: Operator) -> _Match | None:
    """As Keras' UpSampling2D is converted: each row is repeated, then each column."""
    made = search.model.shapes[op.outputs[0]]
    chain: list[int] = []
    tiles: list[tuple[int, int]] = []
    tensor = op.inputs[0]
    while len(made) == 4 and len(tiles) <= 2:
        position, maker = search.by(tensor, "RESHAPE", "EXPAND_DIMS", "TILE")
        chain.append(position)
        tensor = maker.inputs[0]
        if maker.code == "TILE":
            tiles.insert(0, _tile(search, maker))
            continue
        shape = search.model.shapes[tensor]
        if len(shape) != 4 or (shape[0], shape[3]) != (made[0], made[3]) or not tiles:
            continue
        rows, columns = made[1] // shape[1], made[2] // shape[2]
        wanted = [(rows, shape[2] * shape[3]), (columns, shape[3])]
        if tiles == [each for each in wanted if each[0] > 1]:
            return search.made("resize_nearest", tensor, op, output_size=made[1:3]), chain
    return None


def _tile(search: _Search, op: Operator) -> tuple[int, int]:
    """How often a TILE along one axis repeats a block of how many numbers."""
    times = search.model.known[op.inputs[1]].ravel().tolist()
    (axis,) = (axis for axis, count in enumerate(times) if count > 1)
    return int(times[axis]), math.prod(search.model.shapes[op.inputs[0]][axis:])


_RULES: dict[str, tuple[Callable[[_Search, Operator], _Match | None], ...]] = {
    "MUL": (_silu, _hard_sigmoid),
    "DIV": (_hard_sigmoid,),
    "LOG": (_softplus,),
    "ADD": (_layer_norm, _conv3d),
    "RESHAPE": (_channel_shuffle, _resize_nearest),
}
