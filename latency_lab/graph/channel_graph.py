"""The operations of one model, and the groups of channels that their widths are made of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from latency_lab.errors import UsageError
from latency_lab.extras import missing
from latency_lab.graph.channels import Group, Ids, Pinned
from latency_lab.graph.explain import Explanation
from latency_lab.ops import Network, OpConfig

Widths = Mapping[str, int] | Sequence[int] | npt.NDArray[Any] | None
Shapes = Mapping[str, Sequence[int]] | Sequence[int]
Floats = npt.NDArray[np.float64]


class Weights(NamedTuple):
    """How many numbers a layer holds: const + per_in * in_channels + per_out * out_channels + per_in_out * both.

    Everything that `model.count_params()` counts: kernels, biases, and all four vectors of a batch norm.
    """

    const: float = 0.0
    per_in: float = 0.0
    per_out: float = 0.0
    per_in_out: float = 0.0


NO_WEIGHTS = Weights()


@dataclass(frozen=True)
class Node:
    """One operation of the model.

    Attributes:
        name: the layer's name, with ".depthwise" or ".activation" where one layer is several operations.
        op: at full widths.
        inputs: i >= 0 the output of node i; i < 0 the network input -1 - i.
        layer: name of the Keras layer.
        weights: number of weights as a polynomial of the node's channels.
    """

    name: str
    op: OpConfig
    inputs: tuple[int, ...]
    layer: str
    weights: Weights = NO_WEIGHTS


@dataclass(frozen=True)
class Unknown:
    """A layer that is no operation we have a cost for: listed, never dropped.

    Attributes:
        name, layer_class: which layer.
        input_bytes, output_bytes: at full widths, batch 1, 4 bytes a number.
        parameters: numbers of weights in it.
    """

    name: str
    layer_class: str
    input_bytes: int
    output_bytes: int
    parameters: int = 0


@dataclass(frozen=True, eq=False)
class LayerChannels:
    """Which slot each channel of a layer belongs to; -1: it always stays.

    Attributes:
        in_ids: [in_channels] of the layer's input (a dense layer after a flatten: of all its features).
        out_ids: [out_channels] of its output.
    """

    in_ids: Ids
    out_ids: Ids


@dataclass(frozen=True)
class Branch:
    """One operand of a merge.

    Attributes:
        merge: name of the add or concatenate layer.
        operand: which of its inputs.
        adds: whether the merge adds; else it concatenates.
        layers: names of the layers that go with the branch.
        groups: indices of the groups that no other layer has channels of, ascending.
        gates: those of them that every path through the branch passes: with one of them closed, the branch is gone.
    """

    merge: str
    operand: int
    adds: bool
    layers: frozenset[str]
    groups: tuple[int, ...]
    gates: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """Operations, channel groups, and the maps from group widths to the channels of each operation.

        in_channels  = in_map @ widths + in_const
        out_channels = out_map @ widths + out_const

    Attributes:
        nodes: operations in topological order.
        groups: shrinkable groups, in graph order. A slot is a channel of a group; slots are numbered group after group.
        pinned: groups that cannot shrink, with reasons.
        in_map, out_map: [nodes, groups] channels of a node for a channel of a group.
        in_const, out_const: [nodes] channels that always stay.
        input_shapes: (height, width, channels) of network input -1, -2, ...: the model's own inputs, then outputs of
            unknown layers.
        layer_channels: layer name -> slots of its channels.
        branches: what is removed whole when a group of it closes, in graph order.
        absent: indices of the groups that went with branches that were removed (`without`).
        unknown: layers without an operation.
        model_name: for messages; no part of the identity.
        source: what was read: "keras", or "tflite" or "onnx", in which a converter has done its merges already.

    Example:
        >>> import keras
        >>> from latency_lab.graph import ChannelGraph
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(16, 3, name="conv")(x)
        >>> y = keras.layers.Dense(10, name="head")(keras.layers.GlobalAveragePooling2D(name="pool")(y))
        >>> graph = ChannelGraph.from_model(keras.Model(x, y))
        >>> graph.groups
        (Group(name='conv', size=16, members=('conv',), can_vanish=False),)
        >>> [op.key for op in graph.op_configs({"conv": 5})][0]
        'conv2d 8x8 k3x3 s1x1 valid bias float32 3->5'
    """

    nodes: tuple[Node, ...]
    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    in_map: Floats
    out_map: Floats
    in_const: Floats
    out_const: Floats
    input_shapes: tuple[tuple[int, int, int], ...]
    layer_channels: Mapping[str, LayerChannels]
    branches: tuple[Branch, ...] = ()
    absent: frozenset[int] = frozenset()
    unknown: tuple[Unknown, ...] = ()
    model_name: str = ""
    source: str = "keras"

    @classmethod
    def from_model(cls, model: Any, input_shapes: Shapes | None = None) -> ChannelGraph:
        """The graph of a Keras model, or of a .keras, .tflite or .onnx file.

        A Keras model's operations are read at batch 1 in float32, those of a file as they are in it. The channels of a
        .tflite or .onnx file are all pinned: networks are narrowed in Keras.

        Args:
            model: a Keras model or a path.
            input_shapes: name -> shape with the batch first, or one shape for a model of one input: of a .tflite or
                .onnx file whose own shapes are open.

        Raises:
            UnsupportedModelError: the model cannot be read: subclassed, not built, channels first, open sizes.
            FileFormatError: the file is missing or damaged.
            MissingRuntimeError: the package that reads it is not installed.
        """
        try:
            if isinstance(model, (str, Path)) and Path(model).suffix == ".tflite":
                from latency_lab.graph.tflite_reader import read_tflite

                return read_tflite(model, input_shapes)
            if isinstance(model, (str, Path)) and Path(model).suffix == ".onnx":
                from latency_lab.graph.onnx_reader import read_onnx

                return read_onnx(model, input_shapes)
            from latency_lab.graph.keras_kinds import read
        except ModuleNotFoundError as error:
            raise missing(error, "ChannelGraph.from_model") or error from error
        if input_shapes is not None:
            raise UsageError(
                "`input_shapes` is for .tflite and .onnx files. Build a Keras model with the sizes that will be served."
            )
        return read(model)

    @classmethod
    def fixed(
        cls,
        nodes: Sequence[Node],
        input_shapes: Sequence[tuple[int, int, int]],
        unknown: Sequence[Unknown],
        model_name: str,
        source: str,
    ) -> ChannelGraph:
        """A graph in which no channel can close: of a file that was converted already."""
        none = np.zeros((len(nodes), 0))
        return cls(
            nodes=tuple(nodes),
            groups=(),
            pinned=(),
            in_map=none,
            out_map=none,
            in_const=np.array([node.op.in_channels for node in nodes], np.float64),
            out_const=np.array([node.op.out_channels for node in nodes], np.float64),
            input_shapes=tuple(input_shapes),
            layer_channels={},
            unknown=tuple(unknown),
            model_name=model_name,
            source=source,
        )

    # ---- widths -----------------------------------------------------------------------------------------------

    @cached_property
    def full_widths(self) -> Floats:
        """[groups] the width of each group with all channels open."""
        return np.array([group.size for group in self.groups], dtype=np.float64)

    @cached_property
    def offsets(self) -> Ids:
        """[groups + 1] the first slot of each group; the last entry is the number of slots."""
        return np.concatenate([[0], np.cumsum([group.size for group in self.groups])]).astype(np.int64)

    @property
    def slots(self) -> int:
        """Number of shrinkable channels: the length of a mask."""
        return int(self.offsets[-1])

    @property
    def unknown_parameters(self) -> int:
        """Numbers of weights in layers without an operation."""
        return sum(u.parameters for u in self.unknown)

    @cached_property
    def lowest_widths(self) -> npt.NDArray[np.int64]:
        """[groups] 0 for a group that can vanish or goes with a branch that does, 1 for others."""
        lowest = np.ones(len(self.groups), np.int64)
        lowest[sorted({*self.absent, *(g for branch in self.branches for g in branch.groups)})] = 0
        return lowest

    def widths(self, widths: Widths = None) -> npt.NDArray[np.int64]:
        """[groups] integer widths from a vector, a mapping by group name (others full), or None for full.

        Raises:
            UsageError: a group is unknown, or a width is not an integer in 1..size (from 0 where it can vanish).
        """
        if widths is None:
            return self.full_widths.astype(np.int64)
        if isinstance(widths, Mapping):
            names = [group.name for group in self.groups]
            for name in widths:
                if name not in names:
                    raise UsageError(f"The graph has no group {name!r}. Expected one of {names}.")
            values = np.array([widths.get(group.name, group.size) for group in self.groups])
        else:
            values = np.asarray(widths)
        if values.shape != (len(self.groups),):
            raise UsageError(f"Expected {len(self.groups)} widths, one a group. Received: shape {values.shape}")
        for group, value, least in zip(self.groups, values.tolist(), self.lowest_widths.tolist(), strict=True):
            if value != int(value) or not least <= value <= group.size:
                raise UsageError(
                    f"The width of group {group.name!r} must be an integer in {least}..{group.size}. Received: {value}"
                )
        return values.astype(np.int64)

    def op_configs(self, widths: Widths = None) -> tuple[OpConfig, ...]:
        """The operation of each node that is left at these integer widths (see `widths`)."""
        values = self.widths(widths)
        if vanished := self.vanished(values):
            return self.without(vanished).op_configs(values)
        ins = np.rint(self.in_map @ values + self.in_const).astype(int).tolist()
        outs = np.rint(self.out_map @ values + self.out_const).astype(int).tolist()
        return tuple(node.op.with_channels(i, o) for node, i, o in zip(self.nodes, ins, outs, strict=True))

    def network(self, widths: Widths = None) -> Network:
        """The operations at these widths, wired; those of branches that vanish are left out."""
        if vanished := self.vanished(self.widths(widths)):
            return self.without(vanished).network(widths)
        ops = self.op_configs(widths)
        return Network(tuple((op, node.inputs) for op, node in zip(ops, self.nodes, strict=True)), self.model_name)

    # ---- branches that vanish ---------------------------------------------------------------------------------

    def vanished(self, widths: npt.ArrayLike) -> frozenset[int]:
        """Indices of the branches that are gone at widths [groups]: one of their gates is 0."""
        closed = set(np.flatnonzero(np.asarray(widths) == 0).tolist())
        return frozenset(b for b, branch in enumerate(self.branches) if not closed.isdisjoint(branch.gates))

    def without(self, vanished: Collection[int]) -> ChannelGraph:
        """The graph with some of its branches removed: the same groups, fewer nodes.

        An operand less is merged; an add or concatenate of one operand is gone, and its readers read that operand.

        Args:
            vanished: indices of branches.
        """
        key = frozenset(vanished)
        if key not in self._reduced:
            self._reduced[key] = self._without(key)
        return self._reduced[key]

    @cached_property
    def _reduced(self) -> dict[frozenset[int], ChannelGraph]:
        return {}

    def _without(self, vanished: frozenset[int]) -> ChannelGraph:
        gone = {name for b in vanished for name in self.branches[b].layers}
        cut = {(self.branches[b].merge, self.branches[b].operand) for b in vanished}
        place: dict[int, int] = {-1 - i: -1 - i for i in range(len(self.input_shapes))}
        nodes: list[Node] = []
        kept: list[int] = []
        for i, node in enumerate(self.nodes):
            if node.layer in gone:
                continue
            inputs = [source for j, source in enumerate(node.inputs) if (node.layer, j) not in cut]
            if any(source not in place for source in inputs):  # it prepares an operand that is gone
                continue
            if len(inputs) == 1 < len(node.inputs):
                place[i] = place[inputs[0]]
                continue
            op = node.op
            if len(inputs) < len(node.inputs):
                op = dataclasses.replace(op, operands=len(inputs))
            place[i] = len(nodes)
            nodes.append(dataclasses.replace(node, op=op, inputs=tuple(place[source] for source in inputs)))
            kept.append(i)
        return dataclasses.replace(
            self,
            nodes=tuple(nodes),
            in_map=self.in_map[kept],
            out_map=self.out_map[kept],
            in_const=self.in_const[kept],
            out_const=self.out_const[kept],
            branches=tuple(b for b in self.branches if b.merge not in gone and (b.merge, b.operand) not in cut),
            absent=self.absent.union(*(self.branches[b].groups for b in vanished)),
            unknown=tuple(u for u in self.unknown if u.name.removesuffix(".activation") not in gone),
        )

    # ---- identity and explanation -----------------------------------------------------------------------------

    @cached_property
    def digest(self) -> str:
        """Identifies the architecture: the same for a model, its trained weights, and its gated clone."""
        content = [
            [[n.name, n.op.key, list(n.inputs), list(n.weights)] for n in self.nodes],
            [[g.name, g.size, g.members] for g in self.groups],
            [[p.name, p.size, p.members] for p in self.pinned],
            [[u.name, u.layer_class] for u in self.unknown],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def explain(self) -> Explanation:
        """Every group, shrinkable or why not, and every layer without a cost."""
        return Explanation.of(self)
