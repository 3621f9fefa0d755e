"""Small networks written down by hand for tests of costs: ops, maps and groups, no Keras."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from latency_lab.graph import Unknown
from latency_lab.ops import MIXING, Network, OpConfig
from latency_lab.profiles.correction import NetworkCorrection
from latency_lab.profiles.device_profile import Grid, OpPrediction
from latency_lab.profiles.roofline import Roofline

WEIGHTS = {
    "conv2d": lambda op: (0.0, 0.0, 1.0 * op.use_bias, float(np.prod(op.kernel_size))),
    "depthwise_conv2d": lambda op: (0.0, 0.0, np.prod(op.kernel_size) + op.use_bias, 0.0),
    "dense": lambda op: (0.0, 0.0, 1.0 * op.use_bias, 1.0),
    "batch_norm": lambda op: (0.0, 0.0, 4.0, 0.0),
}


@dataclass(frozen=True)
class HandNode:
    name: str
    op: OpConfig
    inputs: tuple[int, ...]
    layer: str
    weights: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class HandGroup:
    name: str
    size: int
    members: tuple[str, ...] = ()


@dataclass
class HandGraph:
    """Built node by node with `add`; channels in and out are {group index: times} or a constant."""

    groups: tuple[HandGroup, ...]
    digest: str = "hand"
    source: str = "keras"
    unknown: tuple[Unknown, ...] = ()
    unknown_parameters: int = 0
    branches: tuple[()] = ()
    nodes: list[HandNode] = field(default_factory=list)
    rows: list[tuple[np.ndarray, float, np.ndarray, float]] = field(default_factory=list)

    def add(
        self,
        name: str,
        op: OpConfig,
        inputs: tuple[int, ...],
        ins: dict[int, float] | int,
        outs: dict[int, float] | int,
    ) -> int:
        weights = WEIGHTS.get(op.kind, lambda op: (0.0, 0.0, 0.0, 0.0))(op)
        self.nodes.append(HandNode(name, op, inputs, name, tuple(float(w) for w in weights)))
        self.rows.append((*self._row(ins), *self._row(outs)))
        return len(self.nodes) - 1

    def _row(self, channels: dict[int, float] | int) -> tuple[np.ndarray, float]:
        row = np.zeros(len(self.groups))
        if isinstance(channels, dict):
            for group, times in channels.items():
                row[group] = times
            return row, 0.0
        return row, float(channels)

    def vanished(self, widths: np.ndarray) -> frozenset[int]:
        return frozenset()

    @property
    def full_widths(self) -> np.ndarray:
        return np.array([group.size for group in self.groups], float)

    @property
    def offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.full_widths)]).astype(int)

    @property
    def in_map(self) -> np.ndarray:
        return np.array([row[0] for row in self.rows]).reshape(-1, len(self.groups))

    @property
    def in_const(self) -> np.ndarray:
        return np.array([row[1] for row in self.rows])

    @property
    def out_map(self) -> np.ndarray:
        return np.array([row[2] for row in self.rows]).reshape(-1, len(self.groups))

    @property
    def out_const(self) -> np.ndarray:
        return np.array([row[3] for row in self.rows])

    def network(self, widths: object = None) -> Network:
        return Network(tuple((node.op, node.inputs) for node in self.nodes))


def net_a(batch: int = 1, with_norm: bool = True) -> HandGraph:
    """Net A of the oracles: two convs side by side, concatenated, two convs on that; batch norm and ReLU after each."""
    graph = HandGraph(
        tuple(HandGroup(f"conv{i + 1}", size, (f"conv{i + 1}",)) for i, size in enumerate((13, 23, 29, 31)))
    )

    def block(
        name: str, source: int, ins: dict[int, float] | int, group: int, kernel: tuple[int, int], stride: int = 1
    ) -> int:
        size = graph.groups[group].size
        channels = 3 if isinstance(ins, int) else 36
        op = OpConfig("conv2d", batch, 17, 19, channels, size, kernel, (stride, stride), "same", use_bias=False)
        last = graph.add(name, op, (source,), ins, {group: 1})
        for kind in ("batch_norm", "activation") if with_norm else ():
            same = OpConfig(
                kind,
                batch,
                op.output_height,
                op.output_width,
                size,
                size,
                activation="relu" if kind == "activation" else None,
            )
            last = graph.add(f"{name}_{kind}", same, (last,), {group: 1}, {group: 1})
        return last

    first = block("conv1", -1, 3, 0, (7, 5))
    second = block("conv2", -1, 3, 1, (1, 1))
    both = {0: 1.0, 1: 1.0}
    joined = graph.add(
        "concat", OpConfig("concatenate", batch, 17, 19, 36, 36, operands=2), (first, second), both, both
    )
    block("conv3", joined, both, 2, (3, 3), 2)
    block("conv4", joined, both, 3, (1, 1))
    return graph


GAMMA_A = (
    np.array([0.8] * 7 + [0.2] * 6),
    np.array([-0.7] * 11 + [0.1] * 12),
    np.array([0.6] * 10 + [-0.3] * 19),
    np.array([-0.5] * 17 + [-0.4] * 14),
)


def residual_net() -> HandGraph:
    """conv, batch norm, relu, depthwise, conv + add, pool, dense: every kind of map once."""
    graph = HandGraph((HandGroup("a", 32, ("a",)), HandGroup("b", 48, ("b",))))
    graph.add("a", OpConfig("conv2d", 1, 8, 8, 3, 32, (3, 3)), (-1,), 3, {0: 1})
    graph.add("bn", OpConfig("batch_norm", 1, 8, 8, 32, 32), (0,), {0: 1}, {0: 1})
    graph.add("relu", OpConfig("activation", 1, 8, 8, 32, 32, activation="relu"), (1,), {0: 1}, {0: 1})
    graph.add("b", OpConfig("conv2d", 1, 8, 8, 32, 48, (1, 1)), (2,), {0: 1}, {1: 1})
    graph.add("dw", OpConfig("depthwise_conv2d", 1, 8, 8, 48, 48, (3, 3)), (3,), {1: 1}, {1: 1})
    graph.add("c", OpConfig("conv2d", 1, 8, 8, 48, 32, (1, 1)), (4,), {1: 1}, {0: 1})
    graph.add("add", OpConfig("add", 1, 8, 8, 32, 32, operands=2), (2, 5), {0: 1}, {0: 1})
    graph.add("pool", OpConfig("global_avg_pool", 1, 8, 8, 32, 32), (6,), {0: 1}, {0: 1})
    graph.add("dense", OpConfig("dense", 1, 1, 1, 32, 10), (7,), {0: 1}, 10)
    return graph


@dataclass
class StepProfile:
    """A device whose latency rises in steps: 16 output channels (convs), inputs linear, all else by traffic.

    `unmeasured` kinds are bounded; `asked` counts the ops that were predicted.
    """

    network: NetworkCorrection = NetworkCorrection()
    fusions: frozenset[str] = frozenset()
    precision: str = "float32"
    layout_block: int = 1
    unmeasured: frozenset[str] = frozenset()
    name: str = "steps"
    kind: str = "measured"
    digest: str = "steps"
    roofline: Roofline = Roofline(100.0, 10.0)
    asked: int = 0

    def latency_ms(self, op: OpConfig) -> float:
        if op.kind not in MIXING:
            return op.traffic_bytes * 1e-6
        return op.height * op.width * op.in_channels * 16 * math.ceil(op.out_channels / 16) * 1e-6

    def predict(self, ops: Sequence[OpConfig]) -> list[OpPrediction]:
        self.asked += len(ops)
        found = []
        for op in ops:
            latency = self.latency_ms(op)
            source = "bounded" if op.kind in self.unmeasured else "measured"
            found.append(OpPrediction(latency, latency, latency, source))
        return found

    def grid(self, op: OpConfig) -> Grid:
        ins = np.array([*range(0, op.in_channels, 4), op.in_channels], float)
        outs = np.array([*range(0, op.out_channels, 16), op.out_channels], float) if op.kind in MIXING else np.ones(1)
        values = np.zeros((len(ins), len(outs)))
        for i, o in np.ndindex(*values.shape):
            if ins[i] and outs[o]:
                width = int(outs[o]) if op.kind in MIXING else int(ins[i])
                values[i, o] = self.latency_ms(op.with_channels(int(ins[i]), width))
        return Grid(ins, outs, values, ())
