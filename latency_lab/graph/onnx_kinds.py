"""What each operator with a kernel or over many numbers is: convolutions, pooling, norms. A small function each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from latency_lab.graph.onnx_arithmetic import ELEMENTWISE
from latency_lab.graph.onnx_file import Operator
from latency_lab.graph.onnx_graph import Effect, Reader, Tensor
from latency_lab.graph.onnx_moves import MOVES
from latency_lab.ops import OpConfig

_COMPUTES: dict[str, Effect] = {}


def _reads(*kinds: str) -> Callable[[Effect], Effect]:
    def register(effect: Effect) -> Effect:
        _COMPUTES.update(dict.fromkeys(kinds, effect))
        return effect

    return register


# ---- operators with kernels -----------------------------------------------------------------------------------


@_reads("Conv", "QLinearConv")
def _conv(reader: Reader, operator: Operator) -> list[Tensor] | None:
    quantized = operator.kind == "QLinearConv"
    weight, bias = (3, 8) if quantized else (1, 2)
    x, shape = _image(reader, operator.inputs[0]), reader.file.shape(operator.inputs[weight])
    out = reader.file.shape(operator.output)
    if x is None or shape is None or out is None or len(shape) != len(x.shape) or len(shape) > 5:
        return None
    groups = int(operator.attributes.get("group", 1))
    deep = len(shape) == 5
    depthwise = groups == x.channels and groups > 1 and not deep
    op = dataclasses.replace(
        x.op("conv3d" if deep else "depthwise_conv2d" if depthwise else "conv2d"),
        out_channels=shape[0],
        groups=1 if depthwise else groups,
        use_bias=len(operator.inputs) > bias and bool(operator.inputs[bias]),
    )
    return [reader.made(operator.name, _windowed(op, operator, shape[2:], out[2:]), [x], _like(x, out))]


@_reads("ConvTranspose")
def _conv_transpose(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x, shape = _image(reader, operator.inputs[0]), reader.file.shape(operator.inputs[1])
    out = reader.file.shape(operator.output)
    if x is None or shape is None or out is None or len(shape) not in (3, 4):
        return None
    kernel, strides, dilation = (
        _pair(operator.attributes.get(name), default)
        for name, default in (("", list(shape[2:])), ("strides", [1, 1]), ("dilations", [1, 1]))
    )
    op = dataclasses.replace(
        x.op("conv2d_transpose"),
        out_channels=out[1],
        groups=int(operator.attributes.get("group", 1)),
        use_bias=len(operator.inputs) > 2,
        kernel_size=kernel,
        strides=strides,
        dilation=dilation,
    )
    size = _pair(list(out[2:]), [1, 1])
    for padding in ("same", "valid"):
        candidate = dataclasses.replace(op, padding=padding)
        if (candidate.output_height, candidate.output_width) == size:
            return [reader.made(operator.name, candidate, [x], _like(x, out))]
    op = dataclasses.replace(op, padding=_explicit(operator) or "valid", output_size=size)
    return [reader.made(operator.name, op, [x], _like(x, out))]


@_reads("Gemm", "MatMul")
def _dense(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = reader.tensor(operator.inputs[0], in_order=True)
    weight = reader.file.constants.get(operator.inputs[1])
    out = reader.file.shape(operator.output)
    if x is None or weight is None or len(weight.shape) != 2 or out is None or operator.attributes.get("transA"):
        return None
    x = dataclasses.replace(x, axis=len(x.shape) - 1)
    op = dataclasses.replace(x.op("dense"), out_channels=out[-1], use_bias=len(operator.inputs) > 2)
    return [reader.made(operator.name, op, [x], x.to(out, len(out) - 1))]


@_reads("MaxPool", "AveragePool")
def _pool(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x, out = _image(reader, operator.inputs[0]), reader.file.shape(operator.output)
    if x is None or out is None or any(reader.file.readers[name] for name in operator.outputs[1:] if name):
        return None
    op = x.op("max_pool" if operator.kind == "MaxPool" else "avg_pool")
    op = _windowed(op, operator, operator.attributes["kernel_shape"], out[2:])
    return [reader.made(operator.name, op, [x], _like(x, out))]


def _image(reader: Reader, name: str) -> Tensor | None:
    """A tensor whose second axis holds channels, as the file has it."""
    x = reader.tensor(name, in_order=True)
    return None if x is None or len(x.shape) < 3 else dataclasses.replace(x, axis=1)


def _like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return Tensor.of(x.source, shape, x.axis, x.dtype)


def _windowed(op: OpConfig, operator: Operator, kernel: Any, out: tuple[int, ...]) -> OpConfig:
    """The operation with its window and with padding that gives an output of these sizes."""
    kernel = list(kernel)
    strides = list(operator.attributes.get("strides", [1] * len(kernel)))
    op = dataclasses.replace(
        op,
        kernel_size=_pair(kernel, [1, 1]),
        strides=_pair(strides, [1, 1]),
        dilation=_pair(operator.attributes.get("dilations"), [1, 1]),
        kernel_depth=kernel[0] if len(kernel) == 3 else 1,
        stride_depth=strides[0] if len(kernel) == 3 else 1,
    )
    same = dataclasses.replace(op, padding="same")
    explicit = _explicit(operator)
    auto = operator.attributes.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        (top, bottom), (left, right) = same.pads
        explicit = ((top, bottom), (left, right)) if auto == b"SAME_UPPER" else ((bottom, top), (right, left))
    explicit = explicit or ((0, 0), (0, 0))
    if same.pads == explicit:
        return same
    if explicit == ((0, 0), (0, 0)) and op.depth == 1:
        op = dataclasses.replace(op, padding="valid")
    else:
        op = dataclasses.replace(op, padding=explicit)
    size = _pair(list(out), [1, 1])
    if (op.output_height, op.output_width) != size:  # a pooling that counts the last, partial window
        missing = [
            (wanted - found) * stride
            for wanted, found, stride in zip(size, (op.output_height, op.output_width), op.strides, strict=True)
        ]
        (top, bottom), (left, right) = explicit
        op = dataclasses.replace(op, padding=((top, bottom + missing[0]), (left, right + missing[1])))
    return op


def _explicit(operator: Operator) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The pads that an operator states, of the last two axes."""
    pads = operator.attributes.get("pads")
    if not pads:
        return None
    half = len(pads) // 2
    pairs = [(0, 0), *zip(pads[:half], pads[half:], strict=True)]
    return pairs[-2], pairs[-1]


def _pair(values: Any, default: list[int]) -> tuple[int, int]:
    """(rows, columns) of the last two axes; a single axis counts as columns."""
    found = [1, *(default if values is None else values)]
    return int(found[-2]), int(found[-1])


# ---- reductions and norms -------------------------------------------------------------------------------------


@_reads("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = _image(reader, operator.inputs[0])
    kind = "global_avg_pool" if operator.kind == "GlobalAveragePool" else "global_max_pool"
    return None if x is None else [_pooled(reader, operator, x, kind)]


@_reads("ReduceMean", "ReduceMax")
def _reduce(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x, axes = reader.tensor(operator.inputs[0]), reader.file.integers(operator, "axes", 1)
    if x is None or axes is None:
        return None
    rank = len(x.shape)
    reduced = {axis % rank for axis in axes}
    positions = {i for i in range(1, rank) if i != x.axis}
    if reduced == {x.axis} and operator.kind == "ReduceMean":
        op = dataclasses.replace(x.op("channel_mean"), out_channels=1)
        return [reader.made(operator.name, op, [x], _reduced(operator, x, reduced))]
    wide = {i for i in positions if x.shape[i] > 1}
    if not wide <= reduced or not reduced <= positions:
        return None
    kind = "global_avg_pool" if operator.kind == "ReduceMean" else "global_max_pool"
    return [reader.made(operator.name, x.op(kind), [x], _reduced(operator, x, reduced))]


def _pooled(reader: Reader, operator: Operator, x: Tensor, kind: str) -> Tensor:
    shape = (*x.shape[:2], *[1] * (len(x.shape) - 2))
    return reader.made(operator.name, x.op(kind), [x], x.to(shape))


def _reduced(operator: Operator, x: Tensor, axes: set[int]) -> Tensor:
    """The tensor without these axes, or with size 1 along them."""
    if operator.attributes.get("keepdims", 1):
        return dataclasses.replace(x, shape=tuple(1 if i in axes else size for i, size in enumerate(x.shape)))
    kept = [i for i in range(len(x.shape)) if i not in axes]
    axis = kept.index(x.axis) if x.axis in kept else len(kept) - 1
    ranks = sorted(x.order[i] for i in kept)
    order = tuple(ranks.index(x.order[i]) for i in kept)
    return dataclasses.replace(x, shape=tuple(x.shape[i] for i in kept), axis=axis, order=order)


@_reads("BatchNormalization", "LRN")
def _norm(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = reader.tensor(operator.inputs[0], in_order=True)
    if x is None or operator.attributes.get("training_mode"):
        return None
    x = dataclasses.replace(x, axis=min(1, len(x.shape) - 1))
    kind = "batch_norm" if operator.kind == "BatchNormalization" else "local_response_norm"
    return [reader.made(operator.name, x.op(kind), [x], x)]


@_reads("InstanceNormalization", "GroupNormalization")
def _group_norm(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = _image(reader, operator.inputs[0])
    if x is None:
        return None
    groups = int(operator.attributes.get("num_groups", x.channels))
    return [reader.made(operator.name, dataclasses.replace(x.op("group_norm"), groups=groups), [x], x)]


@_reads("LayerNormalization")
def _layer_norm(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = reader.tensor(operator.inputs[0], in_order=True)
    if x is None or int(operator.attributes.get("axis", -1)) % len(x.shape) != len(x.shape) - 1:
        return None
    x = dataclasses.replace(x, axis=len(x.shape) - 1)
    return [reader.made(operator.name, x.op("layer_norm"), [x], x)]


@_reads("Softmax", "LogSoftmax")
def _softmax(reader: Reader, operator: Operator) -> list[Tensor] | None:
    x = reader.tensor(operator.inputs[0])
    if x is None:
        return None
    axis = int(operator.attributes.get("axis", -1 if reader.file.opset >= 13 else 1)) % len(x.shape)
    op = dataclasses.replace(x, axis=axis).op("softmax")
    return [reader.made(operator.name, op, [x], x)]


EFFECTS: dict[str, Effect] = {**_COMPUTES, **ELEMENTWISE, **MOVES}
"""ONNX operator -> what reads it."""
