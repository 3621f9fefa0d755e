"""Reads Keras models: which operations each kind of layer is, what it does to channels. One small function a kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from latency_lab.errors import UnsupportedModelError
from latency_lab.graph.channel_graph import NO_WEIGHTS, ChannelGraph, Weights
from latency_lab.graph.keras_others import OTHERS
from latency_lab.graph.keras_reader import Reader, Tensor, depth, spatial
from latency_lab.graph.keras_walk import Call, wiring
from latency_lab.keras_files import load_keras
from latency_lab.ops import ACTIVATIONS, OpConfig

Effect = Callable[[Reader, Call, list[Tensor]], list[Tensor]]

_LAYERS: dict[str, Effect] = dict(OTHERS)
_OPERATIONS: dict[str, Effect] = {}
_SAME_FUNCTION = {"swish": "silu", "hard_silu": "hard_swish"}


def read(model: Any) -> ChannelGraph:
    """The channel graph of a Keras model or .keras file (`ChannelGraph.from_model`)."""
    return Reader(wiring(load(model))).graph(effect)


def load(model: Any) -> Any:
    """The model, loaded if it is a path to a .keras file."""
    if not isinstance(model, (str, Path)):
        return model
    if not str(model).endswith(".keras"):
        raise UnsupportedModelError(f"Cannot read channels from {model}. Expected a Keras model or a .keras file.")
    return load_keras(model)


def effect(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    """Reads one call: adds its operations to the reader and returns its output tensors."""
    layer = call.layer
    if getattr(layer, "data_format", None) == "channels_first":
        raise UnsupportedModelError(
            f"Layer {call.name!r} has data_format='channels_first'; latency-lab reads channels last. "
            "Build the model with data_format='channels_last'."
        )
    ours = type(layer).__module__.startswith("keras.")
    known = _LAYERS if isinstance(layer, keras.layers.Layer) else _OPERATIONS
    read = known.get(type(layer).__name__) if ours else None
    if read is None or not inputs or any(tensor.shape is None for tensor in inputs):
        return reader.opaque(call, inputs)
    return read(reader, call, inputs)


def _reads(*names: str) -> Callable[[Effect], Effect]:
    def register(function: Effect) -> Effect:
        _LAYERS.update(dict.fromkeys(names, function))
        return function

    return register


# ---- layers with kernels --------------------------------------------------------------------------------------


@_reads("Conv1D", "Conv2D", "Conv3D")
def _conv(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    layer, (x,) = call.layer, inputs
    if not _plain(call, {"kernel", "bias"}):
        return reader.opaque(call, inputs)
    if layer.groups > 1 and layer.groups == len(x.ids):  # one channel a group
        return _depthwise_of(reader, call, x, layer.filters // layer.groups)
    out = reader.channels.fresh(layer.filters, call.name)
    for ids in (x.ids, out):  # each group of a grouped convolution keeps the same channels
        first, *others = np.split(ids, layer.groups)
        for other in others:
            reader.channels.join(first, other)
    reader.sized(call, x.ids, out)
    kernel = float(np.prod(layer.kernel_size)) / layer.groups
    weights = Weights(per_out=float(layer.use_bias), per_in_out=kernel)
    op = _window("conv3d" if len(layer.kernel_size) == 3 else "conv2d", layer, x, layer.use_bias, layer.groups)
    y = reader.node(call, op, [x], x.ids, out, weights)
    return [_activation(reader, call, y)]


@_reads("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    return _depthwise_of(reader, call, inputs[0], call.layer.depth_multiplier)


def _depthwise_of(reader: Reader, call: Call, x: Tensor, multiplier: int) -> list[Tensor]:
    layer = call.layer
    if len(layer.kernel_size) == 3:
        return reader.opaque(call, [x])
    out = np.repeat(x.ids, multiplier)
    reader.sized(call, x.ids, out)
    weights = Weights(per_out=float(np.prod(layer.kernel_size)) + layer.use_bias)
    op = _window("depthwise_conv2d", layer, x, layer.use_bias)
    y = reader.node(call, op, [x], x.ids, out, weights)
    return [_activation(reader, call, y)]


@_reads("SeparableConv1D", "SeparableConv2D")
def _separable(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    layer, (x,) = call.layer, inputs
    middle = np.repeat(x.ids, layer.depth_multiplier)
    out = reader.channels.fresh(layer.filters, call.name)
    reader.sized(call, x.ids, out)
    weights = Weights(per_out=float(np.prod(layer.kernel_size)))
    op = _window("depthwise_conv2d", layer, x, use_bias=False)
    y = reader.node(call, op, [x], x.ids, middle, weights, ".depthwise")
    weights = Weights(per_out=float(layer.use_bias), per_in_out=1.0)
    pointwise = OpConfig("conv2d", height=_height(y), width=_width(y), use_bias=layer.use_bias)
    y = reader.node(call, pointwise, [y], middle, out, weights)
    return [_activation(reader, call, y)]


@_reads("Conv1DTranspose", "Conv2DTranspose")
def _transposed(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    layer, (x,) = call.layer, inputs
    if not _plain(call, {"kernel", "bias"}):
        return reader.opaque(call, inputs)
    op = _window("conv2d_transpose", layer, x, layer.use_bias)
    if (op.output_height, op.output_width) != spatial(call.outputs[0]):
        return reader.opaque(call, inputs)
    out = reader.channels.fresh(layer.filters, call.name)
    reader.sized(call, x.ids, out)
    weights = Weights(per_out=float(layer.use_bias), per_in_out=float(np.prod(layer.kernel_size)))
    y = reader.node(call, op, [x], x.ids, out, weights)
    return [_activation(reader, call, y)]


@_reads("Dense")
def _dense(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    layer, (x,) = call.layer, inputs
    if not _plain(call, {"kernel", "bias"}):
        return reader.opaque(call, inputs)
    out = reader.channels.fresh(layer.units, call.name)
    reader.sized(call, x.ids, out)
    weights = Weights(per_out=float(layer.use_bias), per_in_out=1.0)
    y = reader.node(call, _at(OpConfig("dense", use_bias=layer.use_bias), x), [x], x.ids, out, weights)
    return [_activation(reader, call, y)]


@_reads("BatchNormalization")
def _batch_norm(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    layer, (x,) = call.layer, inputs[:1]
    vectors = {"gamma", "beta", "moving_mean", "moving_variance"}
    last = len(call.inputs[0].shape) - 1
    if len(inputs) > 1 or layer.axis not in (-1, last) or not _plain(call, vectors):
        return reader.opaque(call, inputs)
    reader.sized(call, x.ids, x.ids)
    return [_same(reader, call, "batch_norm", x, weights=Weights(per_out=float(len(layer.weights))))]


# ---- activations ----------------------------------------------------------------------------------------------


@_reads("Activation")
def _activation_layer(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    return [_activation(reader, call, inputs[0], part="")]


@_reads("ReLU")
def _relu(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    layer = call.layer
    name = "leaky_relu" if float(layer.negative_slope or 0) else "relu6" if layer.max_value == 6 else "relu"
    return [_same(reader, call, "activation", inputs[0], activation=name)]


@_reads("LeakyReLU")
def _leaky_relu(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    return [_same(reader, call, "activation", inputs[0], activation="leaky_relu")]


@_reads("ELU")
def _elu(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    return [_same(reader, call, "activation", inputs[0], activation="elu")]


@_reads("Softmax")
def _softmax_layer(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    if len(inputs) > 1 or call.layer.axis not in (-1, len(call.inputs[0].shape) - 1):
        return reader.opaque(call, inputs)
    return [_softmax(reader, call, inputs[0], "")]


def _activation(reader: Reader, call: Call, x: Tensor, part: str = ".activation") -> Tensor:
    """The activation of a layer as a node of its own; no node for linear."""
    function = call.layer.activation or keras.activations.linear
    name = getattr(function, "__name__", type(function).__name__)
    name = _SAME_FUNCTION.get(name, name)
    ours = str(getattr(function, "__module__", "")).startswith("keras.")
    if name == "linear":
        return x
    if ours and name == "softmax":
        return _softmax(reader, call, x, part)
    if ours and name in ACTIVATIONS:
        return _same(reader, call, "activation", x, activation=name, part=part)
    if not ours:
        return reader.opaque(call, [x], f"has an activation that cannot be read: {name!r}", name)[0]
    return reader.elementwise(call, x, name)


def _softmax(reader: Reader, call: Call, x: Tensor, part: str) -> Tensor:
    reader.channels.pin(x.ids, f"layer {call.name!r} takes a softmax over it")
    return _same(reader, call, "softmax", x, part=part)


# ---- layers that join tensors ---------------------------------------------------------------------------------


@_reads("Add")
def _add(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    if len({(t.shape, t.depth, len(t.ids)) for t in inputs}) > 1 or len(inputs) < 2:
        return reader.opaque(call, inputs, "adds tensors of different shapes")
    reader.merges(call, adds=True)
    return [_join(reader, call, OpConfig("add", operands=len(inputs)), inputs)]


@_reads("CustomScaleLayer")
def _add_scaled(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    """x + scale * residual, of Inception-ResNet."""
    x, residual = inputs
    op = _at(OpConfig("multiply", broadcast="scalar"), residual)
    scaled = reader.node(call, op, [residual], residual.ids, residual.ids, part=".scale")
    return _add(reader, call, [x, scaled])


@_reads("Multiply")
def _multiply(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    if len({len(t.ids) for t in inputs}) > 1 or len(inputs) < 2:
        return reader.opaque(call, inputs, "multiplies tensors of different shapes")
    if len({(t.shape, t.depth) for t in inputs}) == 1:
        return [_join(reader, call, OpConfig("multiply", operands=len(inputs)), inputs)]
    wide_first = sorted(inputs, key=lambda t: t.shape == (1, 1))
    if len(inputs) != 2 or wide_first[1].shape != (1, 1):
        return reader.opaque(call, inputs, "multiplies tensors of different shapes")
    return [_join(reader, call, OpConfig("multiply", operands=2, broadcast="channels"), wide_first)]


def _join(reader: Reader, call: Call, op: OpConfig, inputs: list[Tensor]) -> Tensor:
    first = inputs[0]
    for other in inputs[1:]:
        reader.channels.join(first.ids, other.ids)
    op = _at(op, first)
    return reader.node(call, op, inputs, first.ids, first.ids)


@_reads("Concatenate")
def _concatenate(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    last = len(call.inputs[0].shape) - 1
    if call.layer.axis not in (-1, last) or len({len(v.shape) for v in call.inputs}) > 1:
        return reader.opaque(call, inputs, "does not concatenate channels")
    if len(inputs) == 1:
        return inputs
    reader.merges(call, adds=False)
    ids = np.concatenate([t.ids for t in inputs])
    return [reader.node(call, _at(OpConfig("concatenate", operands=len(inputs)), inputs[0]), inputs, ids, ids)]


# ---- layers that move positions -------------------------------------------------------------------------------


@_reads("MaxPooling1D", "AveragePooling1D", "MaxPooling2D", "AveragePooling2D")
def _pool(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    layer, (x,) = call.layer, inputs
    kind = "max_pool" if type(layer).__name__.startswith("Max") else "avg_pool"
    op = OpConfig(
        kind,
        height=_height(x),
        width=_width(x),
        kernel_size=(1, *layer.pool_size)[-2:],
        strides=(1, *layer.strides)[-2:],
        padding=layer.padding,
    )
    return [reader.node(call, op, [x], x.ids, x.ids)]


@_reads("MaxPooling3D", "AveragePooling3D", "ZeroPadding3D", "Cropping3D", "UpSampling3D")
def _moved_in_3d(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    return [reader.elementwise(call, inputs[0])]


@_reads("GlobalAveragePooling1D", "GlobalMaxPooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling2D")
def _global_pool(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    if len(inputs) > 1:  # a mask of steps
        return reader.opaque(call, inputs)
    average = type(call.layer).__name__.startswith("GlobalAverage")
    return [_same(reader, call, "global_avg_pool" if average else "global_max_pool", inputs[0])]


@_reads("ZeroPadding1D", "ZeroPadding2D")
def _pad(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    padding = call.layer.padding
    (top, bottom), (left, right) = ((0, 0), padding) if isinstance(padding[0], int) else padding
    return [_same(reader, call, "pad", inputs[0], padding=((top, bottom), (left, right)))]


@_reads("Flatten")
def _flatten(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    (x,) = inputs
    ids = np.tile(x.ids, x.depth * _height(x) * _width(x))
    return [reader.node(call, _at(OpConfig("flatten"), x), [x], x.ids, ids)]


@_reads("Reshape")
def _reshape(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    (x,) = inputs
    value = call.outputs[0]
    positions = x.depth * _height(x) * _width(x)
    if value.shape[-1] == len(x.ids) and spatial(value):  # positions alone are arranged anew
        reader.sized(call, x.ids, x.ids)
        return [Tensor(spatial(value), x.ids, x.source, depth(value))]
    if len(value.shape) == 2 and value.shape[-1] == positions * len(x.ids):
        ids = np.tile(x.ids, positions)
        reader.sized(call, x.ids, ids)
        return [reader.node(call, _at(OpConfig("flatten"), x), [x], x.ids, ids)]
    return reader.opaque(call, inputs, "moves values between channels")


@_reads("Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "ActivityRegularization", "Identity")
def _nothing(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    return inputs


@_reads("Rescaling")
def _rescaling(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    """x * scale + offset, of a number each or of one a channel."""
    (x,), scale, offset = inputs, np.squeeze(call.layer.scale), np.squeeze(call.layer.offset)
    if any(values.shape not in {(), (len(x.ids),)} for values in (scale, offset)):
        return reader.opaque(call, inputs)
    if scale.ndim or offset.ndim:
        reader.channels.pin(x.ids, f"layer {call.name!r} (Rescaling) has a number for each of them")
    x = _by_constant(reader, call, "multiply", x, bool(scale.ndim), ".scale")
    return [_by_constant(reader, call, "add", x, bool(offset.ndim), ".offset") if offset.any() else x]


@_reads("Normalization")
def _normalization(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    """(x - mean) / deviation, of a number each or of one a channel."""
    layer, (x,) = call.layer, inputs
    last = len(call.inputs[0].shape) - 1
    if layer.invert or tuple(axis % (last + 1) for axis in layer.axis or ()) not in {(), (last,)}:
        return reader.opaque(call, inputs)
    each = bool(layer.axis)
    if each:
        reader.channels.pin(x.ids, f"layer {call.name!r} (Normalization) has a mean for each of them")
    x = _by_constant(reader, call, "subtract", x, each, ".mean", Weights(const=float(layer.count_params())))
    return [_by_constant(reader, call, "multiply", x, each, ".deviation")]


def _by_constant(
    reader: Reader, call: Call, kind: str, x: Tensor, each: bool, part: str, weights: Weights = NO_WEIGHTS
) -> Tensor:
    """Arithmetic with a constant, `each` channel's own or one; an export folds a product into the product before it."""
    op = _at(OpConfig(kind, broadcast="channels" if each else "scalar"), x)
    before = reader.nodes[x.source].op if x.source >= 0 else None
    if kind == "multiply" and before is not None and (before.kind, before.operands) == ("multiply", 1):
        if each and before.broadcast == "scalar":
            widened = dataclasses.replace(before, broadcast="channels")
            reader.nodes[x.source] = dataclasses.replace(reader.nodes[x.source], op=widened)
        return x
    return reader.node(call, op, [x], x.ids, x.ids, weights, part)


# ---- operations called on tensors: x + y, x * 0.5 -----------------------------------------------------------------


def _arithmetic(reader: Reader, call: Call, inputs: list[Tensor]) -> list[Tensor]:
    leaves = keras.tree.flatten((call.args, call.kwargs))
    if len(inputs) == 2 and len(leaves) == 2 and type(call.layer).__name__ in _LAYERS:
        return _LAYERS[type(call.layer).__name__](reader, call, inputs)
    if len(inputs) == 1 and all(isinstance(leaf, (int, float)) for leaf in leaves if leaf is not call.inputs[0]):
        return [reader.elementwise(call, inputs[0])]
    return reader.opaque(call, inputs)


_OPERATIONS.update(dict.fromkeys(("Add", "Multiply", "Subtract", "Divide", "TrueDivide"), _arithmetic))


# ---- shared parts ---------------------------------------------------------------------------------------------


def _same(
    reader: Reader,
    call: Call,
    kind: str,
    x: Tensor,
    activation: str | None = None,
    padding: Any = "same",
    weights: Weights = NO_WEIGHTS,
    part: str = "",
) -> Tensor:
    """One node that keeps channels as they are."""
    op = _at(OpConfig(kind, activation=activation, padding=padding), x)
    return reader.node(call, op, [x], x.ids, x.ids, weights, part)


def _window(kind: str, layer: Any, x: Tensor, use_bias: bool, groups: int = 1) -> OpConfig:
    kernel, strides, dilation = (
        (1, 1, *tuple(sizes)) for sizes in (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    return OpConfig(
        kind,
        height=_height(x),
        width=_width(x),
        kernel_size=kernel[-2:],
        strides=strides[-2:],
        padding=_padding(layer.padding, kernel, dilation),
        dilation=dilation[-2:],
        groups=groups,
        use_bias=bool(use_bias),
        depth=x.depth,
        kernel_depth=kernel[-3],
        stride_depth=strides[-3],
    )


def _padding(name: str, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Any:
    """ "same", "valid", or the counts of a causal convolution: all before the first step."""
    return ((0, 0), (dilation[-1] * (kernel[-1] - 1), 0)) if name == "causal" else name


def _plain(call: Call, names: set[str]) -> bool:
    """Whether the layer has no weights but these (LoRA and quantised layers have others)."""
    return {v.name for v in call.layer.weights} <= names


def _at(op: OpConfig, x: Tensor) -> OpConfig:
    return dataclasses.replace(op, height=_height(x), width=_width(x), depth=x.depth)


def _height(x: Tensor) -> int:
    return x.shape[0] if x.shape else 1


def _width(x: Tensor) -> int:
    return x.shape[1] if x.shape else 1
