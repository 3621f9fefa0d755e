"""What an operator of a .tflite file makes of the shapes, and of the small integer values, that it reads.

For files whose sizes are open until they are asked for; the shapes of others are in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from latency_lab.graph.tflite_file import Operator, Shape, Values

_SAME_PADDING = 0
_MOST_VALUES = 1024
"""Numbers in the largest value that is worked out."""

_DIVISIONS = {"DIV": np.floor_divide, "FLOOR_DIV": np.floor_divide, "FLOOR_MOD": np.mod}
_ARITHMETIC: dict[str, Callable[..., Values]] = {
    "ADD": np.add,
    "SUB": np.subtract,
    "MUL": np.multiply,
    "MAXIMUM": np.maximum,
    "MINIMUM": np.minimum,
    **_DIVISIONS,
}

_Rule = Callable[[Operator, Sequence[Shape], Sequence[Values | None]], Sequence[Shape] | None]
_RULES: dict[str, _Rule] = {}


def shapes(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    """Shapes of the outputs, or None where they cannot be told.

    Args:
        op: the operator.
        inputs: shape of each input; () of one that is left out.
        values: numbers of each input that is a small constant, None of others.
    """
    rule = _RULES.get(op.code) if op.builtin else None
    try:
        return None if rule is None else rule(op, inputs, values)
    except (IndexError, ValueError, TypeError, ZeroDivisionError):
        return None


def value(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Values | None:
    """The numbers that an operator makes of constants, where it is one of those that shapes are worked out with."""
    if op.code == "SHAPE" and op.builtin:
        return np.array(inputs[0], np.int32)
    if not op.builtin or any(v is None or v.dtype.kind not in "iu" for v in values):
        return None
    known = [v for v in values if v is not None]
    try:
        found = _value(op, known)
    except (IndexError, ValueError, TypeError):
        return None
    return None if found is None or found.size > _MOST_VALUES else found


def strided(op: Operator, begin: Values, end: Values, steps: Values) -> tuple[slice | int | None, ...]:
    """The index that a STRIDED_SLICE takes of its input, as numpy has it. (An ellipsis is given as `...`.)"""
    index: list[slice | int | None] = []
    masks = {name: int(op.option(f"{name}Mask")) for name in ("Begin", "End", "Ellipsis", "NewAxis", "ShrinkAxis")}
    for i, (first, last, step) in enumerate(zip(begin.tolist(), end.tolist(), steps.tolist(), strict=True)):
        bit = 1 << i
        if masks["Ellipsis"] & bit:
            index.append(...)  # type: ignore[arg-type]
        elif masks["NewAxis"] & bit:
            index.append(None)
        elif masks["ShrinkAxis"] & bit:
            index.append(first)
        else:
            stop = first + last if op.option("Offset", False) else last
            index.append(slice(None if masks["Begin"] & bit else first, None if masks["End"] & bit else stop, step))
    return tuple(index)


def _value(op: Operator, known: list[Values]) -> Values | None:
    axis = int(op.option("Axis"))
    first = known[0] if known else np.zeros(0)
    match op.code:
        case "PACK":
            return np.stack(known, axis)
        case "CONCATENATION":
            return np.concatenate(known, axis)
        case "STRIDED_SLICE":
            return first[strided(op, *known[1:4])]
        case "GATHER":
            return np.take(first, known[1], axis)
        case "REDUCE_PROD":
            return np.asarray(np.prod(first, axis=_ints(known[1]), keepdims=bool(op.option("KeepDims"))))
        case "RESHAPE" | "SQUEEZE" | "EXPAND_DIMS":
            made = shapes(op, [v.shape for v in known], list(known))
            return None if made is None else first.reshape(made[0])
        case "CAST":
            return first
    by_zero = op.code in _DIVISIONS and not np.all(known[-1])
    return None if op.code not in _ARITHMETIC or by_zero else np.asarray(_ARITHMETIC[op.code](*known))


def _rule(*codes: str) -> Callable[[_Rule], _Rule]:
    def register(function: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(codes, function))
        return function

    return register


@_rule(
    *("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LOGISTIC", "TANH", "ELU", "HARD_SWISH", "GELU", "LEAKY_RELU"),
    *("EXP", "LOG", "SQRT", "RSQRT", "SQUARE", "ABS", "NEG", "FLOOR", "CEIL", "ROUND", "SIN", "COS", "SIGN", "PRELU"),
    *("SOFTMAX", "LOG_SOFTMAX", "CAST", "QUANTIZE", "DEQUANTIZE", "LOCAL_RESPONSE_NORMALIZATION", "L2_NORMALIZATION"),
    *("LOGICAL_NOT", "ZEROS_LIKE", "CUMSUM", "REVERSE_V2", "FAKE_QUANT", "DENSIFY"),
)
def _same(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    return [inputs[0]]


@_rule(
    *("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "ADD_N", "POW", "FLOOR_DIV", "FLOOR_MOD"),
    *("GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "EQUAL", "NOT_EQUAL", "LOGICAL_AND", "LOGICAL_OR", "SELECT_V2"),
)
def _broadcast(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    return [np.broadcast_shapes(*inputs)]


@_rule("CONV_2D", "DEPTHWISE_CONV_2D")
def _conv(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    batch, height, width, _ = inputs[0]
    kernel = inputs[1]
    out = kernel[0] if op.code == "CONV_2D" else kernel[3]
    return [(batch, _window(op, "H", height, kernel[1]), _window(op, "W", width, kernel[2]), out)]


@_rule("CONV_3D")
def _conv3d(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    sizes = zip("DHW", inputs[0][1:4], inputs[1][:3], strict=True)
    return [(inputs[0][0], *(_window(op, axis, size, kernel) for axis, size, kernel in sizes), inputs[1][4])]


@_rule("MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D")
def _pool(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    batch, height, width, channels = inputs[0]
    rows, columns = int(op.option("FilterHeight", 1)), int(op.option("FilterWidth", 1))
    return [(batch, _window(op, "H", height, rows), _window(op, "W", width, columns), channels)]


def _window(op: Operator, axis: str, size: int, kernel: int) -> int:
    stride, dilation = int(op.option(f"Stride{axis}", 1)), int(op.option(f"Dilation{axis}Factor", 1))
    if op.option("Padding") == _SAME_PADDING:
        return math.ceil(size / stride)
    return (size - (kernel - 1) * dilation - 1) // stride + 1


@_rule("TRANSPOSE_CONV")
def _given(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    return None if values[0] is None else [_ints(values[0])]


@_rule("FULLY_CONNECTED")
def _dense(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    out, ins = inputs[1]
    if op.option("KeepNumDims", False):
        return [(*inputs[0][:-1], out)]
    return [(math.prod(inputs[0]) // ins, out)]


@_rule("BATCH_MATMUL")
def _matmul(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    a, b = inputs[0], inputs[1]
    rows = a[-1] if op.option("AdjX", False) else a[-2]
    columns = b[-2] if op.option("AdjY", False) else b[-1]
    return [(*np.broadcast_shapes(a[:-2], b[:-2]), rows, columns)]


@_rule("CONCATENATION")
def _concatenation(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    found = list(inputs[0])
    axis = int(op.option("Axis")) % len(found)
    found[axis] = sum(shape[axis] for shape in inputs)
    return [tuple(found)]


@_rule("PACK")
def _pack(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    axis = int(op.option("Axis")) % (len(inputs[0]) + 1)
    return [(*inputs[0][:axis], len(inputs), *inputs[0][axis:])]


@_rule("PAD", "PADV2", "MIRROR_PAD")
def _pad(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    if values[1] is None:
        return None
    return [tuple(size + sum(pads) for size, pads in zip(inputs[0], values[1].tolist(), strict=True))]


@_rule("RESHAPE")
def _reshape(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    given = values[1] if len(values) > 1 else np.array(op.option("NewShape", ()), np.int64)
    if given is None:
        return None
    target = list(_ints(given))
    if -1 in target:
        known = math.prod(size for size in target if size != -1)
        target[target.index(-1)] = math.prod(inputs[0]) // known
    return [tuple(target)] if math.prod(target) == math.prod(inputs[0]) else None


@_rule("SQUEEZE")
def _squeeze(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    axes = {int(axis) % len(inputs[0]) for axis in op.option("SqueezeDims", ())}
    gone = axes or {axis for axis, size in enumerate(inputs[0]) if size == 1}
    return [tuple(size for axis, size in enumerate(inputs[0]) if axis not in gone)]


@_rule("EXPAND_DIMS")
def _expand(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    if values[1] is None:
        return None
    axis = int(values[1].ravel()[0]) % (len(inputs[0]) + 1)
    return [(*inputs[0][:axis], 1, *inputs[0][axis:])]


@_rule("TRANSPOSE")
def _transpose(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    return None if values[1] is None else [tuple(inputs[0][axis] for axis in _ints(values[1]))]


@_rule("STRIDED_SLICE")
def _strided_slice(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    _, begin, end, steps = values[:4]
    if begin is None or end is None or steps is None:
        return None
    return [np.broadcast_to(np.int8(0), inputs[0])[strided(op, begin, end, steps)].shape]


@_rule("SLICE")
def _slice(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    if values[1] is None or values[2] is None:
        return None
    parts = zip(inputs[0], _ints(values[1]), _ints(values[2]), strict=True)
    return [tuple(size - begin if count == -1 else count for size, begin, count in parts)]


@_rule("SPLIT")
def _split(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    count = len(op.outputs)
    if values[0] is None:
        return None
    axis = int(values[0].ravel()[0]) % len(inputs[1])
    return [_resized(inputs[1], axis, inputs[1][axis] // count)] * count


@_rule("SPLIT_V")
def _split_v(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    if values[1] is None or values[2] is None:
        return None
    axis, sizes = int(values[2].ravel()[0]) % len(inputs[0]), list(_ints(values[1]))
    if -1 in sizes:
        sizes[sizes.index(-1)] = inputs[0][axis] - sum(sizes) - 1
    return [_resized(inputs[0], axis, size) for size in sizes]


@_rule("UNPACK")
def _unpack(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    axis = int(op.option("Axis")) % len(inputs[0])
    return [(*inputs[0][:axis], *inputs[0][axis + 1 :])] * len(op.outputs)


@_rule("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
def _resize(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    return None if values[1] is None else [(inputs[0][0], *_ints(values[1]), inputs[0][3])]


@_rule("DEPTH_TO_SPACE", "SPACE_TO_DEPTH")
def _space(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    batch, height, width, channels = inputs[0]
    block = int(op.option("BlockSize"))
    if op.code == "DEPTH_TO_SPACE":
        return [(batch, height * block, width * block, channels // block**2)]
    return [(batch, height // block, width // block, channels * block**2)]


@_rule("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND")
def _batches(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    if values[1] is None or values[2] is None:
        return None
    blocks, edges = _ints(values[1]), [sum(edge) for edge in values[2].tolist()]
    sizes, rest = inputs[0][1 : 1 + len(blocks)], inputs[0][1 + len(blocks) :]
    parts = list(zip(sizes, blocks, edges, strict=True))
    if op.code == "SPACE_TO_BATCH_ND":
        return [(inputs[0][0] * math.prod(blocks), *((size + edge) // block for size, block, edge in parts), *rest)]
    return [(inputs[0][0] // math.prod(blocks), *(size * block - edge for size, block, edge in parts), *rest)]


@_rule("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL")
def _reduce(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    if values[1] is None:
        return None
    gone = {axis % len(inputs[0]) for axis in values[1].ravel().tolist()}
    kept = [(1 if axis in gone else size, axis) for axis, size in enumerate(inputs[0])]
    return [tuple(size for size, axis in kept if axis not in gone or op.option("KeepDims", False))]


@_rule("SHAPE")
def _shape(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape]:
    return [(len(inputs[0]),)]


@_rule("GATHER")
def _gather(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    axis = int(op.option("Axis")) % len(inputs[0])
    return None if op.option("BatchDims") else [(*inputs[0][:axis], *inputs[1], *inputs[0][axis + 1 :])]


@_rule("BROADCAST_TO", "FILL")
def _as_told(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    told = values[1] if op.code == "BROADCAST_TO" else values[0]
    return None if told is None else [_ints(told)]


@_rule("TILE")
def _tile(op: Operator, inputs: Sequence[Shape], values: Sequence[Values | None]) -> Sequence[Shape] | None:
    if values[1] is None:
        return None
    return [tuple(size * times for size, times in zip(inputs[0], _ints(values[1]), strict=True))]


def _resized(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _ints(values: Values) -> Shape:
    return tuple(int(value) for value in values.ravel().tolist())
