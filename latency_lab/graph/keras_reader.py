"""The state of reading one Keras model: operations, channel ids and unknown layers as they are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import keras
import numpy as np

from latency_lab.errors import UnsupportedModelError
from latency_lab.graph.branches import find_branches
from latency_lab.graph.channel_graph import NO_WEIGHTS, ChannelGraph, Floats, LayerChannels, Node, Unknown, Weights
from latency_lab.graph.channels import Channels, Ids
from latency_lab.graph.keras_walk import Call, Value, Wiring
from latency_lab.ops import OpConfig

_BYTES = 4
_UNKNOWN = "is of a kind that cannot be narrowed"


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor while reading.

    Attributes:
        shape: (height, width); (1, 1) of a (batch, channels) tensor, (1, steps) of a sequence, or None where the rank
            is not 2 to 5.
        ids: [channels] channel ids.
        source: the node whose output it is, or -1 - i of network input i.
        depth: positions of the first of three axes.
    """

    shape: tuple[int, int] | None
    ids: Ids
    source: int
    depth: int = 1


class Reader:
    """State of one reading. Functions of `keras_kinds` call its methods."""

    def __init__(self, wired: Wiring) -> None:
        self.wired = wired
        self.channels = Channels()
        self.nodes: list[Node] = []
        self._node_ids: list[tuple[Ids, Ids]] = []
        self._layer_ids: dict[str, tuple[Ids, Ids]] = {}
        self.unknown: list[Unknown] = []
        self._input_shapes: list[tuple[int, int, int]] = []
        self._times = Counter(call.name for call in wired.calls)
        self._counted: set[str] = set()
        self._tensors: dict[int, Tensor] = {}
        self._merges: dict[str, bool] = {}

    def graph(self, effect: Callable[[Reader, Call, list[Tensor]], list[Tensor]]) -> ChannelGraph:
        """Reads all calls; `effect` adds the operations of one call and returns its outputs."""
        tensors = self._tensors
        for value in keras.tree.flatten(self.wired.inputs):
            tensors[id(value)] = self.entry(value, value.name, "it is an input of the model")
        for call in self.wired.calls:
            inputs = [tensors[id(value)] for value in call.inputs]
            outputs = effect(self, call, inputs)
            tensors.update({id(value): tensor for value, tensor in zip(call.outputs, outputs, strict=True)})
        for value in keras.tree.flatten(self.wired.outputs):
            self.channels.pin(tensors[id(value)].ids, "it is an output of the model", override=True)
        return self._finish()

    # ---- what the kinds do ------------------------------------------------------------------------------------

    def entry(self, value: Value, producer: str, reason: str) -> Tensor:
        """A network input: the model's own, or the output of an unknown layer. Its channels are pinned."""
        if None in value.shape[1:]:
            raise UnsupportedModelError(
                f"The shape {value.shape} at {producer!r} has open sizes; latency depends on them. "
                "Build the model with a fixed input shape, such as keras.Input((224, 224, 3))."
            )
        sizes = [int(size) for size in value.shape[1:] if size is not None]
        ids = self.channels.fresh(sizes[-1] if sizes else 1, producer)
        self.channels.pin(ids, reason)
        return self.outside(value, ids)

    def outside(self, value: Value, ids: Ids) -> Tensor:
        """A tensor that no node makes."""
        height, width = spatial(value) or (1, 1)
        self._input_shapes.append((height, width, len(ids)))
        return Tensor(spatial(value), ids, -len(self._input_shapes), depth(value))

    def node(
        self,
        call: Call,
        op: OpConfig,
        inputs: list[Tensor],
        in_ids: Ids,
        out_ids: Ids,
        weights: Weights = NO_WEIGHTS,
        part: str = "",
    ) -> Tensor:
        """Adds an operation; `op` without channel counts, which are those of the ids."""
        op = op.with_channels(len(in_ids), len(out_ids))
        if call.name + part in self._counted:
            weights = NO_WEIGHTS
        self._counted.add(call.name + part)
        self.nodes.append(Node(call.name + part, op, tuple(t.source for t in inputs), call.name, weights))
        self._node_ids.append((in_ids, out_ids))
        shape = (op.output_height, op.output_width)
        return Tensor(shape, out_ids, len(self.nodes) - 1, op.output_depth)

    def sized(self, call: Call, in_ids: Ids, out_ids: Ids) -> None:
        """Keeps which channels a layer runs over whose weights or arguments depend on their number. Those of two calls
        of one layer stay or go together."""
        first = self._layer_ids.setdefault(call.name, (in_ids, out_ids))
        if first[0] is not in_ids or first[1] is not out_ids:
            self.channels.join(first[0], in_ids)
            self.channels.join(first[1], out_ids)

    def merges(self, call: Call, adds: bool) -> None:
        """Says that a call joins branches: it adds its operands, or else concatenates them."""
        if self._times[call.name] == 1:
            self._merges[call.name] = adds

    def elementwise(self, call: Call, tensor: Tensor, activation: str = "") -> Tensor:
        """A layer (or its activation) without an operation that keeps channels apart: listed, its channels go on."""
        self._list(call, activation)
        return self.outside(call.outputs[0], tensor.ids)

    def opaque(self, call: Call, inputs: list[Tensor], why: str = _UNKNOWN, activation: str = "") -> list[Tensor]:
        """A layer that mixes or moves channels in a way unknown to us: listed; channels in and out are pinned."""
        reason = f"layer {call.name!r} ({type(call.layer).__name__}) {why}"
        for tensor in inputs:
            self.channels.pin(tensor.ids, reason)
        self._list(call, activation)
        return [self.entry(value, call.name, reason) for value in call.outputs]

    def _list(self, call: Call, activation: str) -> None:
        before, after = (sum(_size_bytes(value) for value in values) for values in (call.inputs, call.outputs))
        if activation:
            self.unknown.append(Unknown(f"{call.name}.activation", activation, after, after))
            return
        parameters = 0
        if call.name not in self._counted and isinstance(call.layer, keras.layers.Layer):
            self._counted.add(call.name)
            parameters = int(call.layer.count_params())
        self.unknown.append(Unknown(call.name, type(call.layer).__name__, before, after, parameters))

    # ---- the end ----------------------------------------------------------------------------------------------

    def _finish(self) -> ChannelGraph:
        resolved = self.channels.resolve()
        sizes = np.array([group.size for group in resolved.groups], np.int64)
        group_of = np.repeat(np.arange(len(sizes)), sizes)

        def maps(which: int) -> tuple[Floats, Floats]:
            rows = np.zeros((len(self.nodes), len(sizes)))
            const = np.zeros(len(self.nodes))
            for i, ids in enumerate(self._node_ids):
                slots = resolved.slots[ids[which]]
                rows[i] = np.bincount(group_of[slots[slots >= 0]], minlength=len(sizes)) / np.maximum(sizes, 1)
                const[i] = np.count_nonzero(slots < 0)
            return rows, const

        (in_map, in_const), (out_map, out_const) = maps(0), maps(1)
        layers = {
            name: LayerChannels(resolved.slots[ids[0]], resolved.slots[ids[1]]) for name, ids in self._layer_ids.items()
        }
        slots = {key: resolved.slots[tensor.ids] for key, tensor in self._tensors.items()}
        branches = find_branches(self.wired, slots, resolved.groups, self._merges)
        vanishing = {g for branch in branches for g in branch.gates}
        return ChannelGraph(
            nodes=tuple(self.nodes),
            groups=tuple(replace(g, can_vanish=i in vanishing) for i, g in enumerate(resolved.groups)),
            branches=branches,
            pinned=resolved.pinned,
            in_map=in_map,
            out_map=out_map,
            in_const=in_const,
            out_const=out_const,
            input_shapes=tuple(self._input_shapes),
            layer_channels=layers,
            unknown=tuple(self.unknown),
            model_name=self.wired.name,
        )


def spatial(value: Value) -> tuple[int, int] | None:
    """(height, width) of a value: 1 each of rank 2, 1 and the steps of rank 3, the last two axes of rank 4 and 5."""
    if not 2 <= len(value.shape) <= 5:
        return None
    height, width = (1, 1, *(int(size or 0) for size in value.shape[1:-1]))[-2:]
    return height, width


def depth(value: Value) -> int:
    """The first axis of positions of a rank 5 value, 1 of others."""
    return int(value.shape[1] or 0) if len(value.shape) == 5 else 1


def _size_bytes(value: Value) -> int:
    return _BYTES * int(np.prod([size or 1 for size in value.shape]))
