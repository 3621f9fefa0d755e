"""A cost: widths in, a value out, and what each channel costs. Costs are values: they add, scale and combine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Union

import numpy

from latency_lab.cost.formula import Formula, OpSum, Weighted, Worst
from latency_lab.cost.terms import Values
from latency_lab.errors import UsageError

if TYPE_CHECKING:
    from latency_lab.graph import ChannelGraph

Widths = Union[numpy.ndarray, "list[float]", Mapping[str, float], Any, None]
"""Channels of each group: [groups] in the graph's order, or by the group's name; None: all channels."""


class Cost:
    """What a network of given widths costs.

    Args:
        graph: whose groups the widths are of.
        unit: of the value, "ms" or "FLOPs".
        formula: the value at real-valued widths, for training.
        at: the value at whole widths, for budgets; None: the formula.

    Example:
        >>> from latency_lab.cost import FlopsCost, ParamsCost
        >>> def price(graph):
        ...     return FlopsCost(graph) + 100.0 * ParamsCost(graph)
    """

    def __init__(
        self, graph: ChannelGraph, unit: str, formula: Formula, at: Callable[[numpy.ndarray], float] | None = None
    ) -> None:
        self.graph = graph
        self.unit = unit
        self.formula = formula
        self._at = at

    def value(self, widths: Any, xp: Any = numpy) -> Any:
        """The cost at real-valued widths: a scalar of the namespace.

        Args:
            widths: channels of each group, [groups], or by name; None: all.
            xp: numpy (float64) or keras.ops (float32, differentiable).
        """
        return self.formula.value(self.as_widths(widths, xp), xp)

    def gradient(self, widths: Any, xp: Any = numpy) -> Any:
        """Price of one channel of each group, d value / d width: [groups], in units a channel.

        At a knot of a grid it is the right-hand slope, at the last knot the left-hand one.

        Args:
            widths: as for `value`.
            xp: as for `value`.
        """
        return self.formula.value_and_gradient(self.as_widths(widths, xp), xp)[1]

    def at(self, widths: Any = None) -> float:
        """What a structure of these whole widths costs: for latency the staircase of the device, else `value`."""
        found = numpy.asarray(self.as_widths(widths, numpy), float)
        return float(self.formula.value(found, numpy)) if self._at is None else self._at(found)

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        _check_one_graph(self, other)
        unit = self.unit if self.unit == other.unit else f"{self.unit} + {other.unit}"
        formula = Weighted(((1.0, self.formula), (1.0, other.formula)))
        return Cost(self.graph, unit, formula, lambda widths: self.at(widths) + other.at(widths))

    def __radd__(self, other: object) -> Cost:
        return self if other == 0 else NotImplemented  # what sum() starts from

    def __mul__(self, factor: float) -> Cost:
        weight = float(factor)
        unit = self.unit if weight == 1.0 else f"{weight:g} {self.unit}"
        return Cost(self.graph, unit, Weighted(((weight, self.formula),)), lambda widths: weight * self.at(widths))

    __rmul__ = __mul__

    def as_widths(self, widths: Any, xp: Any) -> Any:
        """Widths as an array of `xp`, [groups], from any form that `value` takes."""
        if widths is None:
            widths = self.graph.full_widths
        elif isinstance(widths, Mapping):
            widths = self._named(widths)
        ready = xp is not numpy and hasattr(widths, "dtype") and not isinstance(widths, numpy.ndarray)
        return widths if ready else xp.array(widths, dtype=_dtype(xp))

    def _named(self, widths: Mapping[str, float]) -> numpy.ndarray:
        names = [group.name for group in self.graph.groups]
        unknown = sorted(set(widths) - set(names))
        if unknown:
            raise UsageError(f"No group is named {unknown[0]!r}. Expected names among {names}.")
        full = self.graph.full_widths
        return numpy.array([widths.get(name, full[g]) for g, name in enumerate(names)], float)


class OpCost(Cost, ABC):
    """A cost that is a sum over ops.

    Args:
        ops: name of each op that has a term, in graph order.
        formula: the sum.
    """

    formula: OpSum
    _reduced: dict[frozenset[int], OpCost]

    def at(self, widths: Any = None) -> float:
        """As of `Cost`; where branches vanish, the cost of the graph without them."""
        found = numpy.asarray(self.as_widths(widths, numpy), float)
        vanished = self.graph.vanished(found) if self.graph.branches else frozenset()
        return self._without(vanished).at(found) if vanished else super().at(found)

    def _without(self, vanished: frozenset[int]) -> OpCost:
        """This cost of the graph without some branches."""
        if vanished not in self._reduced:
            self._reduced[vanished] = self._of(self.graph.without(vanished))
        return self._reduced[vanished]

    @abstractmethod
    def _of(self, graph: ChannelGraph) -> OpCost:
        """The same cost of another graph."""

    def __init__(
        self,
        graph: ChannelGraph,
        unit: str,
        formula: OpSum,
        ops: tuple[str, ...],
        at: Callable[[numpy.ndarray], float] | None = None,
    ) -> None:
        super().__init__(graph, unit, formula, at)
        self.ops = ops
        self._reduced = {}

    def per_op(self, widths: Any = None, xp: Any = numpy) -> Values:
        """Value, and slopes over in_channels and out_channels, of each op: three arrays [ops]."""
        return self.formula.per_op(self.as_widths(widths, xp), xp)


def worst_of(*costs: Cost) -> Cost:
    """The largest of some costs in one unit: one network for several devices.

        at = max_k at_k, exact, for budgets and reports;   value = (sum_k value_k^16)^(1/16), smooth, for training

    Args:
        costs: over one graph; scaled ones too, "0.5 * board" where the board may take twice as long.

    Raises:
        UsageError: no costs, or costs of different graphs or units.

    Example:
        >>> from latency_lab.cost import LatencyCost, worst_of
        >>> def both(graph, phone, board):
        ...     return worst_of(LatencyCost(graph, phone), 0.5 * LatencyCost(graph, board))
    """
    if not costs:
        raise UsageError("worst_of needs at least one cost. Received none.")
    for other in costs[1:]:
        _check_one_graph(costs[0], other)
    units = {_unscaled(cost.unit) for cost in costs}
    if len(units) > 1:
        raise UsageError(f"worst_of needs costs in one unit. Received: {sorted(units)}")
    formula = Worst(tuple(cost.formula for cost in costs))
    return Cost(costs[0].graph, units.pop(), formula, lambda widths: max(cost.at(widths) for cost in costs))


def _check_one_graph(first: Cost, other: Cost) -> None:
    if first.graph is not other.graph and first.graph.digest != other.graph.digest:
        raise UsageError("Costs of two different models do not combine: bind both to one ChannelGraph.")


def _unscaled(unit: str) -> str:
    """ "ms" of "0.5 ms"; a sum of units as it is."""
    factor, _, rest = unit.partition(" ")
    try:
        float(factor)
    except ValueError:
        return unit
    return _unscaled(rest)


def _dtype(xp: Any) -> str:
    return "float64" if xp is numpy else "float32"
