"""What each op adds to a cost, as numbers: value and slopes at real-valued channel counts.

Every sum is written once, for numpy and for keras.ops alike: `xp` is the namespace, and only functions that both
have under one name are used. numpy computes in float64, every other namespace in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy

from latency_lab.errors import FileFormatError
from latency_lab.ops import OpConfig

Values = tuple[Any, Any, Any]
"""(value, d value / d in_channels, d value / d out_channels), each [ops]."""


class Terms(Protocol):
    """A function of the channel counts of each op: (x_in [ops], x_out [ops], xp) -> `Values`."""

    def __call__(self, x_in: Any, x_out: Any, xp: Any) -> Values:
        """Value and slopes of each op."""

    def to_json(self) -> dict[str, Any]:
        """JSON values that `terms_from_json` reads."""


def as_array(values: Any, xp: Any) -> Any:
    """The values as an array of the namespace: float64 for numpy, else float32."""
    return numpy.asarray(values, float) if xp is numpy else xp.array(values, dtype="float32")


def bilinear(op: OpConfig, count: Callable[[OpConfig], float]) -> tuple[float, float, float, float]:
    """Coefficients (c0, c_in, c_out, c_inout) of a count that is bilinear in the op's channel counts.

    count = c0 + c_in*in + c_out*out + c_inout*in*out, from its values at four points.

    Example:
        >>> from latency_lab.cost.terms import bilinear
        >>> from latency_lab.ops import OpConfig
        >>> bilinear(OpConfig("dense"), lambda op: op.weight_count)
        (0.0, 0.0, 1.0, 1.0)
    """
    unit = op.groups
    at = {(i, o): count(op.with_channels(i * unit, o * unit)) for i in (1, 2) for o in (1, 2)}
    both = at[2, 2] - at[2, 1] - at[1, 2] + at[1, 1]
    per_in = at[2, 1] - at[1, 1] - both
    per_out = at[1, 2] - at[1, 1] - both
    rest = at[1, 1] - per_in - per_out - both
    return float(rest), per_in / unit, per_out / unit, both / unit**2


@dataclass(frozen=True, eq=False)
class Polynomial:
    """value = c0 + c_in*in + c_out*out + c_inout*in*out.

    Args:
        coefficients: [ops, 4].
    """

    coefficients: numpy.ndarray

    @classmethod
    def of(cls, ops: Sequence[OpConfig], count: Callable[[OpConfig], float]) -> Polynomial:
        """The polynomial of a count (FLOPs, weights, bytes) over ops."""
        return cls(numpy.array([bilinear(op, count) for op in ops], dtype=float).reshape(-1, 4))

    def __call__(self, x_in: Any, x_out: Any, xp: Any) -> Values:
        """Value and slopes of each op."""
        rest, per_in, per_out, both = (as_array(column, xp) for column in self.coefficients.T)
        slope_in = per_in + both * x_out
        return rest + slope_in * x_in + per_out * x_out, slope_in, per_out + both * x_in

    def to_json(self) -> dict[str, Any]:
        """JSON values that `terms_from_json` reads."""
        return {"terms": "polynomial", "coefficients": self.coefficients.tolist()}


@dataclass(frozen=True, eq=False)
class Larger:
    """The larger of two polynomials, op by op; a tie goes to the first. The closed-form roofline."""

    first: Polynomial
    second: Polynomial

    def __call__(self, x_in: Any, x_out: Any, xp: Any) -> Values:
        """Value and slopes of each op."""
        first, second = self.first(x_in, x_out, xp), self.second(x_in, x_out, xp)
        wins = first[0] >= second[0]
        value, slope_in, slope_out = (xp.where(wins, a, b) for a, b in zip(first, second, strict=True))
        return value, slope_in, slope_out

    def to_json(self) -> dict[str, Any]:
        """JSON values that `terms_from_json` reads."""
        return {"terms": "larger", "first": self.first.to_json(), "second": self.second.to_json()}


def terms_from_json(data: Mapping[str, Any]) -> Terms:
    """The terms that `to_json` wrote.

    Raises:
        FileFormatError: the kind is unknown.
    """
    from latency_lab.cost.grid import Grids

    kind = data["terms"]
    if kind == "polynomial":
        return Polynomial(numpy.array(data["coefficients"], dtype=float).reshape(-1, 4))
    if kind == "larger":
        first, second = terms_from_json(data["first"]), terms_from_json(data["second"])
        if isinstance(first, Polynomial) and isinstance(second, Polynomial):
            return Larger(first, second)
    if kind == "grids":
        return Grids.from_json(data)
    raise FileFormatError(f"Unknown terms of a cost: {kind!r}. Expected polynomial, larger or grids.")
