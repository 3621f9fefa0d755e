"""The exact rebuild: a model without the channels that a structure closes, and without the branches that vanish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from latency_lab.errors import UnsupportedModelError
from latency_lab.graph import Branch, ChannelGraph, LayerChannels
from latency_lab.graph.keras_walk import Call, Value, Wiring, copy_layer, copy_weights, fresh_inputs, rebuild, wiring
from latency_lab.structure import Structure

Kept = npt.NDArray[np.int64]


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
    vanished = graph.vanished(structure.widths(graph))
    wired = without_branches(wiring(model), [graph.branches[b] for b in vanished])

    def make_layer(call: Call) -> Any:
        channels = graph.layer_channels.get(call.name)
        return copy_layer(call, **({} if channels is None else _width_arguments(call, channels, mask)))

    slim = rebuild(wired, fresh_inputs(wired), make_layer)
    if weights:
        copy_weights(wired, slim, lambda call: _sliced(call, graph.layer_channels.get(call.name), mask))
    return slim


def without_branches(wired: Wiring, branches: Sequence[Branch]) -> Wiring:
    """The wiring without some branches: their layers, their operands, and merges that have one operand left."""
    gone = {name for branch in branches for name in branch.layers}
    cut = {(branch.merge, branch.operand) for branch in branches}
    stands_for: dict[int, Value] = {}

    def present(leaf: Any) -> Any:
        return stands_for.get(id(leaf), leaf)

    calls = []
    for call in wired.calls:
        if call.name in gone:
            continue
        left = [present(value) for j, value in enumerate(call.inputs) if (call.name, j) not in cut]
        if len(left) == 1 < len(call.inputs):
            stands_for[id(call.outputs[0])] = left[0]
            continue
        args, kwargs = keras.tree.map_structure(present, (call.args, call.kwargs))
        if len(left) < len(call.inputs):  # a merge takes one list of tensors
            args, kwargs = (left,), {}
        calls.append(replace(call, args=args, kwargs=kwargs, inputs=tuple(left)))
    return replace(wired, calls=tuple(calls), outputs=keras.tree.map_structure(present, wired.outputs))


def _kept(ids: Kept, mask: npt.NDArray[np.float64]) -> Kept:
    """Indices of the channels that stay. `mask` ends in a 1, which slot -1 reads."""
    return np.flatnonzero(mask[ids])


def _width_arguments(call: Call, channels: LayerChannels, mask: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Arguments of a layer that are its number of channels, at those that stay."""
    layer, kind = call.layer, type(call.layer).__name__
    width = len(_kept(channels.out_ids, mask))
    if kind == "Dense":
        return {"units": width}
    if kind == "Reshape":
        return {"target_shape": (*layer.target_shape[:-1], width)}
    if kind == "LayerScale":
        return {"projection_dim": width}
    if hasattr(layer, "filters"):
        groups = getattr(layer, "groups", 1)
        depthwise = groups > 1 and groups == len(channels.in_ids)
        return {"filters": width, "groups": len(_kept(channels.in_ids, mask))} if depthwise else {"filters": width}
    return {}


def _sliced(call: Call, channels: LayerChannels | None, mask: npt.NDArray[np.float64]) -> list[npt.NDArray[Any]]:
    """The layer's weights, in its order, cut to the channels that stay."""
    layer = call.layer
    if channels is None:
        return list(layer.get_weights())
    return [
        _cut(layer, variable.name, value, channels, mask)
        for variable, value in zip(layer.weights, layer.get_weights(), strict=True)
    ]


def _cut(
    layer: Any, name: str, value: npt.NDArray[Any], channels: LayerChannels, mask: npt.NDArray[np.float64]
) -> npt.NDArray[Any]:
    """One weight. Kernels are (..., in, out); of depthwise ones (..., in, multiplier), of transposed (..., out, in)."""
    kind = type(layer).__name__
    kept_in, kept_out = _kept(channels.in_ids, mask), _kept(channels.out_ids, mask)
    if name == "depthwise_kernel" or kind.startswith("DepthwiseConv") and name == "kernel":
        return value[..., kept_in, :]
    if name == "pointwise_kernel":
        middle = np.repeat(channels.in_ids, layer.depth_multiplier)
        return value[..., _kept(middle, mask), :][..., kept_out]
    if name == "kernel" and kind.endswith("Transpose"):
        return value[..., kept_out, :][..., kept_in]
    if name == "kernel" and getattr(layer, "groups", 1) == len(channels.in_ids) > 1:  # one channel a group
        return value[..., kept_out]
    if name == "kernel":
        of_a_group = channels.in_ids[: value.shape[-2]]
        return value[..., _kept(of_a_group, mask), :][..., kept_out]
    if kind == "LayerScale" or name in {"bias", "gamma", "beta", "moving_mean", "moving_variance", "alpha"}:
        return value[..., kept_out]
    raise UnsupportedModelError(
        f"Layer {layer.name!r} ({kind}) has a weight {name!r} that cannot be cut. "
        "Merge adapters and undo quantisation before shrinking."
    )
