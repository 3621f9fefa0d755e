"""The family predictor: times of shapes that were not measured, from fitted numbers and numpy alone.

    log t = log(coefficients . work(op)) + trees(features(op))

The first term is physics: a call, multiply-adds in whole steps of channels, bytes read, weights, bytes written, each
with a coefficient that is not negative, a set for each family, and one for counts that fill no whole block where the
runtime was seen to be slow at those. The second corrects it where tiles and remainders make
it wrong: boosted regression trees on the shape and on how it fills tiles of 4 to 64 channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab.errors import FileFormatError
from latency_lab.ops import OpConfig

Floats = npt.NDArray[np.float64]

TILES = (4, 8, 16, 32, 64)
FLOOR_MS = 1e-5
FEATURES = 29
MAX_DEPTH = 64


def work(ops: Sequence[OpConfig], quanta: tuple[int, int]) -> Floats:
    """[n, 5]: 1, multiply-adds with channels rounded up to `quanta`, input, weight and output bytes (in 1e6)."""
    rows = []
    for op in ops:
        stepped = op.macs * _filled(op.out_channels, quanta[1])
        if op.kind in {"conv2d", "dense"}:
            stepped *= _filled(op.in_channels // op.groups, quanta[0])
        elif op.kind != "depthwise_conv2d":
            stepped = op.output_height * op.output_width * op.out_channels * _filled(op.out_channels, quanta[1])
            stepped *= op.kernel_size[0] * op.kernel_size[1]
        rows.append([1.0, stepped * 1e-6, op.input_bytes * 1e-6, op.weight_bytes * 1e-6, op.output_bytes * 1e-6])
    return np.array(rows, np.float64).reshape(len(ops), 5)


def features(ops: Sequence[OpConfig]) -> npt.NDArray[np.float32]:
    """[n, 29]: logarithms of shape and work, how channels fill tiles, and what is fused."""
    rows = []
    for op in ops:
        inside, out = op.in_channels // op.groups, op.out_channels
        positions = op.output_height * op.output_width
        sizes = [
            positions,
            inside,
            out,
            op.macs + 1,
            op.weight_bytes + 1,
            op.input_bytes,
            op.output_bytes,
            op.traffic_bytes,
        ]
        row = [float(np.log2(size)) for size in sizes]
        row += [_filled(inside, tile) for tile in TILES] + [_filled(out, tile) for tile in TILES]
        row += [inside % 4, out % 4, float(inside % 4 == 0), float(out % 16 == 0)]
        row += [op.kernel_size[0] * op.kernel_size[1], op.strides[0], op.operands, float(op.residual)]
        row += [float(op.activation is not None), float(op.padding == "same"), float(bool(op.broadcast))]
        rows.append(row)
    return np.array(rows, np.float32)


@dataclass(frozen=True, slots=True)
class Trees:
    """Boosted regression trees as five arrays of one length, nodes of all trees behind one another.

    Attributes:
        roots: index of each tree's root.
        feature, threshold: a node sends x to `left` where x[feature] <= threshold, else to `right`.
        left, right: indices of nodes; a leaf names itself in both.
        value: what a leaf adds (0 in other nodes).
        depth: steps that lead from any root to a leaf.
    """

    roots: npt.NDArray[np.int64]
    feature: npt.NDArray[np.int64]
    threshold: Floats
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    value: Floats
    depth: int

    def __call__(self, x: npt.NDArray[np.float32]) -> Floats:
        """Sum over trees, [n], of features [n, k]."""
        rows = np.arange(len(x))[:, None]
        at = np.broadcast_to(self.roots, (len(x), len(self.roots)))
        for _ in range(self.depth):
            goes_left = x[rows, self.feature[at]] <= self.threshold[at]
            at = np.where(goes_left, self.left[at], self.right[at])
        return np.asarray(self.value[at].sum(axis=1), np.float64)

    def to_json(self) -> dict[str, Any]:
        """Arrays as lists."""
        names = ("roots", "feature", "threshold", "left", "right", "value")
        return {**{name: getattr(self, name).tolist() for name in names}, "depth": self.depth}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trees:
        """The trees that `to_json` wrote."""
        arrays: dict[str, Any] = {
            name: np.array(data[name], np.int64) for name in ("roots", "feature", "left", "right")
        }
        arrays |= {name: np.array(data[name], np.float64) for name in ("threshold", "value")}
        size = len(arrays["value"])
        if any(len(arrays[name]) != size for name in ("feature", "threshold", "left", "right")):
            raise FileFormatError("Expected arrays of one length - at $.predictors.*.trees")
        for name, end in (("roots", size), ("left", size), ("right", size), ("feature", FEATURES)):
            if len(arrays[name]) and not 0 <= arrays[name].min() <= arrays[name].max() < end:
                raise FileFormatError(f"Expected indices from 0 to {end - 1} - at $.predictors.*.trees.{name}")
        return cls(**arrays, depth=min(int(data["depth"]), MAX_DEPTH))


@dataclass(frozen=True, slots=True)
class Predictor:
    """What was fitted for one kind of operation.

    Attributes:
        kind: of `ops.KINDS`.
        quanta: (in, out) channels that the runtime processes at a time; work is counted in whole ones.
        block: channel counts that it does not divide run in slower kernels; 1 where none do.
        coefficients: regime or family -> the five of `work`, ms; "" is the kind's own, for what was not measured.
        trees: correction of log t; None where too little was measured to fit one.
        cold: what a flushed cache adds: the five of `work`, ms; None where it was not measured.
        hull: family -> (low, high) of log2 of output positions, in_channels and out_channels that were measured.
        half_width: family -> half of the interval of log t that holds 90 % of held-out operations.
    """

    kind: str
    quanta: tuple[int, int]
    coefficients: Mapping[str, tuple[float, ...]]
    trees: Trees | None
    cold: tuple[float, ...] | None
    hull: Mapping[str, tuple[tuple[float, float], ...]]
    half_width: Mapping[str, float] = field(default_factory=dict)
    block: int = 1

    def latency_ms(self, ops: Sequence[OpConfig]) -> Floats:
        """Times of operations of this kind, ms, [n], with a warm cache."""
        if not ops:
            return np.zeros(0)
        found = work(ops, self.quanta)
        table = np.array([self._coefficients(op) for op in ops], np.float64)
        base: Floats = np.maximum((found * table).sum(axis=1), FLOOR_MS)
        return base if self.trees is None else base * np.exp(self.trees(features(ops)))

    def _coefficients(self, op: OpConfig) -> tuple[float, ...]:
        known = self.coefficients
        return known.get(regime(op, self.block)) or known.get(op.family) or known[""]

    def cold_extra_ms(self, ops: Sequence[OpConfig]) -> Floats:
        """What a flushed cache adds, ms, [n]; 0 where it was not measured."""
        if self.cold is None or not ops:
            return np.zeros(len(ops))
        extra: Floats = work(ops, self.quanta) @ np.array(self.cold, np.float64)
        return extra

    def inside(self, op: OpConfig) -> bool:
        """Whether the operation's family was measured, and at sizes around this one (a quarter octave of slack)."""
        bounds = self.hull.get(op.family)
        if bounds is None:
            return False
        return all(low - 0.25 <= at <= high + 0.25 for (low, high), at in zip(bounds, hull_point(op), strict=True))

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "quanta": list(self.quanta),
            "block": self.block,
            "coefficients": {family: list(row) for family, row in self.coefficients.items()},
            "trees": None if self.trees is None else self.trees.to_json(),
            "cold": None if self.cold is None else list(self.cold),
            "hull": {family: [list(pair) for pair in bounds] for family, bounds in self.hull.items()},
            "half_width": dict(self.half_width),
        }

    @classmethod
    def from_json(cls, kind: str, data: Mapping[str, Any]) -> Predictor:
        """The predictor that `to_json` wrote."""
        return cls(
            kind=kind,
            quanta=(int(data["quanta"][0]), int(data["quanta"][1])),
            coefficients={family: tuple(row) for family, row in data["coefficients"].items()},
            trees=None if data["trees"] is None else Trees.from_json(data["trees"]),
            cold=None if data["cold"] is None else tuple(data["cold"]),
            hull={family: tuple((low, high) for low, high in bounds) for family, bounds in data["hull"].items()},
            half_width=dict(data["half_width"]),
            block=int(data["block"]),
        )


def regime(op: OpConfig, block: int) -> str:
    """The family, and whether input channels fill whole blocks: a runtime may give up its fast kernels where not.

    Example:
        >>> from latency_lab.ops import OpConfig
        >>> regime(OpConfig("conv2d", in_channels=33, out_channels=8), block=4)
        'conv2d k1x1 s1x1 odd'
    """
    return f"{op.family} odd" if op.in_channels % block else op.family


def hull_point(op: OpConfig) -> tuple[float, float, float]:
    """log2 of output positions, in_channels, out_channels."""
    sizes = (op.output_height * op.output_width, op.in_channels, op.out_channels)
    positions, inside, out = (float(np.log2(size)) for size in sizes)
    return positions, inside, out


def _filled(channels: int, tile: int) -> float:
    """How much larger the channels are once rounded up to whole tiles: at least 1."""
    return -(-channels // tile) * tile / channels
