"""The exact rebuild: a model without the channels that a structure closes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab.errors import UnsupportedModelError
from latency_lab.graph import ChannelGraph, LayerChannels
from latency_lab.graph.keras_walk import Call, copy_layer, copy_weights, fresh_inputs, rebuild, wiring
from latency_lab.structure import Structure

Kept = npt.NDArray[np.int64]

_WIDTH_ARGUMENT = {"Conv2D": "filters", "SeparableConv2D": "filters", "Dense": "units", "Reshape": "target_shape"}


def shrink(model: Any, structure: Structure, weights: bool = True) -> Any:
    """The model rebuilt without closed channels: plain Keras layers of the same names.

    Its outputs equal those of `latency_lab.gates.masked(model, structure)`.

    Args:
        model: the Keras model that the structure was made from, plain or gated (gates and penalties are left out).
        structure: which channels stay.
        weights: keep the weights of the channels that stay; False initialises all layers anew.

    Returns:
        a functional Keras model, not compiled: optimizer state starts anew.

    Raises:
        StructureError: the structure belongs to another model.
        UnsupportedModelError: the model cannot be read.

    Example:
        >>> import keras
        >>> from latency_lab.graph import ChannelGraph
        >>> from latency_lab.shrink import shrink
        >>> from latency_lab.structure import Structure
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, name="conv")(x))
        >>> model = keras.Model(x, keras.layers.Dense(2, name="head")(y))
        >>> graph = ChannelGraph.from_model(model)
        >>> slim = shrink(model, Structure.from_mask(graph, [1, 0, 0, 1]))
        >>> [weight.shape for weight in slim.get_weights()]
        [(3, 3, 3, 2), (2,), (2, 2), (2,)]
    """
    graph = ChannelGraph.from_model(model)
    mask = np.append(structure.mask(graph), 1.0)
    wired = wiring(model)

    def make_layer(call: Call) -> Any:
        channels = graph.layer_channels.get(call.name)
        kind = type(call.layer).__name__
        if channels is None or kind not in _WIDTH_ARGUMENT:
            return copy_layer(call)
        width = len(_kept(channels.out_ids, mask))
        if kind == "Reshape":
            ones = (1,) * (len(call.outputs[0].shape) - 2)
            return copy_layer(call, target_shape=(*ones, width))
        return copy_layer(call, **{_WIDTH_ARGUMENT[kind]: width})

    slim = rebuild(wired, fresh_inputs(wired), make_layer)
    if weights:
        copy_weights(wired, slim, lambda call: _sliced(call, graph.layer_channels.get(call.name), mask))
    return slim


def _kept(ids: Kept, mask: npt.NDArray[np.float64]) -> Kept:
    """Indices of the channels that stay. `mask` ends in a 1, which slot -1 reads."""
    return np.flatnonzero(mask[ids])


def _sliced(call: Call, channels: LayerChannels | None, mask: npt.NDArray[np.float64]) -> list[npt.NDArray[Any]]:
    """The layer's weights, in its order, cut to the channels that stay."""
    layer = call.layer
    if channels is None:
        return list(layer.get_weights())
    kept_in, kept_out = _kept(channels.in_ids, mask), _kept(channels.out_ids, mask)
    kind = type(layer).__name__
    found = []
    for variable, value in zip(layer.weights, layer.get_weights(), strict=True):
        if variable.name == "depthwise_kernel" or kind == "DepthwiseConv2D" and variable.name == "kernel":
            found.append(value[:, :, kept_in])
        elif variable.name == "pointwise_kernel":
            middle = np.repeat(channels.in_ids, layer.depth_multiplier)
            found.append(value[:, :, _kept(middle, mask)][..., kept_out])
        elif variable.name == "kernel" and kind == "Conv2D" and layer.groups > 1:
            found.append(value)
        elif variable.name == "kernel":
            found.append(value[..., kept_in, :][..., kept_out])
        elif variable.name in {"bias", "gamma", "beta", "moving_mean", "moving_variance"}:
            found.append(value[kept_out])
        else:
            raise UnsupportedModelError(
                f"Layer {layer.name!r} ({kind}) has a weight {variable.name!r} that cannot be cut. "
                "Merge adapters and undo quantisation before shrinking."
            )
    return found
