"""A cost as numbers alone: widths of groups in, value and gradient out. Knows no graph and no profile, and travels
as JSON, so that a penalty inside of a saved model goes on charging the same price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
class Presence:
    """Ops that are there as long as some groups have a channel.

        presence_b = prod over g of gates[b]: min(1, width_g)
        presence_i = prod over b of branches[i]: presence_b

    Args:
        gates: [branches, most gates] indices of groups, padded with the number of groups.
        branches: [n, most branches] indices of branches, padded with the number of branches.
    """

    gates: numpy.ndarray
    branches: numpy.ndarray

    @classmethod
    def of(cls, gates: Sequence[Sequence[int]], branches: Sequence[Sequence[int]], groups: int) -> Presence | None:
        """From rows of any lengths; None where no op is in a branch."""
        if not any(branches):
            return None
        return cls(_padded(gates, groups), _padded(branches, len(gates)))

    def __call__(self, widths: Any, xp: Any) -> Any:
        """Presence of each op, [n]."""
        return self._product(self._product(xp.clip(widths, 0.0, 1.0), self.gates, xp), self.branches, xp)

    @staticmethod
    def _product(values: Any, rows: numpy.ndarray, xp: Any) -> Any:
        values = xp.concatenate([values, as_array([1.0], xp)])
        return xp.prod(xp.take(values, xp.array(rows, dtype="int32"), axis=0), axis=1)


def _padded(rows: Sequence[Sequence[int]], pad: int) -> numpy.ndarray:
    most = max(len(row) for row in rows)
    return numpy.array([[*row, *[pad] * (most - len(row))] for row in rows], numpy.int32)


@dataclass(frozen=True, eq=False)
class Excess:
    """What a sum over ops costs beyond what is free.

        price * max(0, sum_i min(terms_i, most_i) - free)

    Args:
        terms: of n ops.
        price: of a unit of theirs.
        free: of the sum.
        most: what counts of an op's term at most, [n], infinity where all does.
    """

    terms: Terms
    price: float
    free: float
    most: numpy.ndarray

    def value(self, amounts: Any, xp: Any) -> Any:
        """Of what the terms are, [n]: a scalar."""
        return self.price * xp.maximum(self._sum(amounts, xp) - self.free, 0.0)

    def slopes(self, amounts: Any, xp: Any) -> Any:
        """d value / d amounts, [n]."""
        none = as_array(0.0, xp)
        price = xp.where(self._sum(amounts, xp) > self.free, as_array(self.price, xp), none)
        return xp.where(amounts < as_array(self.most, xp), price, none)

    def _sum(self, amounts: Any, xp: Any) -> Any:
        return xp.sum(xp.minimum(amounts, as_array(self.most, xp)))

    def to_json(self) -> list[Any]:
        """JSON values that `from_json` reads."""
        most = [size if numpy.isfinite(size) else None for size in self.most.tolist()]
        return [self.terms.to_json(), self.price, self.free, most]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Excess:
        """What `to_json` wrote."""
        terms, price, free, most = data
        sizes = numpy.array([numpy.inf if size is None else float(size) for size in most])
        return cls(terms_from_json(terms), float(price), float(free), sizes)


@dataclass(frozen=True, eq=False)
class OpSum:
    """Sum over ops of a term of the op's channel counts.

        x_in = in_map @ widths + in_const,   x_out = out_map @ widths + out_const
        value = constant + sum_i presence_i(widths) * terms_i(x_in_i, x_out_i)
                + excess.value(presence_i(widths) * excess.terms_i(x_in_i, x_out_i))
        gradient = in_map.T @ d value / d x_in + out_map.T @ d value / d x_out

    The gradient is the price of a channel; of a last one that takes a branch with it, too, it is no more than that.

    Args:
        terms: of n ops.
        in_map, out_map: [n, groups].
        in_const, out_const: [n], channels that no group has: the image, pinned outputs.
        constant: what no width changes.
        presence: of the ops; None: all are always there.
        excess: terms of the same n ops, whose sum costs beyond what is free; None: nothing.
    """

    terms: Terms
    in_map: numpy.ndarray
    in_const: numpy.ndarray
    out_map: numpy.ndarray
    out_const: numpy.ndarray
    constant: float = 0.0
    presence: Presence | None = None
    excess: Excess | None = None

    def per_op(self, widths: Any, xp: Any) -> Values:
        """Value and slopes of each op, the excess apart: three of [n]."""
        return self._of(self.terms, self._channels(widths, xp), xp)

    def _channels(self, widths: Any, xp: Any) -> tuple[Any, Any, Any]:
        """x_in, x_out and presence of each op; None: all are there."""
        maps = as_array(numpy.concatenate([self.in_map, self.out_map]), xp)
        consts = as_array(numpy.concatenate([self.in_const, self.out_const]), xp)
        x = xp.matmul(maps, widths) + consts
        n = len(self.in_const)
        return x[:n], x[n:], None if self.presence is None else self.presence(widths, xp)

    @staticmethod
    def _of(terms: Terms, channels: tuple[Any, Any, Any], xp: Any) -> Values:
        x_in, x_out, there = channels
        value, slope_in, slope_out = terms(x_in, x_out, xp)
        if there is None:
            return value, slope_in, slope_out
        return there * value, there * slope_in, there * slope_out

    def value(self, widths: Any, xp: Any) -> Any:
        """The sum, a scalar."""
        channels = self._channels(widths, xp)
        total = self.constant + xp.sum(self._of(self.terms, channels, xp)[0])
        if self.excess is None:
            return total
        return total + self.excess.value(self._of(self.excess.terms, channels, xp)[0], xp)

    def value_and_gradient(self, widths: Any, xp: Any) -> tuple[Any, Any]:
        """The value, and its gradient [groups]."""
        channels = self._channels(widths, xp)
        values, slope_in, slope_out = self._of(self.terms, channels, xp)
        total = self.constant + xp.sum(values)
        if self.excess is not None:
            amounts, more_in, more_out = self._of(self.excess.terms, channels, xp)
            price = self.excess.slopes(amounts, xp)
            total = total + self.excess.value(amounts, xp)
            slope_in, slope_out = slope_in + price * more_in, slope_out + price * more_out
        gradient = xp.matmul(slope_in, as_array(self.in_map, xp)) + xp.matmul(slope_out, as_array(self.out_map, xp))
        return total, gradient

    def to_json(self) -> dict[str, Any]:
        """JSON values that `formula_from_json` reads."""
        maps = {name: getattr(self, name).tolist() for name in ("in_map", "in_const", "out_map", "out_const")}
        numbers = {"groups": self.in_map.shape[1], "constant": self.constant}
        there = self.presence
        rows = {} if there is None else {"gates": there.gates.tolist(), "branches": there.branches.tolist()}
        more = self.excess
        over = {} if more is None else {"excess": more.to_json()}
        return {"formula": "op_sum", "terms": self.terms.to_json(), **numbers, **maps, **rows, **over}


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


SHARPNESS = 16.0
"""p of `Worst`: two equal costs read 4 % high, and one at 0.8 of the other has a twenty-eighth of its weight."""


@dataclass(frozen=True, eq=False)
class Worst:
    """A smooth maximum, so that training narrows for all that are near the worst and does not jump between them.

        value = (sum_k formula_k^p)^(1/p),   d value = sum_k (formula_k / value)^(p - 1) d formula_k

    With p = `SHARPNESS`. It lies between max_k formula_k and n^(1/p) times it, and scales as they do. The formulas are
    not negative.
    """

    parts: tuple[Formula, ...]

    def value(self, widths: Any, xp: Any) -> Any:
        """The smooth maximum, a scalar."""
        return _smooth_max(xp.stack([part.value(widths, xp) for part in self.parts]), xp)

    def value_and_gradient(self, widths: Any, xp: Any) -> tuple[Any, Any]:
        """The value, and its gradient [groups]."""
        found = [part.value_and_gradient(widths, xp) for part in self.parts]
        values = xp.stack([value for value, _ in found])
        value = _smooth_max(values, xp)
        weights = xp.power(values / xp.maximum(value, _TINY), SHARPNESS - 1.0)
        return value, xp.matmul(weights, xp.stack([gradient for _, gradient in found]))

    def to_json(self) -> dict[str, Any]:
        """JSON values that `formula_from_json` reads."""
        return {"formula": "worst", "parts": [part.to_json() for part in self.parts]}


_TINY = 1e-30


def _smooth_max(values: Any, xp: Any) -> Any:
    """(sum_k values_k^p)^(1/p), in units of the largest, so that no power leaves the range of float32."""
    largest = xp.maximum(xp.max(values), _TINY)
    return largest * xp.power(xp.sum(xp.power(values / largest, SHARPNESS)), 1.0 / SHARPNESS)


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
    presence = None
    if "gates" in data:
        presence = Presence(*(numpy.array(data[name], numpy.int32) for name in ("gates", "branches")))
    excess = Excess.from_json(data["excess"]) if "excess" in data else None
    terms = terms_from_json(data["terms"])
    return OpSum(terms, in_map, in_const, out_map, out_const, constant, presence, excess)
