"""The chord of the staircase: a small grid of knots an op, all padded into one tensor and read in one gather."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from latency_lab.cost.terms import Values, as_array


@dataclass(frozen=True, eq=False)
class Grids:
    """Bilinear interpolation between knots, an op a grid.

    In the cell whose lower corner is (i, j):

        value = v00 + d_in*u + d_out*v + d_inout*u*v,    u = x_in - in_knots[i],  v = x_out - out_knots[j]

    At a knot the slope is the right-hand one; at and after the last knot, the last cell's. A grid with one out knot
    does not depend on x_out.

    Args:
        in_knots: [ops, most knots], padded with infinity.
        out_knots: [ops, most knots], padded with infinity.
        values: [ops, in knots, out knots], padded with zeros.
    """

    in_knots: numpy.ndarray
    out_knots: numpy.ndarray
    values: numpy.ndarray

    @classmethod
    def of(cls, grids: Sequence[tuple[Any, Any, Any]]) -> Grids:
        """Padded from (in_knots [I], out_knots [J], values [I, J]), one an op, with I >= 2 and J >= 1."""
        rows = max((len(grid[0]) for grid in grids), default=2)
        columns = max((len(grid[1]) for grid in grids), default=1)
        in_knots = numpy.full((len(grids), rows), numpy.inf)
        out_knots = numpy.full((len(grids), columns), numpy.inf)
        values = numpy.zeros((len(grids), rows, columns))
        for k, (ins, outs, table) in enumerate(grids):
            in_knots[k, : len(ins)], out_knots[k, : len(outs)] = ins, outs
            values[k, : len(ins), : len(outs)] = table
        return cls(in_knots, out_knots, values)

    def __post_init__(self) -> None:
        rows, columns = (numpy.isfinite(knots).sum(1) for knots in (self.in_knots, self.out_knots))
        last = numpy.maximum(numpy.stack([rows, columns]) - 2, 0)
        object.__setattr__(self, "_last", last)
        object.__setattr__(self, "_cells", _cells(self.in_knots, self.out_knots, self.values))

    def __call__(self, x_in: Any, x_out: Any, xp: Any) -> Values:
        """Value and slopes of each op."""
        count, rows, columns, fields = self._cells.shape  # type: ignore[attr-defined]
        last_in, last_out = self._last  # type: ignore[attr-defined]
        i = xp.clip(_knots_passed(x_in, self.in_knots, xp), 0, xp.array(last_in, dtype="int32"))
        j = xp.clip(_knots_passed(x_out, self.out_knots, xp), 0, xp.array(last_out, dtype="int32"))
        first = xp.array(numpy.arange(count) * rows * columns, dtype="int32")
        cells = as_array(self._cells.reshape(-1, fields), xp)  # type: ignore[attr-defined]
        cell = xp.take(cells, first + i * columns + j, axis=0)
        u, v = x_in - cell[:, 0], x_out - cell[:, 1]
        slope_in = cell[:, 3] + cell[:, 5] * v
        return cell[:, 2] + slope_in * u + cell[:, 4] * v, slope_in, cell[:, 4] + cell[:, 5] * u

    def to_json(self) -> dict[str, Any]:
        """JSON values that `terms_from_json` reads."""
        grids = []
        for ins, outs, table in zip(self.in_knots, self.out_knots, self.values, strict=True):
            ins, outs = ins[numpy.isfinite(ins)], outs[numpy.isfinite(outs)]
            grids.append([ins.tolist(), outs.tolist(), table[: len(ins), : len(outs)].tolist()])
        return {"terms": "grids", "grids": grids}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Grids:
        """The grids that `to_json` wrote."""
        return cls.of([(ins, outs, table) for ins, outs, table in data["grids"]])


def _knots_passed(x: Any, knots: numpy.ndarray, xp: Any) -> Any:
    """Index of the last knot at or under x: [ops], -1 under the first."""
    passed = xp.reshape(x, (-1, 1)) >= as_array(knots, xp)
    return xp.sum(xp.array(passed, dtype="int32"), axis=1) - 1


def _cells(in_knots: numpy.ndarray, out_knots: numpy.ndarray, values: numpy.ndarray) -> numpy.ndarray:
    """(in knot, out knot, v00, d_in, d_out, d_inout) of each cell: [ops, in cells, out cells, 6]; padding is zero."""
    if values.shape[2] == 1:  # no out axis: a second, equal column, infinitely far away
        out_knots = numpy.pad(out_knots, ((0, 0), (0, 1)), constant_values=numpy.inf)
        values = numpy.pad(values, ((0, 0), (0, 0), (0, 1)))
    shape = (len(values), values.shape[1] - 1, values.shape[2] - 1)
    low_in, low_out = in_knots[:, :-1, None], out_knots[:, None, :-1]
    with numpy.errstate(invalid="ignore"):
        wide, high = numpy.diff(in_knots)[:, :, None], numpy.diff(out_knots)[:, None, :]
    v00, v10, v01, v11 = values[:, :-1, :-1], values[:, 1:, :-1], values[:, :-1, 1:], values[:, 1:, 1:]
    fields = [low_in, low_out, v00, (v10 - v00) / wide, (v01 - v00) / high, (v11 - v10 - v01 + v00) / (wide * high)]
    found = numpy.stack([numpy.broadcast_to(field, shape) for field in fields], axis=-1)
    return numpy.where(numpy.isfinite(found), found, 0.0)
