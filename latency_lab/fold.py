"""What closed channels still said, added to the layers that heard it.

A channel whose batch norm has a scale of 0 is not silent: it says act(beta), the same at each position. Leaving it out
changes what the layers that read it compute, by a constant; that constant is added to their biases.

    bias_o <- bias_o + sum over closed channels c: value_c * sum over the window of kernel[..., c, o]

It is exact for dense layers, 1x1 kernels and windows that never reach over the border. Elsewhere the border hears less,
and nothing is changed. A branch that is removed whole falls silent too: what it added is listed, and not made up for.
In a model with masks (`gates.insert_masks`) closed channels are silent already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from latency_lab.gates import has_masks
from latency_lab.graph import ChannelGraph
from latency_lab.graph.keras_walk import Call, Wiring, wiring
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
    if has_masks(model):
        return ()
    graph = ChannelGraph.from_model(model)
    mask = np.append(structure.mask(graph), 1.0)
    removed = {
        (branch.merge, branch.operand)
        for branch in (graph.branches[b] for b in graph.vanished(structure.widths(graph)))
        if branch.adds
    }
    wired = wiring(model)
    calls = Counter(call.name for call in wired.calls)
    left_over = {layer.name for layer in slim.layers}
    constants: dict[int, Floats] = {}
    shared: dict[str, Floats] = {}
    found = []
    for call in wired.calls:
        inputs = [constants.get(id(value), _unknown(value.shape[-1])) for value in call.inputs]
        found += [_removed(call, j, inputs[j]) for j in range(len(inputs)) if (call.name, j) in removed]
        channels = graph.layer_channels.get(call.name)
        if channels is not None and call.name in left_over and type(call.layer).__name__ in _READERS:
            closed = mask[channels.in_ids] == 0
            said = np.where(closed, np.nan_to_num(inputs[0]), 0.0)
            if calls[call.name] > 1:
                shared[call.name] = np.maximum(shared.get(call.name, 0.0), np.abs(said))
            elif np.any(said):
                kept_out = np.flatnonzero(mask[channels.out_ids])
                found.append(_fold(call, said, kept_out, _norm_behind(call, wired, calls), slim))
        outputs = _PASS.get(type(call.layer).__name__, _nothing_known)(call, inputs)
        constants.update({id(value): constant for value, constant in zip(call.outputs, outputs, strict=False)})
    found += [_left(name, said, "it is called more than once") for name, said in shared.items() if np.any(said)]
    return tuple(found)


# ---- what a reader hears --------------------------------------------------------------------------------------

_OTHERS = {
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), "it is a separable convolution"),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), "it is a transposed convolution"),
}
"""Readers whose constants are left, and why."""
_READERS = frozenset({"Conv1D", "Conv2D", "Conv3D", "Dense", *_OTHERS})


def _fold(call: Call, said: Floats, kept_out: npt.NDArray[np.int64], norm: str | None, slim: Any) -> Folded:
    layer = call.layer
    if why := _OTHERS.get(type(layer).__name__):
        return _left(call.name, said, why)
    if getattr(layer, "groups", 1) > 1:
        return _left(call.name, said, "it is a convolution of groups")
    window = getattr(layer, "kernel_size", (1,))
    if max(window) > 1 and layer.padding != "valid":
        return _left(call.name, said, "its window reaches over the border")
    kernel = np.asarray(keras.ops.convert_to_numpy(layer.kernel), float)
    change = (said @ kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0))[kept_out]
    target = slim.get_layer(call.name)
    if layer.use_bias:
        target.bias.assign(keras.ops.convert_to_numpy(target.bias) + change)
    elif norm is not None:
        mean = slim.get_layer(norm).moving_mean
        mean.assign(keras.ops.convert_to_numpy(mean) - change)
    else:
        return _left(call.name, said, "it has no bias, nor a batch norm of its own right behind it")
    return Folded(call.name, int(np.count_nonzero(said)), "", float(np.abs(change).max()))


def _norm_behind(call: Call, wired: Wiring, calls: Mapping[str, int]) -> str | None:
    """The batch norm that alone reads what a linear layer makes, and nothing else; None where there is none."""
    made = call.outputs[0]
    readers = [other for other in wired.calls if any(value is made for value in other.inputs)]
    linear = getattr(call.layer, "activation", None) in {None, keras.activations.linear}
    is_output = any(value is made for value in keras.tree.flatten(wired.outputs))
    if len(readers) != 1 or is_output or not linear or type(readers[0].layer).__name__ != "BatchNormalization":
        return None
    return readers[0].name if calls[readers[0].name] == 1 else None


def _left(name: str, said: Floats, why: str) -> Folded:
    return Folded(name, int(np.count_nonzero(said)), why, float(np.abs(said).max()))


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
    if width % len(inputs[0]):  # positions and channels are mixed
        return _nothing_known(call, inputs)
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
