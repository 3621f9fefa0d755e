"""The family predictor: times of shapes that were not measured, from fitted numbers and numpy alone.

    log t = log(coefficients . work(op)) + trees(features(op))

The first term is physics: a call, multiply-adds in whole steps of channels, bytes read, weights, bytes written, rows of
windows, weights from beyond a cache, each with a coefficient that is not negative, a set for each family, and one for
counts that fill no whole block where the runtime was seen to be slow at those. The second corrects it where tiles and
remainders make it wrong: boosted regression trees on the shape and on how it fills the tiles that devices compute in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab.ops import OpConfig, has_short_rows
from latency_lab.profiles.features import FEATURES, WORK, features, work
from latency_lab.profiles.trees import Trees

Floats = npt.NDArray[np.float64]

FLOOR_MS = 1e-5
DEFAULT_HALF_WIDTH = 0.5


@dataclass(frozen=True, slots=True)
class Predictor:
    """What was fitted for one kind of operation.

    Attributes:
        kind: of `ops.KINDS`.
        quanta: (in, out) channels that the runtime processes at a time; work is counted in whole ones.
        block: channel counts that it does not divide run in slower kernels; 1 where none do.
        coefficients: what `regimes` names -> those of `work`, ms (the first of them, where others count nothing); "" is
            the kind's own, for what was not measured.
        trees: correction of log t; None where too little was measured to fit one.
        cold: what a flushed cache adds: coefficients of `work`, ms; None where it was not measured.
        hull: family -> (low, high) of log2 of output positions, in_channels and out_channels that were measured.
        half_width: family -> half of the interval of log t that holds 90 % of held-out operations.
        cached: bytes of weights that a kernel of one position finds next to the core when it runs again and again.
    """

    kind: str
    quanta: tuple[int, int]
    coefficients: Mapping[str, tuple[float, ...]]
    trees: Trees | None
    cold: tuple[float, ...] | None
    hull: Mapping[str, tuple[tuple[float, float], ...]]
    half_width: Mapping[str, float] = field(default_factory=dict)
    block: int = 1
    cached: float = np.inf

    def latency_ms(self, ops: Sequence[OpConfig]) -> Floats:
        """Times of operations of this kind, ms, [n], with a warm cache."""
        if not ops:
            return np.zeros(0)
        found = work(ops, self.quanta, self.cached)
        levels = [regimes(op, self.block) for op in ops]
        known = {level: self._coefficients(level) for level in set(levels)}
        tables = (np.array([known[level][end] for level in levels]) for end in (0, -1))  # a level has two names at most
        slower = np.maximum(*((found * table).sum(axis=1) for table in tables))
        base: Floats = np.maximum(slower, FLOOR_MS)
        return base if self.trees is None else base * np.exp(self.trees(features(ops)))

    def _coefficients(self, levels: tuple[tuple[str, ...], ...]) -> list[Floats]:
        """Those of the narrowest regimes that were measured."""
        found = next(level for level in levels if any(name in self.coefficients for name in level))
        return [_whole(self.coefficients[name]) for name in found if name in self.coefficients]

    def cold_extra_ms(self, ops: Sequence[OpConfig]) -> Floats:
        """What a flushed cache adds, ms, [n]; 0 where it was not measured."""
        if self.cold is None or not ops:
            return np.zeros(len(ops))
        extra: Floats = (work(ops, self.quanta, self.cached) * _whole(self.cold)).sum(axis=1)
        return extra

    def inside(self, op: OpConfig) -> bool:
        """Whether the operation's family was measured, and at sizes around this one (a quarter octave of slack)."""
        bounds = self.hull.get(op.family)
        if bounds is None:
            return False
        return all(low - 0.25 <= at <= high + 0.25 for (low, high), at in zip(bounds, hull_point(op), strict=True))

    def interval_ratio(self, op: OpConfig) -> float:
        """r of the interval [t / r, t * r] that holds 90 % of operations such as this one."""
        widths = self.half_width
        return float(np.exp(widths.get(op.family, widths.get("", DEFAULT_HALF_WIDTH))))

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "quanta": list(self.quanta),
            "block": self.block,
            "cached": self.cached if np.isfinite(self.cached) else None,
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
            trees=None if data["trees"] is None else Trees.from_json(data["trees"], FEATURES),
            cold=None if data["cold"] is None else tuple(data["cold"]),
            hull={family: tuple((low, high) for low, high in bounds) for family, bounds in data["hull"].items()},
            half_width=dict(data["half_width"]),
            block=int(data["block"]),
            cached=float(data.get("cached") or np.inf),
        )


def regimes(op: OpConfig, block: int) -> tuple[tuple[str, ...], ...]:
    """What an operation is one of, from the narrowest on; of two that are as wide the slower counts.

    Its family, and of that those whose input channels fill no whole blocks: a runtime may have no fast kernel for the
    one or for the other. Constants for each of few channels, as images are normalised by, are one of their own: a row
    may take as long as one of many channels.

    Example:
        >>> from latency_lab.ops import OpConfig
        >>> regimes(OpConfig("conv2d", in_channels=33, out_channels=8), block=4)
        (('conv2d k1x1 s1x1 odd',), ('odd', 'conv2d k1x1 s1x1'), ('',))
        >>> regimes(OpConfig("add", 1, 32, 32, 3, 3, broadcast="channels"), block=1)
        (('add by channels short',), ('add by channels',), ('',))
    """
    if has_short_rows(op):
        return (f"{op.family} short",), (op.family,), ("",)
    return ((f"{op.family} odd",), ("odd", op.family), ("",)) if op.in_channels % block else ((op.family,), ("",))


def _whole(coefficients: tuple[float, ...]) -> Floats:
    """With 0 for what they do not count: `WORK` of them."""
    return np.array([*coefficients, *[0.0] * (WORK - len(coefficients))])


def hull_point(op: OpConfig) -> tuple[float, float, float]:
    """log2 of output positions of all examples, in_channels, out_channels."""
    sizes = (op.output_positions, op.in_channels, op.out_channels)
    positions, inside, out = (float(np.log2(size)) for size in sizes)
    return positions, inside, out
