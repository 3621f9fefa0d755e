"""Several operators of a file that are one operation: x * sigmoid(x), a channel shuffle, a layer norm written out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from latency_lab.graph.onnx_file import OnnxFile, Operator
from latency_lab.graph.onnx_graph import Effect, Reader, Tensor

_CLOSE = 1e-3
"""Relative; what exporters write for 1/6 and the square root of 2."""


@dataclass(frozen=True)
class Match:
    """Operators that are one operation.

    Attributes:
        inner: all but the last; nothing else reads what they make.
        inputs: what the operation reads, constants too.
        effect: reads it, given the last operator with these inputs.
    """

    inner: tuple[Operator, ...]
    inputs: tuple[str, ...]
    effect: Effect


def find(file: OnnxFile) -> dict[str, Match]:
    """Patterns of a file, the widest first, by the output of their last operator."""
    found: dict[str, Match] = {}
    taken: set[str] = set()
    for operator in reversed(file.operators):
        if operator.output in taken:
            continue
        for pattern in _PATTERNS.get(operator.kind, ()):
            match = pattern(file, operator)
            if match is not None and _closed(file, match.inner, operator):
                found[operator.output] = match
                taken |= {member.output for member in match.inner}
                break
    return found


def _closed(file: OnnxFile, inner: Iterable[Operator], last: Operator) -> bool:
    """Whether only the pattern itself reads what its inner operators make."""
    names = {member.output for member in inner} | {last.output}
    return all(
        member.output not in file.outputs
        and all(reader.output in names for reader in file.readers[member.output])
        and all(not file.readers[extra] for extra in member.outputs[1:])
        for member in inner
    )


# ---- activations that are products ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Product:
    """A tree of Mul and of Div by a number: number * factors."""

    number: float
    factors: tuple[str, ...]
    inner: tuple[Operator, ...]


def _product(file: OnnxFile, operator: Operator) -> _Product:
    number = 1.0
    factors: list[str] = []
    inner: list[Operator] = []
    for position, name in enumerate(operator.inputs):
        scalar, maker = file.scalar(name), file.makers.get(name)
        if operator.kind == "Div" and position == 1:
            number = number / scalar if scalar else math.nan
        elif scalar is not None:
            number *= scalar
        elif maker is not None and _scales(file, maker) and file.only_reader(name) is not None:
            part = _product(file, maker)
            number *= part.number
            factors += part.factors
            inner += [*part.inner, maker]
        else:
            factors.append(name)
    return _Product(number, tuple(factors), tuple(inner))


def _scales(file: OnnxFile, operator: Operator) -> bool:
    """Whether it is a product that may be part of a larger one."""
    if operator.kind == "Div":
        return file.scalar(operator.inputs[1]) is not None
    return operator.kind == "Mul"


def _product_activation(file: OnnxFile, operator: Operator) -> Match | None:
    if operator.kind == "Div" and not _scales(file, operator):
        return None
    product = _product(file, operator)
    for pattern in (_silu, _hard_swish, _hard_sigmoid, _gelu):
        match = pattern(file, product)
        if match is not None:
            activation, source, inner = match
            return Match((*product.inner, *inner), (source,), _reads_activation(activation))
    return None


_Found = tuple[str, str, list[Operator]]


def _silu(file: OnnxFile, product: _Product) -> _Found | None:
    """x * sigmoid(x)"""
    for x, gate in _pairs(product.factors):
        maker = file.makers.get(gate)
        if maker is not None and maker.kind == "Sigmoid" and maker.inputs[0] == x and product.number == 1:
            return "silu", x, [maker]
    return None


def _hard_swish(file: OnnxFile, product: _Product) -> _Found | None:
    """x * relu6(x + 3) / 6"""
    for x, gate in _pairs(product.factors):
        inner = _relu6_of_shifted(file, gate, x)
        if inner is not None and math.isclose(product.number, 1 / 6, rel_tol=_CLOSE):
            return "hard_swish", x, inner
    return None


def _hard_sigmoid(file: OnnxFile, product: _Product) -> _Found | None:
    """relu6(x + 3) / 6"""
    if len(product.factors) == 1 and math.isclose(product.number, 1 / 6, rel_tol=_CLOSE):
        inner = _relu6_of_shifted(file, product.factors[0])
        if inner is not None:
            return "hard_sigmoid", _split(file, inner[0])[0], inner
    return None


def _gelu(file: OnnxFile, product: _Product) -> _Found | None:
    """x / 2 * (1 + erf(x / sqrt(2))), or x / 2 * (1 - erf(-x / sqrt(2)))"""
    for x, gate in _pairs(product.factors):
        maker = file.makers.get(gate)
        if maker is None or maker.kind not in {"Add", "Sub"} or not math.isclose(product.number, 0.5, rel_tol=_CLOSE):
            continue
        inner, number = _split(file, maker)
        erf = file.makers.get(inner)
        if number != 1 or erf is None or erf.kind != "Erf":
            continue
        scale, scaled, members = 1.0, erf.inputs[0], [maker, erf]
        while scaled != x and (step := file.makers.get(scaled)) is not None and step.kind in {"Mul", "Div", "Neg"}:
            scaled, by = (step.inputs[0], -1.0) if step.kind == "Neg" else _split(file, step)
            scale = scale / by if step.kind == "Div" else scale * by
            members.append(step)
        sign = 1 if maker.kind == "Add" else -1
        if scaled == x and math.isclose(scale * sign, math.sqrt(0.5), rel_tol=_CLOSE):
            return "gelu", x, members
    return None


def _pairs(factors: tuple[str, ...]) -> list[tuple[str, str]]:
    """Both ways to tell two factors apart; none where there are more or fewer."""
    if len(factors) != 2:
        return []
    first, second = factors
    return [(first, second), (second, first)]


def _split(file: OnnxFile, operator: Operator) -> tuple[str, float]:
    """Tensor and number of a binary operator; nan where it has no number."""
    for k, name in enumerate(operator.inputs[:2]):
        scalar = file.scalar(name)
        if scalar is not None:
            return operator.inputs[1 - k], scalar
    return operator.inputs[0], math.nan


def _relu6_of_shifted(file: OnnxFile, name: str, x: str | None = None) -> list[Operator] | None:
    """The operators of relu6(x + 3)."""
    clip = file.makers.get(name)
    if clip is None or clip.kind != "Clip" or bounds(file, clip) != (0, 6):
        return None
    shift = file.makers.get(clip.inputs[0])
    if shift is None or shift.kind != "Add":
        return None
    shifted, number = _split(file, shift)
    return [shift, clip] if number == 3 and x in (None, shifted) else None


def bounds(file: OnnxFile, clip: Operator) -> tuple[float, float]:
    """Least and greatest of a Clip; infinite where it has none, nan where it is no constant."""
    low, high = clip.attributes.get("min", -math.inf), clip.attributes.get("max", math.inf)
    names = (*clip.inputs[1:], "", "")
    if names[0]:
        low = scalar if (scalar := file.scalar(names[0])) is not None else math.nan
    if names[1]:
        high = scalar if (scalar := file.scalar(names[1])) is not None else math.nan
    return (-math.inf if abs(low) > 1e30 else low), (math.inf if abs(high) > 1e30 else high)


def _reads_activation(name: str) -> Effect:
    def effect(reader: Reader, operator: Operator) -> list[Tensor] | None:
        x = reader.tensor(operator.inputs[0])
        if x is None:
            return None
        return [reader.made(operator.name, dataclasses.replace(x.op("activation"), activation=name), [x], x)]

    return effect


# ---- moves and norms ------------------------------------------------------------------------------------------


def _channel_shuffle(file: OnnxFile, last: Operator) -> Match | None:
    """Channels as (groups, rest), the two swapped, and one axis again."""
    swap = file.makers.get(last.inputs[0])
    split = file.makers.get(swap.inputs[0]) if swap is not None else None
    if swap is None or split is None or swap.kind != "Transpose" or split.kind != "Reshape":
        return None
    before, middle, after = (file.shape(name) for name in (split.inputs[0], split.output, last.output))
    if before is None or middle is None or before != after or len(middle) != len(before) + 1:
        return None
    perm = tuple(swap.attributes.get("perm", ()))
    for axis in {1, len(before) - 1}:
        swapped = list(range(len(middle)))
        swapped[axis], swapped[axis + 1] = axis + 1, axis
        if perm == tuple(swapped) and middle[:axis] == before[:axis] and middle[axis + 2 :] == before[axis + 1 :]:
            return Match((split, swap), split.inputs[:1], _reads_shuffle(axis, middle[axis]))
    return None


def _reads_shuffle(axis: int, groups: int) -> Effect:
    def effect(reader: Reader, operator: Operator) -> list[Tensor] | None:
        x = reader.tensor(operator.inputs[0], in_order=True)
        if x is None:
            return None
        x = dataclasses.replace(x, axis=axis)
        return [reader.made(operator.name, dataclasses.replace(x.op("channel_shuffle"), groups=groups), [x], x)]

    return effect


def _layer_norm(file: OnnxFile, last: Operator) -> Match | None:
    """((x - mean) / sqrt(mean((x - mean)^2) + epsilon)) * scale + shift, over the last axis."""
    scale = file.makers.get(_tensor_of(file, last))
    divide = file.makers.get(_tensor_of(file, scale)) if scale is not None and scale.kind == "Mul" else None
    if scale is None or divide is None or divide.kind != "Div":
        return None
    centred, root = (file.makers.get(name) for name in divide.inputs)
    if centred is None or root is None or centred.kind != "Sub" or root.kind != "Sqrt":
        return None
    shift = file.makers.get(root.inputs[0])
    variance = file.makers.get(_tensor_of(file, shift)) if shift is not None and shift.kind == "Add" else None
    square = file.makers.get(variance.inputs[0]) if variance is not None else None
    mean = file.makers.get(centred.inputs[1])
    if shift is None or variance is None or square is None or mean is None:
        return None
    squares = square.kind == "Pow" or (square.kind == "Mul" and square.inputs[0] == square.inputs[1])
    means = all(member.kind == "ReduceMean" and _is_last(file, member) for member in (mean, variance))
    if not squares or not means or square.inputs[0] != centred.output or mean.inputs[0] != centred.inputs[0]:
        return None
    constants = tuple(name for name in (*scale.inputs, *last.inputs) if name in file.constants)
    inner = (mean, centred, square, variance, shift, root, divide, scale)
    return Match(inner, (centred.inputs[0], *constants), _reads_layer_norm)


def _tensor_of(file: OnnxFile, operator: Operator) -> str:
    """The operand that is no constant, of a binary operator that has one; "" of another."""
    names = [name for name in operator.inputs if name not in file.constants]
    return names[0] if len(names) == 1 and len(operator.inputs) == 2 else ""


def _is_last(file: OnnxFile, operator: Operator) -> bool:
    shape = file.shape(operator.inputs[0])
    axes = file.integers(operator, "axes", 1)
    return shape is not None and axes in ([-1], [len(shape) - 1])


def _reads_layer_norm(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = reader.tensor(operator.inputs[0], in_order=True)
    if x is None:
        return None
    x = dataclasses.replace(x, axis=len(x.shape) - 1)
    return [reader.made(operator.name, x.op("layer_norm"), [x], x)]


_PATTERNS = {
    "Mul": (_product_activation,),
    "Div": (_product_activation,),
    "Reshape": (_channel_shuffle,),
    "Add": (_layer_norm,),
}
