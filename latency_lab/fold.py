"""What closed channels still said, added to the layers that heard it.

A channel whose batch norm has a scale of 0 is not silent: it says act(beta), the same at each position. Leaving it out
changes what the layers that read it compute, by a constant; that constant is added to their biases.

    bias_o <- bias_o + sum over closed channels c: value_c * sum over the window of kernel[..., c, o]

It is exact for dense layers, 1x1 kernels and windows that never reach over the border. Elsewhere the border hears less,
and nothing is changed. A branch that is removed whole falls silent too: what it added is listed, and not made up for.
In a model with masks (`gates.ChannelMask`) closed channels are silent already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from latency_lab.gates import ChannelMask
from latency_lab.graph import ChannelGraph
from latency_lab.graph.keras_walk import Call, wiring
from latency_lab.structure import Structure

SILENT_SCALE = 1e-2
"""A batch norm's scale up to which a channel is taken to say its constant alone: `Gamma`'s threshold."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Folded:
    """Closed channels before one layer.

    Attributes:
        layer: that reads them.
        channels: how many of them say something.
        left: why their constants were left out; "" where they were folded.
        largest: of the changes to the layer's biases, or of the constants that were left out; None where they are not
            known.
    """

    layer: str
    channels: int
    left: str
    largest: float | None

    def __str__(self) -> str:
        size = "unknown size" if self.largest is None else f"up to {self.largest:.3g}"
        if self.left:
            return f"{self.layer}: constants of {self.channels} channels NOT folded, {size}: {self.left}"
        return f"{self.layer}: constants of {self.channels} channels folded, biases moved by {size}"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "layer": self.layer,
            "channels": self.channels,
            "folded": not self.left,
            "left": self.left or None,
            "largest": self.largest,
        }


def fold_constants(model: Any, structure: Structure, slim: Any) -> tuple[Folded, ...]:
    """Adds the constants of closed channels to the biases of a slim model, where that is exact.

    Args:
        model: the Keras model before shrinking.
        structure: which channels stay.
        slim: from `shrink(model, structure)`; its biases (of a layer without one: the moving means of the batch norm
            behind it) are changed in place.

    Returns:
        One entry for each layer that reads closed channels that are not silent, and for each merge that a removed
        branch was added in: folded, or left and why. Empty for a model with masks.

    Example:
        >>> from latency_lab.fold import fold_constants
        >>> from latency_lab.shrink import shrink
        >>> def shrunk(model, structure):
        ...     slim = shrink(model, structure)
        ...     return slim, [entry.layer for entry in fold_constants(model, structure, slim) if entry.left]
    """
    if any(isinstance(layer, ChannelMask) for layer in model.layers):
        return ()
    graph = ChannelGraph.from_model(model)
    mask = np.append(structure.mask(graph), 1.0)
    removed = {
        (branch.merge, branch.operand)
        for branch in (graph.branches[b] for b in graph.vanished(structure.widths(graph)))
        if branch.adds
    }
    wired = wiring(model)
    readers: dict[int, list[Call]] = {}
    for call in wired.calls:
        for value in call.inputs:
            readers.setdefault(id(value), []).append(call)
    left_over = {layer.name for layer in slim.layers}
    constants: dict[int, Floats] = {}
    found = []
    for call in wired.calls:
        inputs = [constants.get(id(value), _unknown(value.shape[-1])) for value in call.inputs]
        found += [_removed(call, j, inputs[j]) for j in range(len(inputs)) if (call.name, j) in removed]
        channels = graph.layer_channels.get(call.name)
        if channels is not None and call.name in left_over and type(call.layer).__name__ in _READERS:
            closed = mask[channels.in_ids] == 0
            said = np.where(closed, np.nan_to_num(inputs[0]), 0.0)
            if np.any(said):
                kept_out = np.flatnonzero(mask[channels.out_ids])
                found.append(_fold(call, said, kept_out, readers.get(id(call.outputs[0]), []), slim))
        outputs = _PASS.get(type(call.layer).__name__, _nothing_known)(call, inputs)
        constants.update({id(value): constant for value, constant in zip(call.outputs, outputs, strict=False)})
    return tuple(found)


# ---- what a reader hears --------------------------------------------------------------------------------------

_READERS = frozenset({"Conv1D", "Conv2D", "Conv3D", "Dense"})


def _fold(call: Call, said: Floats, kept_out: npt.NDArray[np.int64], readers: list[Call], slim: Any) -> Folded:
    layer = call.layer
    count, largest = int(np.count_nonzero(said)), float(np.abs(said).max())
    if getattr(layer, "groups", 1) > 1:
        return Folded(call.name, count, "it is a convolution of groups", largest)
    window = getattr(layer, "kernel_size", (1,))
    if max(window) > 1 and layer.padding != "valid":
        return Folded(call.name, count, "its window reaches over the border", largest)
    kernel = np.asarray(keras.ops.convert_to_numpy(layer.kernel), float)
    change = (said @ kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0))[kept_out]
    target = slim.get_layer(call.name)
    if layer.use_bias:
        target.bias.assign(keras.ops.convert_to_numpy(target.bias) + change)
    elif len(readers) == 1 and type(readers[0].layer).__name__ == "BatchNormalization":
        norm = slim.get_layer(readers[0].name)
        norm.moving_mean.assign(keras.ops.convert_to_numpy(norm.moving_mean) - change)
    else:
        return Folded(call.name, count, "it has no bias, nor a batch norm behind it", largest)
    return Folded(call.name, count, "", float(np.abs(change).max()))


def _removed(merge: Call, operand: int, said: Floats) -> Folded:
    """An operand that no longer is: what it said in the channels that stay is lost."""
    largest = None if np.any(np.isnan(said)) else float(np.abs(said).max())
    return Folded(merge.name, int(np.count_nonzero(said)), f"the branch at its operand {operand} is removed", largest)


# ---- what each layer does to constants: [channels] in, [channels] out, nan where a channel says more ----------------

Pass = Callable[[Call, list[Floats]], list[Floats]]


def _unknown(channels: int | None) -> Floats:
    return np.full(channels or 1, np.nan)


def _nothing_known(call: Call, inputs: list[Floats]) -> list[Floats]:
    return [_unknown(value.shape[-1] if value.shape else 1) for value in call.outputs]


def _same(call: Call, inputs: list[Floats]) -> list[Floats]:
    return inputs[:1]


def _activated(call: Call, inputs: list[Floats]) -> list[Floats]:
    """Any function of each number alone: the layer itself says what it makes of them."""
    x = np.nan_to_num(inputs[0]).reshape((1,) * (len(call.inputs[0].shape) - 1) + (-1,))
    made = np.asarray(keras.ops.convert_to_numpy(call.layer(x.astype("float32"))), float).reshape(-1)
    return [np.where(np.isnan(inputs[0]), np.nan, made)]


def _batch_norm(call: Call, inputs: list[Floats]) -> list[Floats]:
    layer, (x,) = call.layer, inputs
    ones = np.ones(len(x))

    def vector(name: str, default: Floats) -> Floats:
        found = getattr(layer, name, None)
        return default if found is None else np.asarray(keras.ops.convert_to_numpy(found), float)

    gamma, beta = vector("gamma", ones), vector("beta", 0 * ones)
    normalised = (x - vector("moving_mean", 0 * ones)) / np.sqrt(vector("moving_variance", ones) + layer.epsilon)
    silent = np.where(np.abs(gamma) <= SILENT_SCALE, beta, np.nan)
    return [np.where(np.isnan(x), silent, gamma * normalised + beta)]


def _added(call: Call, inputs: list[Floats]) -> list[Floats]:
    return [np.sum(inputs, axis=0)] if len({len(x) for x in inputs}) == 1 else _nothing_known(call, inputs)


def _joined(call: Call, inputs: list[Floats]) -> list[Floats]:
    whole = np.concatenate(inputs)
    return [whole] if call.outputs[0].shape[-1] == len(whole) else _nothing_known(call, inputs)


def _flat(call: Call, inputs: list[Floats]) -> list[Floats]:
    width = call.outputs[0].shape[-1] or len(inputs[0])
    return [np.tile(inputs[0], width // len(inputs[0]))]


def _padded(call: Call, inputs: list[Floats]) -> list[Floats]:
    return [np.where(inputs[0] == 0, 0.0, np.nan)]


_PASS: Mapping[str, Pass] = {
    "BatchNormalization": _batch_norm,
    "Add": _added,
    "Concatenate": _joined,
    "Flatten": _flat,
    "Reshape": _flat,
    **dict.fromkeys(("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"), _padded),
    **dict.fromkeys(("Activation", "ReLU", "LeakyReLU", "ELU"), _activated),
    **dict.fromkeys(
        (
            *(f"{kind}Pooling{n}D" for kind in ("Max", "Average", "GlobalMax", "GlobalAverage") for n in (1, 2, 3)),
            *(f"{kind}{n}D" for kind in ("UpSampling", "Cropping") for n in (1, 2, 3)),
            *("Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "Identity", "ActivityRegularization"),
        ),
        _same,
    ),
}
