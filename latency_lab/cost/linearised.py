"""What Gamma and GroupLasso minimise: the price of a channel times how much of it there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from latency_lab.cost.base import Cost, OpCost
    from latency_lab.cost.formula import Formula


def linearised_loss(cost: Cost, alive: Any, r: Any, xp: Any = numpy) -> Any:
    """Linear in r, with the prices of a network that has only the alive channels.

        loss = sum_g p_g * r_g,    p_g = d cost / d width_g at widths = alive, no gradient through p

    A price sums an op's in slot and out slot apart, so that a conv c*in*out gives c*(in*r_out + out*r_in); channels
    that no group has (the image, pinned outputs) have r = 0. An op with one width (depthwise) is charged once.

    Args:
        cost: any.
        alive: open channels of each group, [groups].
        r: sum of each group's regularization vector, [groups].
        xp: numpy or keras.ops.

    Returns:
        The loss, a scalar in the cost's unit.

    Example:
        >>> from latency_lab.cost import FlopsCost, linearised_loss
        >>> def loss(graph, gammas):
        ...     return linearised_loss(FlopsCost(graph), [sum(g > 0.01 for g in gamma) for gamma in gammas],
        ...                            [sum(gamma) for gamma in gammas])

    Source: A. Gordon et al., "MorphNet", arXiv 1711.06798, section 4.
    """
    return linearised(cost.formula, cost.as_widths(alive, xp), r, xp)


def linearised(formula: Formula, alive: Any, r: Any, xp: Any) -> Any:
    """`linearised_loss` of a cost's formula alone, which is what a penalty inside of a model holds."""
    price = formula.value_and_gradient(alive, xp)[1]
    return xp.sum((price if xp is numpy else xp.stop_gradient(price)) * r)


def linearised_per_op(cost: OpCost, alive: Any, r: Any) -> numpy.ndarray:
    """The share of each op in `linearised_loss`, [ops] (numpy)."""
    _, slope_in, slope_out = cost.per_op(alive)
    r = numpy.asarray(r, float)
    found: numpy.ndarray = slope_in * (cost.formula.in_map @ r) + slope_out * (cost.formula.out_map @ r)
    return found
