"""A cost as numbers alone: widths of groups in, value and gradient out. Knows no graph and no profile, and travels
as JSON, so that a penalty inside of a saved model goes on charging the same price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy

from latency_lab.cost.terms import Terms, Values, as_array, terms_from_json


class Formula(Protocol):
    """A function of widths [groups], given the namespace `xp`."""

    def value(self, widths: Any, xp: Any) -> Any:
        """A scalar."""

    def value_and_gradient(self, widths: Any, xp: Any) -> tuple[Any, Any]:
        """A scalar, and its gradient [groups]."""

    def to_json(self) -> dict[str, Any]:
        """JSON values that `formula_from_json` reads."""


@dataclass(frozen=True, eq=False)
class OpSum:
    """Sum over ops of a term of the op's channel counts.

        x_in = in_map @ widths + in_const,   x_out = out_map @ widths + out_const
        value = constant + sum_i terms_i(x_in_i, x_out_i)
        gradient = in_map.T @ d value / d x_in + out_map.T @ d value / d x_out

    Args:
        terms: of n ops.
        in_map, out_map: [n, groups].
        in_const, out_const: [n], channels that no group has: the image, pinned outputs.
        constant: what no width changes.
    """

    terms: Terms
    in_map: numpy.ndarray
    in_const: numpy.ndarray
    out_map: numpy.ndarray
    out_const: numpy.ndarray
    constant: float = 0.0

    def per_op(self, widths: Any, xp: Any) -> Values:
        """Value and slopes of each op: three of [n]."""
        maps = as_array(numpy.concatenate([self.in_map, self.out_map]), xp)
        consts = as_array(numpy.concatenate([self.in_const, self.out_const]), xp)
        x = xp.matmul(maps, widths) + consts
        n = len(self.in_const)
        return self.terms(x[:n], x[n:], xp)

    def value(self, widths: Any, xp: Any) -> Any:
        """The sum, a scalar."""
        return self.constant + xp.sum(self.per_op(widths, xp)[0])

    def value_and_gradient(self, widths: Any, xp: Any) -> tuple[Any, Any]:
        """The value, and its gradient [groups]."""
        values, slope_in, slope_out = self.per_op(widths, xp)
        gradient = xp.matmul(slope_in, as_array(self.in_map, xp)) + xp.matmul(slope_out, as_array(self.out_map, xp))
        return self.constant + xp.sum(values), gradient

    def to_json(self) -> dict[str, Any]:
        """JSON values that `formula_from_json` reads."""
        maps = {name: getattr(self, name).tolist() for name in ("in_map", "in_const", "out_map", "out_const")}
        numbers = {"groups": self.in_map.shape[1], "constant": self.constant}
        return {"formula": "op_sum", "terms": self.terms.to_json(), **numbers, **maps}


@dataclass(frozen=True, eq=False)
class Weighted:
    """sum_k weight_k * formula_k."""

    parts: tuple[tuple[float, Formula], ...]

    def value(self, widths: Any, xp: Any) -> Any:
        """The sum, a scalar."""
        first, *rest = (weight * part.value(widths, xp) for weight, part in self.parts)
        return sum(rest, first)

    def value_and_gradient(self, widths: Any, xp: Any) -> tuple[Any, Any]:
        """The value, and its gradient [groups]."""
        found = [(weight, *part.value_and_gradient(widths, xp)) for weight, part in self.parts]
        return sum(weight * value for weight, value, _ in found), sum(weight * slope for weight, _, slope in found)

    def to_json(self) -> dict[str, Any]:
        """JSON values that `formula_from_json` reads."""
        return {"formula": "weighted", "parts": [[weight, part.to_json()] for weight, part in self.parts]}


@dataclass(frozen=True, eq=False)
class Worst:
    """max_k formula_k; the gradient is that of the first formula that has the maximum."""

    parts: tuple[Formula, ...]

    def value(self, widths: Any, xp: Any) -> Any:
        """The largest, a scalar."""
        worst, *rest = (part.value(widths, xp) for part in self.parts)
        for value in rest:
            worst = xp.where(value > worst, value, worst)
        return worst

    def value_and_gradient(self, widths: Any, xp: Any) -> tuple[Any, Any]:
        """The value, and its gradient [groups]."""
        (worst, slope), *rest = (part.value_and_gradient(widths, xp) for part in self.parts)
        for value, gradient in rest:
            slope = xp.where(value > worst, gradient, slope)
            worst = xp.where(value > worst, value, worst)
        return worst, slope

    def to_json(self) -> dict[str, Any]:
        """JSON values that `formula_from_json` reads."""
        return {"formula": "worst", "parts": [part.to_json() for part in self.parts]}


def formula_from_json(data: Mapping[str, Any]) -> Formula:
    """The formula that `to_json` wrote.

    Example:
        >>> import numpy
        >>> from latency_lab.cost.formula import formula_from_json
        >>> terms = {"terms": "polynomial", "coefficients": [[0, 0, 0, 2]]}
        >>> maps = {"in_map": [[1]], "in_const": [0], "out_map": [[0]], "out_const": [10]}
        >>> float(formula_from_json({"formula": "op_sum", "terms": terms, "groups": 1, **maps}).value([3.0], numpy))
        60.0
    """
    kind = data["formula"]
    if kind == "weighted":
        return Weighted(tuple((float(weight), formula_from_json(part)) for weight, part in data["parts"]))
    if kind == "worst":
        return Worst(tuple(formula_from_json(part) for part in data["parts"]))
    groups = int(data["groups"])
    in_const, out_const = (numpy.array(data[name], dtype=float) for name in ("in_const", "out_const"))
    shape = (len(in_const), groups)
    in_map, out_map = (numpy.array(data[name], dtype=float).reshape(shape) for name in ("in_map", "out_map"))
    constant = float(data.get("constant", 0.0))
    return OpSum(terms_from_json(data["terms"]), in_map, in_const, out_map, out_const, constant)
