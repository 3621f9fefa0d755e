"""What each operator that only moves numbers is: shapes, slices, joins, resizes, casts. A small function each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from latency_lab.graph.onnx_file import Operator, Shape
from latency_lab.graph.onnx_graph import Effect, Reader, Tensor
from latency_lab.ops import OpConfig

MOVES: dict[str, Effect] = {}
"""ONNX operator -> what reads it."""


def _reads(*kinds: str) -> Callable[[Effect], Effect]:
    def register(effect: Effect) -> Effect:
        MOVES.update(dict.fromkeys(kinds, effect))
        return effect

    return register


@_reads("Dropout", "Identity", "Cast", "CastLike")
def _nothing(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = reader.raw(operator.inputs[0])
    return None if x is None else [x]


@_reads("Transpose")
def _transpose(reader: Reader, operator: Operator) -> list[Tensor] | None:
    """Only noted: an operation that needs the new order makes the node."""
    x = reader.raw(operator.inputs[0])
    if x is None:
        return None
    perm = [int(i) for i in operator.attributes.get("perm", reversed(range(len(x.shape))))]
    order, shape = tuple(x.order[i] for i in perm), tuple(x.shape[i] for i in perm)
    moved = dataclasses.replace(x, shape=shape, axis=perm.index(x.axis), order=order, moved_by=operator.name)
    return [moved.to(shape) if moved.in_order else moved]


@_reads("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x, shape = reader.tensor(operator.inputs[0]), reader.file.shape(operator.output)
    if x is None or shape is None or math.prod(shape) != x.count or not shape:
        return None
    if len(shape) == 2 and not x.in_order and shape[0] == x.batch and x.order[-1] == 1:
        flat = reader.made(operator.name, _flattened(x, "flatten"), [x], x.to(shape, 1))
        return [flat]  # the transpose before it is part of the operation
    x = reader.tensor(operator.inputs[0], in_order=True)
    if x is None:
        return None
    axis = _kept_axis(x, shape)
    if axis is not None and (math.prod(x.space) > 1 or _ends_pool(reader, x, shape)):
        return [x.to(shape, axis)]
    if axis is None and shape[0] == x.batch and math.prod(shape[1:]) == math.prod(shape[-1:]):
        return [reader.made(operator.name, _flattened(x, "reshape"), [x], x.to(shape, len(shape) - 1))]
    new = x.to(shape, axis if axis is not None else 1 if len(shape) > 3 else len(shape) - 1)
    _, height, width = new.space
    op = dataclasses.replace(x.op("reshape"), output_size=(height, width), out_channels=new.channels)
    return [reader.made(operator.name, op, [x], new)]


def _flattened(x: Tensor, kind: str) -> OpConfig:
    """All numbers of an example as channels."""
    size = None if kind == "flatten" else (1, 1)
    return dataclasses.replace(x.op(kind), out_channels=math.prod(x.space) * x.channels, output_size=size)


def _kept_axis(x: Tensor, shape: Shape) -> int | None:
    """Where the axis of channels is in another shape of the same numbers; None where it is cut or joined."""
    before = math.prod(x.shape[: x.axis])
    for axis, size in enumerate(shape):
        if size == x.channels and math.prod(shape[:axis]) == before and (axis > 0 or len(shape) == 1):
            return axis
    return None


def _ends_pool(reader: Reader, x: Tensor, shape: Shape) -> bool:
    """Whether it drops the positions that a pooling over all of them has left: part of that operation."""
    made_by = reader.nodes[x.source].op.kind if x.source >= 0 else ""
    return made_by in {"global_avg_pool", "global_max_pool", "flatten"} and len(shape) < max(len(x.shape), 3)


@_reads("Concat")
def _concatenate(reader: Reader, operator: Operator) -> list[Tensor] | None:
    operands, shape = reader.tensors(operator), reader.file.shape(operator.output)
    if not operands or shape is None:
        return None
    if len(operands) == len(operator.inputs) == 1:
        return operands
    like = dataclasses.replace(operands[0], shape=shape)
    op = dataclasses.replace(like.op("concatenate"), operands=len(operands))
    return [reader.made(operator.name, op, operands, like)]


@_reads("Pad")
def _pad(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = reader.tensor(operator.inputs[0])
    name = "paddings" if "paddings" in operator.attributes else "pads"
    pads, shape = reader.file.integers(operator, name, 1), reader.file.shape(operator.output)
    if x is None or pads is None or shape is None or len(operator.inputs) > 3 and operator.inputs[3]:
        return None
    rank = len(x.shape)
    pairs = list(zip(pads[:rank], pads[rank:], strict=True))
    if not any(map(any, pairs)):
        return [x]
    space = [pair for i, pair in enumerate(pairs) if i != x.axis and i > 0]
    if any(pairs[x.axis]) or any(pairs[0]) or len(space) > 2:
        return None
    (top, bottom), (left, right) = [(0, 0), (0, 0), *space][-2:]
    op = dataclasses.replace(x.op("pad"), padding=((top, bottom), (left, right)))
    return [reader.made(operator.name, op, [x], dataclasses.replace(x, shape=shape))]


@_reads("Slice", "Split")
def _slice(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = reader.tensor(operator.inputs[0])
    shapes = [reader.file.shape(name) for name in operator.outputs]
    if x is None or not x.shape:
        return None
    made: list[Tensor] = []
    for name, shape in zip(operator.outputs, shapes, strict=True):
        if shape is None or len(shape) != len(x.shape) or 0 in shape:
            return None
        part = dataclasses.replace(x, shape=shape)
        if shape == x.shape or not reader.file.readers[name] and name not in reader.file.outputs:
            made.append(part)
            continue
        _, height, width = part.space
        op = dataclasses.replace(x.op("slice"), output_size=(height, width), out_channels=part.channels)
        made.append(reader.made(operator.name, op, [x], part))
    return made


@_reads("Resize", "Upsample")
def _resize(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x, shape = reader.tensor(operator.inputs[0]), reader.file.shape(operator.output)
    if x is None or shape is None or len(shape) != len(x.shape) or shape[x.axis] != x.channels:
        return None
    kind = "resize_nearest" if operator.attributes.get("mode", b"nearest") == b"nearest" else "resize_bilinear"
    new = dataclasses.replace(x, shape=shape)
    _, height, width = new.space
    return [reader.made(operator.name, dataclasses.replace(x.op(kind), output_size=(height, width)), [x], new)]


@_reads("Tile", "Expand")
def _repeat(reader: Reader, operator: Operator) -> list[Tensor] | None:
    """Positions repeated, as an exporter writes an upsampling."""
    x, shape = reader.tensor(operator.inputs[0]), reader.file.shape(operator.output)
    if x is None or shape is None or len(shape) != len(x.shape) or shape[x.axis] != x.channels:
        return None
    new = dataclasses.replace(x, shape=shape)
    if shape == x.shape:
        return [x]
    size = (1, math.prod(new.space))
    op = dataclasses.replace(x.op("resize_nearest"), depth=1, height=1, width=math.prod(x.space), output_size=size)
    return [reader.made(operator.name, op, [x], new)]


@_reads("QuantizeLinear")
def _quantize(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = reader.raw(operator.inputs[0])
    if x is None:
        return None
    if x.state != "plain":
        return [dataclasses.replace(x, state="plain")]
    op = dataclasses.replace(x.op("quantize"), dtype="int8")
    made = reader.made(operator.name, op, [x], x)
    return [dataclasses.replace(made, state="plain")]


@_reads("DequantizeLinear")
def _dequantize(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = reader.raw(operator.inputs[0])
    return None if x is None else [dataclasses.replace(x, dtype="int8", state="dequantized")]
