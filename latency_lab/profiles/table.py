"""Measured points of one static key, and how they correct the family predictor between them.

    t(op) = predictor(op) * exp(sum_i v_i log(measured_i / predictor_i) / sum_i v_i),   v_i = 1 / d_i^2

with d_i the distance to point i in log2 of both channel counts, and one octave more on an axis where one count is of
whole blocks and the other is not: exact at each measured point, and the predictor
scaled to its measured neighbours between and around them. Source: D. Shepard, "A two-dimensional interpolation
function for irregularly-spaced data", ACM 1968.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_lab.errors import FileFormatError
from latency_lab.ops import OpConfig

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One measured operation.

    Attributes:
        latency_ms: the protocol's statistic, warm cache.
        low_ms, high_ms: bootstrap interval over rounds.
        cold_ms: with a flushed cache; None where it was not measured.
        unstable: the interval is wider than 10 % of the latency.
    """

    in_channels: int
    out_channels: int
    latency_ms: float
    low_ms: float
    high_ms: float
    cold_ms: float | None = None
    unstable: bool = False


@dataclass(frozen=True)
class LookupTable:
    """Measured points of one static key.

    Attributes:
        op: the operation, at the channel counts of any one of its points.
        points: (in_channels, out_channels) -> point.
    """

    op: OpConfig
    points: Mapping[tuple[int, int], Point]

    def correction(self, at: Floats, residuals: Floats, block: int) -> Floats:
        """Interpolated residuals, [m].

        Args:
            at: channel counts (in, out), [m, 2].
            residuals: log(measured / predicted) of each point, in the order of `points`, [n].
            block: of the predictor.
        """
        squared = ((_place(at, block)[:, None, :] - _place(self._channels, block)[None, :, :]) ** 2).sum(axis=2)
        weights = 1.0 / (squared + 1e-9)
        return np.asarray((weights * residuals).sum(axis=1) / weights.sum(axis=1), np.float64)

    @cached_property
    def _channels(self) -> Floats:
        return np.array(list(self.points), np.float64)

    def to_json(self) -> dict[str, Any]:
        """JSON values: the operation once, then a row a point."""
        rows = [
            [p.in_channels, p.out_channels, p.latency_ms, p.low_ms, p.high_ms, p.cold_ms, p.unstable]
            for p in self.points.values()
        ]
        return {"op": self.op.to_json(), "points": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LookupTable:
        """The table that `to_json` wrote.

        Raises:
            FileFormatError: it has no operation, no points, or points of fewer channels than the operation has groups.
        """
        op, points = OpConfig.from_json(data["op"]), [Point(*row) for row in data["points"]]
        least = min((min(p.in_channels, p.out_channels) for p in points), default=0)
        if least < op.groups:
            raise FileFormatError(f"Expected points of at least {op.groups} channels - at $.tables, {op.static_key}")
        return cls(op, {(p.in_channels, p.out_channels): p for p in points})


def _place(channels: Floats, block: int) -> Floats:
    """[n, 4]: log2 of both counts, and whether each is of whole blocks."""
    return np.concatenate([np.log2(channels), channels % block == 0], axis=1).astype(np.float64)
