"""Keras layers that have a cost and whose channels stay as they are: norms over channels, transposed convolutions,
layers applied at each position, and those that move positions. One small function a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from latency_lab.graph.channel_graph import Weights
from latency_lab.graph.keras_reader import Reader, Tensor
from latency_lab.graph.keras_walk import Call
from latency_lab.ops import OpConfig


def kept(reader: Reader, call: Call, *tensors: Tensor) -> None:
    """Pins the channels of tensors: the layer reads or makes them in a way that narrowing does not follow."""
    reason = f"layer {call.name!r} ({type(call.layer).__name__}) is of a kind that cannot be narrowed"
    for tensor in tensors:
        reader.channels.pin(tensor.ids, reason)


def counted(call: Call) -> Weights:
    """All numbers of a layer whose channels stay."""
    return Weights(const=float(call.layer.count_params()))


def dense_at_positions(reader: Reader, call: Call, inputs: list[Tensor]) -> Tensor:
    """A dense layer on an image: applied at each position."""
    (x,) = inputs
    out = reader.channels.fresh(call.layer.units, call.name)
    height, width = x.shape or (1, 1)
    op = OpConfig("dense", height=height, width=width, use_bias=bool(call.layer.use_bias))
    y = reader.node(call, op, [x], x.ids, out, counted(call))
    kept(reader, call, x, y)
    return y


def _layer_norm(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    axes = [call.layer.axis] if isinstance(call.layer.axis, int) else list(call.layer.axis)
    rank = len(call.inputs[0].shape)
    if [axis % rank for axis in axes] != [rank - 1]:
        return reader.opaque(call, inputs)
    return [_same(reader, call, inputs[0], "layer_norm")]


def _group_norm(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    layer, channels = call.layer, len(inputs[0].ids)
    groups = channels if layer.groups == -1 else int(layer.groups)
    if layer.axis not in (-1, len(call.inputs[0].shape) - 1) or channels % groups:
        return reader.opaque(call, inputs)
    return [_same(reader, call, inputs[0], "group_norm", groups=groups)]


def _prelu(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    if call.layer.count_params() != len(inputs[0].ids):
        return reader.opaque(call, inputs)
    return [_same(reader, call, inputs[0], "activation", activation="prelu")]


def _layer_scale(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    return [_same(reader, call, inputs[0], "multiply", broadcast="channels")]


def _transposed(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    layer, (x,) = call.layer, inputs
    if layer.activation is not None and layer.activation.__name__ != "linear" or x.shape is None:
        return reader.opaque(call, inputs)
    height, width = x.shape
    op = OpConfig(
        "conv2d_transpose",
        height=height,
        width=width,
        kernel_size=tuple(layer.kernel_size),
        strides=tuple(layer.strides),
        padding=layer.padding,
        dilation=tuple(layer.dilation_rate),
        use_bias=bool(layer.use_bias),
    )
    if (op.output_height, op.output_width) != tuple(call.outputs[0].shape[1:3]):
        return reader.opaque(call, inputs)
    y = reader.node(call, op, [x], x.ids, reader.channels.fresh(layer.filters, call.name), counted(call))
    kept(reader, call, x, y)
    return [y]


def _moved(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    """Upsampling and cropping: positions change, channels go on as they are."""
    (x,), kind = inputs, "slice"
    if type(call.layer).__name__ == "UpSampling2D":
        if call.layer.interpolation not in {"nearest", "bilinear"}:
            return [reader.elementwise(call, x)]
        kind = f"resize_{call.layer.interpolation}"
    height, width = x.shape or (1, 1)
    rows, columns = (int(size or 1) for size in call.outputs[0].shape[1:3])
    op = OpConfig(kind, height=height, width=width, output_size=(rows, columns))
    return [reader.node(call, op, [x], x.ids, x.ids)]


def _same(reader: Reader, call: Call, x: Tensor, kind: str, **static: Any) -> Tensor:
    """One node on an image and its weights, all of which stay."""
    height, width = x.shape or (1, 1)
    op = OpConfig(kind, height=height, width=width, **static)
    if kind == "group_norm":  # groups divide the channels that the reader sets later
        op = op.with_channels(len(x.ids), len(x.ids))
    y = reader.node(call, op, [x], x.ids, x.ids, counted(call))
    kept(reader, call, x)
    return y


Effect = Callable[[Reader, Call, list[Tensor]], list[Tensor]]
OTHERS: Mapping[str, Effect] = {
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "PReLU": _prelu,
    "LayerScale": _layer_scale,
    "Conv2DTranspose": _transposed,
    "UpSampling2D": _moved,
    "Cropping2D": _moved,
}
"""Class of layer -> what it is."""
