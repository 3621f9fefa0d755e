"""Keras layers that open and close channels, and the models that hold them.

A mask is one vector over all slots of a channel graph. One source layer makes it, once a step. A closed channel is
exactly absent from what a layer that mixes channels reads: the layer's kernel is multiplied by the mask, or the tensor
before it, whichever is smaller.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from latency_lab.graph import ChannelGraph
from latency_lab.graph.keras_walk import (
    Call,
    Value,
    Wiring,
    before_last,
    copy_layer,
    copy_weights,
    fresh_inputs,
    rebuild,
    wiring,
)
from latency_lab.structure import Structure

_MIXING = frozenset(
    {
        "Conv1D",
        "Conv2D",
        "Conv3D",
        "Conv1DTranspose",
        "Conv2DTranspose",
        "Dense",
        "SeparableConv1D",
        "SeparableConv2D",
    }
)
_PLAIN = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.Dense)
_BATCH = 32
"""Images that training is taken to read at a time: what a tensor has in all is weighed against a kernel's weights."""


@keras.saving.register_keras_serializable(package="latency_lab")
class ChannelMask(keras.layers.Layer):
    """Multiplies the channels of a tensor by their entries of a mask vector.

        y[..., c] = x[..., c] * mask[slots[c]], and x[..., c] where slots[c] is -1

    Args:
        slots: [channels] the slot of each channel of x; -1: always open.
    """

    latency_lab_passthrough = True

    def __init__(self, slots: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slots = [int(slot) for slot in slots]

    def call(self, inputs: Any) -> Any:
        """inputs: [x (batch, ..., channels), mask (slots,)]. Returns the shape of x."""
        x, mask = inputs
        return x * ops.cast(_of_channels(mask, self.slots), x.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of x."""
        return input_shape[0]

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "slots": self.slots}


@keras.saving.register_keras_serializable(package="latency_lab")
class MaskedReader(keras.layers.Wrapper):
    """A convolution or dense layer that does not see the closed ones of its input channels.

        layer(x * mask; W) = layer(x; W * mask),  by input channel: on the right, nothing of the size of x is computed,
                                                  for the gradient of the mask neither

    Args:
        layer: Conv1D, Conv2D, Conv3D or Dense, of one group.
        slots: [channels of the input] the slot of each; -1: always open.
    """

    latency_lab_reader = True

    def __init__(self, layer: Any, slots: Sequence[int], **kwargs: Any) -> None:
        super().__init__(layer, **{"dtype": "float32", "autocast": False, **kwargs})
        self.slots = [int(slot) for slot in slots]

    @property
    def kernel(self) -> Any:
        """The layer's."""
        return self.layer.kernel

    @property
    def bias(self) -> Any:
        """The layer's, None without one."""
        return self.layer.bias

    def build(self, input_shape: Any) -> None:
        """Builds the layer, on the shape of x."""
        super().build(input_shape[0])

    def call(self, inputs: Any) -> Any:
        """inputs: [x (batch, ..., channels), mask (slots,)]. Returns what the layer does."""
        x, mask = inputs
        kernel = self.layer.kernel
        seen = kernel * ops.cast(_of_channels(mask, self.slots), kernel.dtype)[:, None]
        with keras.StatelessScope([(weight, seen if weight is kernel else weight) for weight in self.layer.variables]):
            return self.layer(x)

    def compute_output_spec(self, inputs: Any) -> Any:
        """That of the layer, in its precision."""
        return self.layer.compute_output_spec(inputs[0])

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the layer."""
        return self.layer.compute_output_shape(input_shape[0])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "slots": self.slots}


def _of_channels(mask: Any, slots: Sequence[int]) -> Any:
    """[channels] the mask's value at each channel's slot; 1 where the slot is -1."""
    mask = ops.concatenate([mask, ops.ones((1,), dtype=mask.dtype)])
    return ops.take(mask, np.array([slot if slot >= 0 else mask.shape[0] - 1 for slot in slots], np.int32), axis=0)


def has_masks(model: Any) -> bool:
    """Whether a mask decides which channels of a Keras model are there."""
    return any(isinstance(layer, ChannelMask | MaskedReader) for layer in model.layers)


@keras.saving.register_keras_serializable(package="latency_lab")
class FixedMask(keras.layers.Layer):
    """A mask vector that does not change.

    Args:
        mask: [slots] 0 or 1 each.
    """

    latency_lab_passthrough = True

    def __init__(self, mask: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.mask = [int(value) for value in mask]

    def call(self, anchor: Any) -> Any:
        """anchor: any tensor of the model, unread. Returns the mask, (slots,)."""
        return ops.convert_to_tensor(self.mask, dtype="float32")

    def compute_output_spec(self, anchor: Any) -> Any:
        """(slots,), float32."""
        return keras.KerasTensor((len(self.mask),), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "mask": self.mask}


@keras.saving.register_keras_serializable(package="latency_lab")
class BranchMask(keras.layers.Layer):
    """Takes what a mask leaves of branches that can vanish out of the mask.

        presence_b = prod over gates g of b: max over channels of mask_g
        mask_g <- mask_g * prod over branches b that g goes with: presence_b

    Args:
        sizes: channels of each group; slots are numbered group after group.
        gates: of each branch, the groups without any of which it is gone.
        groups: of each branch, the groups that go with it.
    """

    latency_lab_passthrough = True

    def __init__(
        self, sizes: Sequence[int], gates: Sequence[Sequence[int]], groups: Sequence[Sequence[int]], **kwargs: Any
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.sizes = [int(size) for size in sizes]
        self.gates = [[int(g) for g in found] for found in gates]
        self.groups = [[int(g) for g in found] for found in groups]
        self._group_of = np.repeat(np.arange(len(self.sizes), dtype=np.int32), self.sizes)

    def call(self, mask: Any) -> Any:
        """mask: (slots,). Returns (mask, presence), (slots,) and (branches,)."""
        largest = ops.segment_max(mask, self._group_of, num_segments=len(self.sizes))
        presence = self._product(largest, self.gates)
        with_branches = [[b for b, found in enumerate(self.groups) if g in found] for g in range(len(self.sizes))]
        left = self._product(presence, with_branches)
        return mask * ops.take(left, self._group_of, axis=0), presence

    def _product(self, values: Any, rows: Sequence[Sequence[int]]) -> Any:
        """prod over k of values[rows[i][k]]: [rows]; 1 for an empty row."""
        count = max((len(row) for row in rows), default=0)
        padded = np.array([[*row, *[values.shape[0]] * (count - len(row))] for row in rows], np.int32)
        values = ops.concatenate([values, ops.ones((1,), dtype=values.dtype)])
        return ops.prod(ops.take(values, padded.reshape(len(rows), count), axis=0), axis=1)

    def compute_output_spec(self, mask: Any) -> Any:
        """(slots,) and (branches,), float32."""
        return keras.KerasTensor((sum(self.sizes),), "float32"), keras.KerasTensor((len(self.gates),), "float32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "sizes": self.sizes, "gates": self.gates, "groups": self.groups}


@keras.saving.register_keras_serializable(package="latency_lab")
class Presence(keras.layers.Layer):
    """Multiplies a tensor by the presence of one branch: 0 when it has vanished.

    Args:
        branch: index of the branch.
    """

    latency_lab_passthrough = True

    def __init__(self, branch: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.branch = int(branch)

    def call(self, inputs: Any) -> Any:
        """inputs: [x, presence (branches,)]. Returns the shape of x."""
        x, presence = inputs
        return x * ops.cast(presence[self.branch], x.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of x."""
        return input_shape[0]

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "branch": self.branch}


@keras.saving.register_keras_serializable(package="latency_lab")
class Gates(keras.layers.Layer):
    """One logit a channel of each group, and the mask drawn from them.

        logit = initial + scale * raw
        training:  z = sigmoid((logit + log(u) - log(1 - u)) / temperature),  mask = [z > 1/2] forward, z backward
        inference: mask = [logit > 0]

    The most open channel of each group is always open, but for groups that may vanish. The weight `raw` is named
    "logits" and starts at 0.

    Args:
        sizes: channels of each group; slots are numbered group after group.
        initial: log-odds of an open channel at the start.
        scale: how much faster logits move than the weights of the network.
        temperature: of the relaxed sample.
        seed: of the noise.
        vanishing: indices of groups all of whose channels may close.

    Source: FiGS, arXiv 2006.09581; straight-through relaxation as in arXiv 1611.00712.
    """

    latency_lab_passthrough = True

    def __init__(
        self,
        sizes: Sequence[int],
        initial: float = 2.5,
        scale: float = 30.0,
        temperature: float = 0.66,
        seed: int | None = None,
        vanishing: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.sizes = [int(size) for size in sizes]
        self.vanishing = [int(g) for g in vanishing]
        self.initial = float(initial)
        self.scale = float(scale)
        self.temperature = float(temperature)
        self.seed = seed
        self._noise = keras.random.SeedGenerator(seed)
        self._group_of = np.repeat(np.arange(len(self.sizes), dtype=np.int32), self.sizes)

    def build(self, input_shape: Any) -> None:
        """Makes the weight, [slots]."""
        self.raw = self.add_weight(shape=(sum(self.sizes),), initializer="zeros", name="logits", dtype="float32")
        self.built = True

    def open_logits(self) -> Any:
        """[slots] log-odds of each channel being open."""
        return self.initial + self.scale * ops.convert_to_tensor(self.raw)

    def call(self, anchor: Any, training: bool = False) -> Any:
        """anchor: any tensor of the model, unread. Returns the mask, (slots,)."""
        logits = self.open_logits()
        always = self._most_open(logits)
        if not training:
            return ops.maximum(ops.cast(logits > 0, "float32"), always)
        u = keras.random.uniform(ops.shape(logits), 1e-6, 1 - 1e-6, seed=self._noise)
        z = ops.sigmoid((logits + ops.log(u) - ops.log(1 - u)) / self.temperature)
        hard = ops.maximum(ops.cast(z > 0.5, "float32"), always)
        return z + ops.stop_gradient(hard - z)

    def _most_open(self, logits: Any) -> Any:
        """[slots] 1 for the channel of each group with the largest logit, the first of equals."""
        groups, count = self._group_of, len(self.sizes)
        places = np.arange(len(groups), dtype=np.int32)
        largest = ops.take(ops.segment_max(logits, groups, num_segments=count), groups, axis=0)
        candidates = ops.where(logits >= largest, -places, -len(groups))
        first = ops.take(ops.segment_max(candidates, groups, num_segments=count), groups, axis=0)
        stays = np.array([g not in self.vanishing for g in range(count)], np.float32)[groups]
        return ops.stop_gradient(ops.where(ops.equal(first, -places), stays, 0.0))

    def compute_output_spec(self, anchor: Any, training: bool = False) -> Any:
        """(slots,), float32."""
        return keras.KerasTensor((sum(self.sizes),), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        own = {name: getattr(self, name) for name in ("sizes", "initial", "scale", "temperature", "seed", "vanishing")}
        return {**super().get_config(), **own}


def insert_masks(
    model: Any,
    graph: ChannelGraph,
    source: Any,
    vanishing: bool = False,
    last: Callable[[Any], Any] | None = None,
) -> Any:
    """A copy of a model in which a mask decides which channels are there.

    Args:
        model: a Keras model; it is not changed. Gates that it has are left out.
        graph: its channel graph.
        source: the layer that makes the mask, (slots,) (`Gates`, `FixedMask`). Called once, on the first input.
        vanishing: whether the mask may close whole groups, and branches with them.
        last: what the last layer reads, given the tensor that it would read; None: that tensor.

    Returns:
        a functional model of the same layer names and weights. A layer that reads shrinkable channels is a
        `MaskedReader` of that name; where its kernel is larger than what it reads, or has no single place for each
        channel, the tensor is multiplied by the mask once, in a layer "<name of the first reader>_mask" (a shared
        layer's second: "_mask_2"). Each operand that can vanish is multiplied by its branch's presence, in
        "<name of the merge>_<operand>_presence".
    """
    wired = wiring(model)
    inputs = fresh_inputs(wired)
    mask = source(keras.tree.flatten(inputs)[0])
    branches = graph.branches if vanishing else ()
    presence: Any = None
    if branches:
        gates, groups = [branch.gates for branch in branches], [branch.groups for branch in branches]
        mask, presence = BranchMask([group.size for group in graph.groups], gates, groups, name="branch_mask")(mask)
    operands = {(branch.merge, branch.operand): b for b, branch in enumerate(branches) if branch.adds}
    readers = _readers(wired, graph)
    by_kernel = _masked_by_kernel(readers)
    masked_tensors: dict[int, Any] = {}
    named: Counter[str] = Counter()

    def make(call: Call) -> Any:
        layer = copy_layer(call)
        if call.name not in by_kernel:
            return layer
        return MaskedReader(layer, graph.layer_channels[call.name].in_ids.tolist(), name=call.name)

    def feed(call: Call, value: Value, tensor: Any) -> Any:
        operand = next((j for j, other in enumerate(call.inputs) if other is value), -1)
        if (call.name, operand) in operands:
            name = f"{call.name}_{operand}_presence"
            return Presence(operands[call.name, operand], name=name, dtype=value.dtype)([tensor, presence])
        if call not in readers.get(value, ()):
            return tensor
        if call.name in by_kernel:
            return [tensor, mask]
        if id(value) not in masked_tensors:
            named[call.name] += 1
            name = f"{call.name}_mask" + f"_{named[call.name]}" * (named[call.name] > 1)
            layer = ChannelMask(graph.layer_channels[call.name].in_ids.tolist(), name=name, dtype=value.dtype)
            masked_tensors[id(value)] = layer([tensor, mask])
        return masked_tensors[id(value)]

    result = rebuild(wired, inputs, make, before_last(wired, last, feed) if last else feed)
    copy_weights(wired, result)
    return result


def _readers(wired: Wiring, graph: ChannelGraph) -> dict[Value, list[Call]]:
    """The calls that mix the channels of each tensor that has shrinkable ones."""
    found: dict[Value, list[Call]] = defaultdict(list)
    for call in wired.calls:
        channels = graph.layer_channels.get(call.name)
        if channels is not None and type(call.layer).__name__ in _MIXING and np.any(channels.in_ids >= 0):
            for value in call.inputs:
                found[value].append(call)
    return found


def _masked_by_kernel(readers: Mapping[Value, Sequence[Call]]) -> set[str]:
    """Names of the layers whose kernels are multiplied by the mask: all readers of a tensor, where their kernels
    together are smaller than it is."""
    calls = Counter(call.name for found in readers.values() for call in found)
    names: set[str] = set()
    for value, found in readers.items():
        if any(calls[call.name] > 1 or not _has_plain_kernel(call.layer) for call in found):
            continue
        weights = sum(math.prod(call.layer.kernel.shape) for call in found)
        if weights <= _BATCH * math.prod(size or 1 for size in value.shape[1:]):
            names.update(call.name for call in found)
    return names


def _has_plain_kernel(layer: Any) -> bool:
    """Whether a layer has one kernel, whose second last axis is its input's channels, and Keras's own call."""
    plain = type(layer) in _PLAIN and getattr(layer, "groups", 1) == 1 and layer.activity_regularizer is None
    return plain and any(variable is layer.kernel for variable in layer.weights)


def masked(model: Any, structure: Structure) -> Any:
    """A copy of a model whose closed channels are multiplied by 0: gives what `shrink` gives, at full size.

    Raises:
        StructureError: the structure belongs to another model.
    """
    graph = ChannelGraph.from_model(model)
    mask = FixedMask(structure.mask(graph).tolist(), name="mask")
    return insert_masks(model, graph, mask, vanishing=not all(structure.kept.values()))
