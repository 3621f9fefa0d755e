"""Keras layers beside the common ones: norms over channels (their channels stay as they are), factors for each channel,
and layers that move positions. One small function a kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from latency_lab.graph.channel_graph import Weights
from latency_lab.graph.keras_reader import Reader, Tensor, spatial
from latency_lab.graph.keras_walk import Call
from latency_lab.ops import OpConfig


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
    (x,) = inputs
    if call.layer.count_params() != len(x.ids):
        return reader.opaque(call, inputs, "has a slope for each position")
    reader.sized(call, x.ids, x.ids)
    return [reader.node(call, _at(x, "activation", activation="prelu"), [x], x.ids, x.ids, Weights(per_out=1.0))]


def _layer_scale(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    (x,) = inputs
    reader.sized(call, x.ids, x.ids)
    return [reader.node(call, _at(x, "multiply", broadcast="channels"), [x], x.ids, x.ids, Weights(per_out=1.0))]


def _moved(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    """Upsampling and cropping: positions change, channels go on as they are."""
    (x,), kind = inputs, "slice"
    if type(call.layer).__name__.startswith("UpSampling"):
        interpolation = getattr(call.layer, "interpolation", "nearest")
        if interpolation not in {"nearest", "bilinear"}:
            return [reader.elementwise(call, x)]
        kind = f"resize_{interpolation}"
    return [reader.node(call, _at(x, kind, output_size=spatial(call.outputs[0])), [x], x.ids, x.ids)]


def _same(reader: Reader, call: Call, x: Tensor, kind: str, **static: Any) -> Tensor:
    """A norm over channels: all of them stay, with all of its weights."""
    op = _at(x, kind)
    if static:  # groups divide the channels that the reader sets later
        op = dataclasses.replace(op.with_channels(len(x.ids), len(x.ids)), **static)
    reader.channels.pin(x.ids, f"layer {call.name!r} ({type(call.layer).__name__}) takes statistics over it")
    return reader.node(call, op, [x], x.ids, x.ids, Weights(const=float(call.layer.count_params())))


def _at(x: Tensor, kind: str, **static: Any) -> OpConfig:
    height, width = x.shape or (1, 1)
    return OpConfig(kind, height=height, width=width, depth=x.depth, **static)


Effect = Callable[[Reader, Call, list[Tensor]], list[Tensor]]
OTHERS: Mapping[str, Effect] = {
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "PReLU": _prelu,
    "LayerScale": _layer_scale,
    "UpSampling2D": _moved,
    "UpSampling1D": _moved,
    "Cropping2D": _moved,
    "Cropping1D": _moved,
}
"""Class of layer -> what it is."""
