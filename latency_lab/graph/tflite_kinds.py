"""Which operation each builtin operator of a .tflite file is. One small function a kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from latency_lab.graph.tflite_file import Operator, Shape
from latency_lab.graph.tflite_shapes import SizedModel
from latency_lab.graph.tflite_step import DTYPES, FUSED, NOT_AS_EXPECTED, SAME_PADDING, Dims, Made, Step
from latency_lab.ops import OpConfig

_WEIGHTS_IN_INTEGERS = frozenset({"int8", "uint8", "int4", "int2"})
_ACTIVATIONS = {
    "RELU": "relu", "RELU6": "relu6", "RELU_N1_TO_1": "relu6", "RELU_0_TO_1": "relu6", "PRELU": "prelu",
    "LEAKY_RELU": "leaky_relu", "ELU": "elu", "LOGISTIC": "sigmoid", "TANH": "tanh", "HARD_SWISH": "hard_swish",
    "GELU": "gelu", "EXP": "exponential", "LOG": "log", "SQRT": "sqrt", "RSQRT": "rsqrt", "SQUARE": "square",
    "ABS": "abs", "NEG": "negative",
}  # fmt: skip
_BINARY = {
    "ADD": "add", "SUB": "subtract", "MUL": "multiply", "DIV": "divide", "MAXIMUM": "maximum", "MINIMUM": "minimum",
    "SQUARED_DIFFERENCE": "squared_difference",
}  # fmt: skip
_MOST_TILES = 64
"""How often a TILE may repeat its tensor to be read as a concatenation."""

_Kind = Callable[[Step], list[Made] | None]
_KINDS: dict[str, _Kind] = {}


def read(model: SizedModel, op: Operator) -> list[Made] | None:
    """The operations of one operator, or None where there are none for it."""
    kind = _KINDS.get(op.code) if op.builtin and op.outputs else None
    if kind is None or op.option("FusedActivationFunction") not in FUSED:
        return None
    step = Step(model, op)
    try:
        return kind(step) if step.computes_in_floats_or_bytes else None
    except NOT_AS_EXPECTED:
        return None


def _reads(*codes: str) -> Callable[[_Kind], _Kind]:
    def register(function: _Kind) -> _Kind:
        _KINDS.update(dict.fromkeys(codes, function))
        return function

    return register


# ---- kernels --------------------------------------------------------------------------------------------------------


@_reads("CONV_2D")
def _conv2d(step: Step) -> list[Made] | None:
    if not step.only(0) or len(step.shape(0)) != 4:
        return None
    x = step.dims(0)
    out, rows, columns, per_group = step.shape(1)
    groups = x[3] // per_group
    fields = _kerneled(step, 1, 2) | {"kernel_size": (rows, columns)}
    if groups == x[3] > 1:
        return step.one("depthwise_conv2d", x, out, **fields)
    return step.one("conv2d", x, out, groups=groups, **fields)


@_reads("DEPTHWISE_CONV_2D")
def _depthwise(step: Step) -> list[Made] | None:
    if not step.only(0) or len(step.shape(0)) != 4:
        return None
    _, rows, columns, out = step.shape(1)
    return step.one("depthwise_conv2d", step.dims(0), out, **_kerneled(step, 1, 2), kernel_size=(rows, columns))


@_reads("TRANSPOSE_CONV")
def _transpose_conv(step: Step) -> list[Made] | None:
    if not step.only(2) or len(step.shape(2)) != 4:
        return None
    x, made = step.dims(2), step.output_dims()
    out, *kernel, _ = step.shape(1)
    fields = _kerneled(step, 1, 3) | {"kernel_size": tuple(kernel)}
    plain = OpConfig("conv2d_transpose", 1, x[1], x[2], kernel_size=fields["kernel_size"], strides=fields["strides"],
                     padding=fields["padding"])  # fmt: skip
    if (plain.output_height, plain.output_width) != made[1:3]:
        fields["output_size"] = made[1:3]
    return step.one("conv2d_transpose", x, out, (2,), **fields)


@_reads("CONV_3D")
def _conv3d(step: Step) -> list[Made] | None:
    if not step.only(0) or len(step.shape(0)) != 5:
        return None
    batch, depth, height, width, channels = step.shape(0)
    kernel_depth, rows, columns, per_group, out = step.shape(1)
    if per_group != channels or step.op.option("DilationDFactor", 1) != 1:
        return None
    fields = _kerneled(step, 1, 2) | {"kernel_size": (rows, columns), "kernel_depth": kernel_depth, "depth": depth}
    fields["stride_depth"] = int(step.op.option("StrideD", 1))
    return step.one("conv3d", (batch, height, width, channels), out, **fields)


@_reads("FULLY_CONNECTED")
def _fully_connected(step: Step) -> list[Made] | None:
    if not step.only(0):
        return None
    out, channels = step.shape(1)
    x, dtype = _dense_dims(step, channels), _kernel_dtype(step, 0, 1)
    return step.one("dense", x, out, use_bias=_has(step, 2), dtype=dtype)


@_reads("BATCH_MATMUL")
def _matmul_by_constant(step: Step) -> list[Made] | None:
    kernel = step.shape(1)
    if not step.only(0) or step.op.option("AdjX", False) or math.prod(kernel[:-2]) != 1:
        return None
    channels, out = kernel[:-3:-1] if step.op.option("AdjY", False) else kernel[-2:]
    x, dtype = _dense_dims(step, channels), _kernel_dtype(step, 0, 1)
    return step.one("dense", x, out, use_bias=False, dtype=dtype)


def _dense_dims(step: Step, channels: int) -> Dims:
    """What a dense operation of this many input channels reads: it may flatten on its way."""
    x = step.dims(0)
    if x[3] == channels:
        return x
    rows = math.prod(x) // channels
    batch = step.model.batch if rows % step.model.batch == 0 else 1
    return (batch, 1, rows // batch, channels)


def _kerneled(step: Step, kernel: int, bias: int) -> dict[str, Any]:
    """Fields of a conv; inputs are its kernel and bias."""
    op, data = step.op, 2 if step.op.code == "TRANSPOSE_CONV" else 0
    return {
        "strides": (int(op.option("StrideH", 1)), int(op.option("StrideW", 1))),
        "dilation": (int(op.option("DilationHFactor", 1)), int(op.option("DilationWFactor", 1))),
        "padding": "same" if op.option("Padding") == SAME_PADDING else "valid",
        "use_bias": _has(step, bias),
        "dtype": _kernel_dtype(step, data, kernel),
    }


def _kernel_dtype(step: Step, data: int, kernel: int) -> str:
    """What a conv or dense operation computes in: of activations in floats and weights in integers, the latter."""
    integers = step.model.file.tensors[step.op.inputs[kernel]].dtype in _WEIGHTS_IN_INTEGERS
    return "int8" if integers else step.dtype(data)


def _has(step: Step, i: int) -> bool:
    return len(step.op.inputs) > i and step.op.inputs[i] >= 0


# ---- arithmetic -----------------------------------------------------------------------------------------------------


@_reads(*_BINARY)
def _binary(step: Step) -> list[Made] | None:
    """The operand of the output's shape comes first. By a constant, either may be the one that is spread."""
    output = step.model.shapes[step.op.outputs[0]]
    wired = [i for i in (0, 1) if step.op.inputs[i] in step.wired]
    inputs = sorted(wired, key=lambda i: step.shape(i) != output)
    spread = inputs[-1]
    if len(inputs) == 1:
        other = 1 - spread
        spread = other if step.shape(spread) == output else spread
    elif step.shape(inputs[0]) != output:
        return None
    broadcast = _broadcast(step, spread, output, constant=spread not in wired)
    if broadcast is None:
        return None
    x = step.output_dims()
    return step.one(_BINARY[step.op.code], x, x[3], inputs, operands=len(inputs), broadcast=broadcast)


def _broadcast(step: Step, i: int, output: Shape, constant: bool) -> str | None:
    """How input i is spread over the output (`OpConfig.broadcast`); None where in no way that operations have."""
    shape = (1,) * (len(output) - len(step.shape(i))) + step.shape(i)
    spread = [a if a != b else 0 for a, b in zip(shape, output, strict=True)]
    if shape == output and not (constant and math.prod(output) == output[-1] > 1):
        return ""
    if math.prod(shape) == 1:
        return "scalar"
    channels = shape[-1] if output else 1
    if channels == output[-1] and math.prod(shape[1:-1]) == 1 and (shape[0] == 1 or len(shape) > 1 and not spread[0]):
        return "channels"
    if channels == 1 and not any(spread[:-1]):
        return "positions"
    return "" if constant and not any(spread[1:]) else None


@_reads("ADD_N")
def _add_n(step: Step) -> list[Made] | None:
    x, inputs = step.output_dims(), range(len(step.op.inputs))
    if len(step.wired) != len(inputs):
        return None
    return step.one("add", x, x[3], inputs, operands=len(inputs))


@_reads(*_ACTIVATIONS)
def _activation(step: Step) -> list[Made] | None:
    x = step.dims(0)
    return step.one("activation", x, x[3], activation=_ACTIVATIONS[step.op.code]) if step.only(0) else None


@_reads("SOFTMAX")
def _softmax(step: Step) -> list[Made]:
    x = step.dims(0)
    return step.one("softmax", x, x[3])


@_reads("LOCAL_RESPONSE_NORMALIZATION")
def _local_response_norm(step: Step) -> list[Made]:
    x = step.dims(0)
    return step.one("local_response_norm", x, x[3])


@_reads("QUANTIZE", "DEQUANTIZE")
def _cast(step: Step) -> list[Made]:
    """The dtype is that of the small side; int8 to int8 of another scale is a quantize too."""
    x, quantize = step.dims(0), step.op.code == "QUANTIZE"
    side = step.op.outputs[0] if quantize else step.op.inputs[0]
    return step.one(step.op.code.lower(), x, x[3], dtype=DTYPES[step.model.file.tensors[side].dtype])


# ---- pools and reductions -------------------------------------------------------------------------------------------


@_reads("MAX_POOL_2D", "AVERAGE_POOL_2D")
def _pool(step: Step) -> list[Made]:
    op, x = step.op, step.dims(0)
    return step.one(
        "max_pool" if op.code == "MAX_POOL_2D" else "avg_pool",
        x,
        x[3],
        kernel_size=(int(op.option("FilterHeight", 1)), int(op.option("FilterWidth", 1))),
        strides=(int(op.option("StrideH", 1)), int(op.option("StrideW", 1))),
        padding="same" if op.option("Padding") == SAME_PADDING else "valid",
    )


@_reads("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN")
def _reduce(step: Step) -> list[Made] | None:
    shape, axes = step.shape(0), step.values(1)
    if axes is None:
        return None
    x, last = step.dims(0), len(shape) - 1
    over = {int(axis) % len(shape) for axis in axes.ravel().tolist()}
    if over == {last} and last > 0:
        return step.one("channel_mean", x, 1)
    if over == set(range(1, last)) and last > 1:
        average = step.op.code in {"MEAN", "SUM"}
        return step.one("global_avg_pool" if average else "global_max_pool", x, x[3])
    return None


# ---- moves ----------------------------------------------------------------------------------------------------------


@_reads("CONCATENATION")
def _concatenate(step: Step) -> list[Made]:
    """Along another axis than channels it moves as much: it is given the output's size."""
    inputs = [i for i, tensor in enumerate(step.op.inputs) if tensor in step.wired]
    x = step.output_dims()
    return step.one("concatenate", x, x[3], inputs, operands=len(inputs))


@_reads("TILE")
def _tile(step: Step) -> list[Made] | None:
    """Along one axis: each block of the axes from there on is written several times in a row, which is what a
    concatenation of the tensor with itself does. Keras' nearest upsampling is made of these."""
    shape, found = step.shape(0), step.values(1)
    if found is None or not step.only(0):
        return None
    times = [int(count) for count in found.ravel().tolist()]
    axes = [axis for axis, count in enumerate(times) if count > 1]
    if len(axes) != 1:
        return None
    count, block = times[axes[0]], math.prod(shape[axes[0] :])
    if count > _MOST_TILES:
        return None
    x = (1, 1, math.prod(shape) // block, count * block)
    return step.one("concatenate", x, x[3], (0,) * count, operands=count)


@_reads("PAD", "PADV2", "MIRROR_PAD")
def _pad(step: Step) -> list[Made] | None:
    found = step.values(1)
    if found is None or not 3 <= len(step.shape(0)) <= 4:
        return None
    batch, *positions, channels = [(int(before), int(after)) for before, after in found.tolist()]
    if any(batch):
        return None
    pads = ((0, 0),) * (2 - len(positions)) + tuple(positions)
    x = step.dims(0)
    return step.one("pad", x, x[3] + sum(channels), padding=pads)


@_reads("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
def _reshape(step: Step) -> list[Made] | None:
    x, made = step.dims(0), step.output_dims()
    rank, made_rank = len(step.shape(0)), len(step.model.shapes[step.op.outputs[0]])
    if rank > 2 == made_rank and made == (x[0], 1, 1, math.prod(x[1:])):
        return step.one("flatten", x, made[3])
    return _moved(step, "reshape", 0)


@_reads("TRANSPOSE")
def _transpose(step: Step) -> list[Made] | None:
    shape, order = step.shape(0), step.values(1)
    if order is None:
        return None
    moved = [axis for axis in order.ravel().tolist() if shape[axis] > 1]
    if moved == sorted(moved):
        return _moved(step, "reshape", 0)
    x = step.dims(0)
    return step.one("transpose", x, x[3]) if len(shape) <= 4 else None


@_reads("SLICE", "STRIDED_SLICE", "SPLIT_V")
def _slice(step: Step) -> list[Made] | None:
    return _moved(step, "slice", 0) if step.only(0) else None


@_reads("SPLIT")
def _split(step: Step) -> list[Made] | None:
    return _moved(step, "slice", 1)


def _moved(step: Step, kind: str, data: int) -> list[Made] | None:
    """One operation for each output, which it says the size of. Examples that turn into positions, or the reverse,
    are counted as rows."""
    x = step.dims(data)
    found: list[Made] = []
    for k in range(len(step.op.outputs)):
        batch, height, width, channels = step.output_dims(k)
        if batch * height % x[0]:
            return None
        size = (batch * height // x[0], width)
        found += step.one(kind, x, channels, (data,), k, output_size=size)
    return found


@_reads("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
def _resize(step: Step) -> list[Made]:
    x, made = step.dims(0), step.output_dims()
    kind = "resize_bilinear" if step.op.code == "RESIZE_BILINEAR" else "resize_nearest"
    return step.one(kind, x, x[3], output_size=made[1:3])
