"""Pools, resizes, and operations that compute nothing as TFLite operators."""

from __future__ import annotations

from typing import Any

from latency_lab.runtimes._tflite_node import PROBABILITY, Node, writes

_RESIZE_VERSION = 3
_FIVE_AXES_VERSION = 4


@writes("max_pool", "avg_pool")
def _pool(node: Node, operands: list[int], fused: str | None) -> int:
    op = node.op
    code = "MAX_POOL_2D" if op.kind == "max_pool" else "AVERAGE_POOL_2D"
    window: dict[str, Any] = {"strideH": op.strides[0], "strideW": op.strides[1], "padding": int(op.padding != "same")}
    window |= {"filterHeight": op.kernel_size[0], "filterWidth": op.kernel_size[1]}
    return node.moved(code, operands, "Pool2D", activation=fused, **window)


@writes("global_avg_pool", "global_max_pool")
def _global_pool(node: Node, operands: list[int], _fused: str | None) -> int:
    rank = len(node.writer.shape(operands[0]))
    axes, keep = list(range(1, rank - 1)), len(node.shape) > 2
    if node.op.kind == "global_avg_pool":
        return node.mean(operands[0], axes, keep=keep)
    return node.moved("REDUCE_MAX", [operands[0], node.counts("axes", axes)], "Reducer", keepDims=keep)


@writes("channel_mean")
def _channel_mean(node: Node, operands: list[int], _fused: str | None) -> int:
    return node.mean(operands[0], [-1])


@writes("softmax")
def _softmax(node: Node, operands: list[int], _fused: str | None) -> int:
    return node.operator("SOFTMAX", operands, "Softmax", quantisation=PROBABILITY, beta=1.0)


@writes("pad")
def _pad(node: Node, operands: list[int], _fused: str | None) -> int:
    return node.padded_by_counts(operands[0])


@writes("flatten", "reshape")
def _reshape(node: Node, operands: list[int], _fused: str | None) -> int:
    return node.reshaped(operands[0], node.shape)


@writes("transpose")
def _transpose(node: Node, operands: list[int], _fused: str | None) -> int:
    return node.moved("TRANSPOSE", [operands[0], node.counts("permutation", [0, 3, 1, 2])], "Transpose")


@writes("slice")
def _slice(node: Node, operands: list[int], _fused: str | None) -> int:
    return node.cut(operands[0], [0] * len(node.shape), node.shape)


@writes("channel_shuffle")
def _channel_shuffle(node: Node, operands: list[int], _fused: str | None) -> int:
    *space, channels = node.shape
    groups = node.op.groups
    grouped = node.reshaped(operands[0], (*space, groups, channels // groups))
    axes = node.counts("permutation", [*range(len(space)), len(space) + 1, len(space)])
    mixed = (*space, channels // groups, groups)
    turned = node.moved("TRANSPOSE", [grouped, axes], "Transpose", mixed, version=_FIVE_AXES_VERSION)
    return node.reshaped(turned, node.shape)


@writes("resize_bilinear")
def _resize_bilinear(node: Node, operands: list[int], _fused: str | None) -> int:
    return _resize(node, operands[0], "BILINEAR", "Bilinear")


@writes("resize_nearest")
def _resize_nearest(node: Node, operands: list[int], _fused: str | None) -> int:
    """By whole factors as Keras' UpSampling2D is converted, by others as its Resizing is."""
    op, (data,) = node.op, operands
    rows, columns = op.output_height, op.output_width
    if rows % op.height or columns % op.width:
        return _resize(node, data, "NEAREST_NEIGHBOR", "NearestNeighbor")
    data = _repeated(node, data, (op.batch, op.height, 1, op.width, op.in_channels), rows // op.height, 2)
    data = _repeated(node, data, (op.batch, rows, op.width, 1, op.in_channels), columns // op.width, 3)
    return node.reshaped(data, node.shape)


def _repeated(node: Node, data: int, shape: tuple[int, ...], times: int, axis: int) -> int:
    repeats = [times if k == axis else 1 for k in range(len(shape))]
    repeated = tuple(n * repeat for n, repeat in zip(shape, repeats, strict=True))
    return node.moved("TILE", [node.reshaped(data, shape), node.counts("times", repeats)], "Tile", repeated)


def _resize(node: Node, data: int, code: str, options: str) -> int:
    size = node.counts("size", [node.op.output_height, node.op.output_width])
    return node.moved(
        f"RESIZE_{code}", [data, size], f"Resize{options}", version=_RESIZE_VERSION, halfPixelCenters=True
    )


@writes("quantize")
def _quantize(node: Node, operands: list[int], _fused: str | None) -> int:
    return node.quantised(operands[0])


@writes("dequantize")
def _dequantize(node: Node, operands: list[int], _fused: str | None) -> int:
    return node.dequantised(operands[0])
