"""From the openness of channels to a structure that meets a budget: one global threshold, then a few channels up or
down where the device's steps make it free.

Openness is any measure of how open a channel is (a gate's probability, |gamma|, the size of its weights), [slots],
slots numbered group after group as in `ChannelGraph`. A channel is never kept in the place of a more open one of its
group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latency_lab.errors import BudgetError, UsageError

if TYPE_CHECKING:
    from latency_lab.cost import Cost

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WORTH_OF_CLOSED = 0.75
"""Of its price: what opening a channel that training closed is worth."""
WORTH_OF_OPEN = 2.0
"""Of its price: what a channel that training left open is worth."""
GIVE_UP = 6
"""Structures over the budget, one after another, behind which no larger one is tried."""
FILLS, REACH, NEARLY = 4, 16, 0.97
"""What is left of a budget is spent in so many moves of so many channels, until this share of it is spent."""
TRADES = 20
"""Moves over the budget, the cheapest, that channels of another group may pay for."""
FEW = 4
"""Channels that snapping moves a width by, at most; and a sixteenth of the group, at most, but one."""


def fit(cost: Cost, openness: npt.ArrayLike, target: float, lowest: npt.ArrayLike = 1) -> Ints:
    """Widths by one global threshold on openness, snapped to the device's steps: those that spend most of a budget.

    Args:
        cost: read at whole widths, `cost.at`.
        openness: [slots]; infinite for a channel that has to stay.
        target: in the cost's unit.
        lowest: channels of each group that have to stay, [groups] or one number; 0 for a group that may vanish.

    Returns:
        Channels of each group, [groups].

    Raises:
        BudgetError: the fewest channels cost more; the message has that cost.

    Example:
        >>> from latency_lab.budget import fit, mask_of
        >>> def structure_mask(cost, gates):
        ...     return mask_of(cost, gates, fit(cost, gates, target=5.0))
    """
    values = np.asarray(openness, float)
    lowest = widths_above(cost, values, np.finfo(float).max, lowest)
    check_reachable(cost, target, lowest)
    ladder = _Ladder(cost, values, lowest)
    plain = _largest(ladder.rungs, lambda k: cost.at(ladder.widths(k)) <= target)
    best, most, over = ladder.widths(plain), -np.inf, 0
    for rung in ladder.upward(plain):
        snapped = snap(cost, ladder.widths(rung), lowest)
        spent = cost.at(snapped)
        if spent > target:
            over += 1
        elif spent > most:
            best, most, over = snapped, spent, 0
        if over == GIVE_UP:
            break
    return fill(cost, best, target, lowest)


def limit(cost: Cost, target: float | None, target_ms: float | None) -> float:
    """A budget in the cost's unit, from a share of the cost of all channels or from ms.

    Args:
        cost: read at whole widths.
        target: a share, in (0, 1].
        target_ms: ms, of a cost in ms.

    Raises:
        UsageError: not exactly one of the two, a value out of range, or ms of a cost in another unit.
    """
    if (target is None) == (target_ms is None):
        raise UsageError(
            f"Expected exactly one of `target` and `target_ms`. Received: target={target}, target_ms={target_ms}"
        )
    if target_ms is not None:
        if cost.unit != "ms":
            raise UsageError(f"`target_ms` needs a cost in ms; this one is in {cost.unit}. Give `target`, a share.")
        if not target_ms > 0:
            raise UsageError(f"Invalid value for argument `target_ms`. Expected ms above 0. Received: {target_ms}")
        return float(target_ms)
    if target is None or not 0 < target <= 1:
        raise UsageError(f"Invalid value for argument `target`. Expected a share in (0, 1]. Received: {target}")
    return float(target) * cost.at()


def check_reachable(cost: Cost, target: float, lowest: npt.ArrayLike | None = None) -> None:
    """Refuses a budget that no structure meets.

    Args:
        cost: read at whole widths.
        target: in the cost's unit.
        lowest: the fewest channels of each group, [groups]; None: 1 each.

    Raises:
        BudgetError: the lowest widths cost more than the target.
    """
    widths = np.ones_like(cost.graph.full_widths) if lowest is None else np.asarray(lowest, float)
    least = cost.at(widths)
    if least > target:
        enough, share = _rounded_up(least), _rounded_up(least / cost.at())
        raise BudgetError(
            f"The budget of {target:.4g} {cost.unit} cannot be reached: with {widths.sum():.0f} channels in the "
            f"{len(widths)} groups, the fewest that may be left, the network still costs {least:.4g} {cost.unit} "
            f"(all channels: {cost.at():.4g}). Raise the target to {enough} {cost.unit} or more (a share of {share}), "
            "or change the architecture; `graph.explain()` lists what cannot shrink."
        )


def _rounded_up(value: float) -> str:
    """Four digits, no less than the value: a target that is reached."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / unit) * unit:.4g}"


def snap(cost: Cost, widths: npt.ArrayLike, lowest: npt.ArrayLike = 1) -> Ints:
    """Widths moved by a few channels where the device's steps make it free or worth it.

    A move of d channels in one group changes the cost by delta. With p the price of a channel (the chord's slope),
    opening gains WORTH_OF_CLOSED*d*p - delta and closing gains -delta - WORTH_OF_OPEN*d*p; the best move with a gain is
    made, group by group, until none is left; opening stops at the end of a step. The last open channel of a group
    stays: with it a branch may go whose channels are not this group's alone. A cost without steps is left as it is.

    Args:
        cost: read at whole widths.
        widths: whole channels of each group, [groups].
        lowest: channels of each group that have to stay, [groups] or one number.

    Returns:
        [groups].

    Example:
        >>> from latency_lab.budget import snap
        >>> def on_the_edges(cost):
        ...     return snap(cost, cost.graph.full_widths // 2)
    """
    start = np.asarray(widths).astype(np.int64)
    sizes = np.array([group.size for group in cost.graph.groups], np.int64)
    few = np.clip(sizes // 16, 1, FEW)
    low, high = np.maximum(start - few, _least(start, lowest)), np.minimum(start + few, sizes)
    found = start.copy()
    for _ in range(3):
        before = found.copy()
        for group in range(len(found)):
            found[group] = _best_width(cost, found, group, int(low[group]), int(high[group]))
        if np.array_equal(before, found):
            break
    return found


def fill(cost: Cost, widths: Ints, target: float, lowest: Ints) -> Ints:
    """Widths with what a coarse staircase left of the budget spent on one group after another.

    Args:
        cost: read at whole widths.
        widths: that cost at most the target, [groups].
        target: in the cost's unit.
        lowest: channels of each group that have to stay, [groups].

    Returns:
        [groups].
    """
    found, spent = widths.copy(), cost.at(widths)
    for _ in range(FILLS):
        if spent >= NEARLY * target:
            return found
        affordable = [move for move in _wider(cost, found) if move[0] <= target]
        most = max((value for value, _ in affordable), default=spent)
        if most <= spent:
            break
        spent, found = max((m for m in affordable if m[0] == most), key=lambda move: int(move[1].sum()))
    return found if spent >= NEARLY * target else _trade(cost, found, target, lowest)


def _least(widths: Ints, lowest: npt.ArrayLike) -> Ints:
    """The fewest channels of each group that a few channels less may leave: one of those that are open."""
    return np.asarray(np.maximum(np.minimum(widths, 1), lowest), np.int64)


def uniform_widths(cost: Cost, target: float) -> Ints:
    """Widths of the largest network with the same share of channels in each group that meets a budget.

    Args:
        cost: read at whole widths.
        target: in the cost's unit.

    Returns:
        [groups], at least 1.

    Raises:
        BudgetError: one channel a group costs more.
    """
    check_reachable(cost, target)
    full = cost.graph.full_widths
    shares = np.unique(np.concatenate([np.zeros(1), *(np.arange(1, size + 1) / size for size in full)]))

    def at(k: int) -> Ints:
        return np.asarray(np.maximum(1, np.floor(shares[k] * full + 1e-9)), np.int64)

    return at(_largest(len(shares), lambda k: cost.at(at(k)) <= target))


def mask_of(cost: Cost, openness: npt.ArrayLike, widths: npt.ArrayLike) -> Floats:
    """[slots] 1 for the most open channels of each group, as many as `widths` says, and 0 for the others."""
    values, offsets = np.asarray(openness, float), cost.graph.offsets
    mask = np.zeros(len(values))
    for start, end, width in zip(offsets[:-1], offsets[1:], np.asarray(widths).tolist(), strict=True):
        mask[start + np.argsort(-values[start:end], kind="stable")[: int(width)]] = 1.0
    return mask


def widths_above(cost: Cost, openness: npt.ArrayLike, threshold: float, lowest: npt.ArrayLike = 1) -> Ints:
    """Channels of each group with an openness above a threshold, [groups], at least `lowest`."""
    opened = np.concatenate([[0], np.cumsum(np.asarray(openness) > threshold)])
    return np.asarray(np.maximum(np.diff(opened[cost.graph.offsets]), lowest), np.int64)


def _wider(cost: Cost, widths: Ints) -> list[tuple[float, Ints]]:
    """Widths with one group wider by up to REACH channels, and what they cost."""
    moves = []
    for group, size in enumerate(cost.graph.full_widths.astype(int).tolist()):
        for width in range(int(widths[group]) + 1, min(int(widths[group]) + REACH, size) + 1):
            trial = widths.copy()
            trial[group] = width
            moves.append((cost.at(trial), trial))
    return moves


def _trade(cost: Cost, widths: Ints, target: float, lowest: Ints) -> Ints:
    """Widths with one group wider and another narrower by a few channels to pay for it, where that spends more."""
    best, most = widths, cost.at(widths)
    few = np.clip(cost.graph.full_widths.astype(np.int64) // 16, 1, FEW)
    least = _least(widths, lowest)
    over = sorted((move for move in _wider(cost, widths) if move[0] > target), key=lambda move: move[0])
    for _, wide in over[:TRADES]:
        for group in np.flatnonzero(wide == widths):
            for width in range(widths[group] - 1, max(widths[group] - few[group], least[group]) - 1, -1):
                trial = wide.copy()
                trial[group] = width
                spent = cost.at(trial)
                if spent <= target:
                    best, most = (trial, spent) if spent > most else (best, most)
                    break
        if most >= NEARLY * target:
            break
    return best


class _Ladder:
    """Structures from the fewest channels to all: rung k opens the k most open of the others."""

    def __init__(self, cost: Cost, openness: Floats, lowest: Ints) -> None:
        self._cost = cost
        offsets = cost.graph.offsets
        group_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        kept = np.isinf(openness)
        for start, end, least in zip(offsets[:-1], offsets[1:], lowest.tolist(), strict=True):
            kept[start + np.argsort(-openness[start:end], kind="stable")[:least]] = True
        order = np.argsort(-openness, kind="stable")
        self._count = len(offsets) - 1
        self._lowest = np.bincount(group_of[kept], minlength=self._count)
        self._groups = group_of[order[~kept[order]]]
        self.rungs = len(self._groups) + 1

    def widths(self, rung: int) -> Ints:
        opened = np.bincount(self._groups[:rung], minlength=self._count)
        return (self._lowest + opened).astype(np.int64)

    def upward(self, rung: int) -> range:
        """Rungs from a little below this one to the last, a hundredth of the ladder apart."""
        step = max(1, self.rungs // 100)
        return range(max(rung - 2 * step, 0), self.rungs, step)


def _largest(count: int, holds: Callable[[int], bool]) -> int:
    """The largest k < count for which a condition holds, that does for 0 and is nearly monotone: bisection, and a look
    beyond."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    beyond = [k for k in range(low + 2, min(low + 10, count)) if holds(k)]
    return beyond[-1] if beyond else low


def _best_width(cost: Cost, widths: Ints, group: int, low: int, high: int) -> int:
    """The width in low..high that gains most; a wider one only at a step's end: one more channel costs its price."""
    width, size = int(widths[group]), cost.graph.groups[group].size
    price = max(0.0, float(cost.gradient(widths)[group]))
    trial, costs = widths.copy(), {}
    for candidate in range(low, min(high + 1, size) + 1):
        trial[group] = candidate
        costs[candidate] = cost.at(trial)
    best, most = width, 1e-6 * abs(costs[width])
    for candidate in range(low, high + 1):
        wider = candidate > width
        if wider and candidate < size and costs[candidate + 1] - costs[candidate] <= price:
            continue
        worth = (WORTH_OF_CLOSED if wider else WORTH_OF_OPEN) * (candidate - width) * price
        gain = worth - (costs[candidate] - costs[width])
        if gain > most:
            best, most = candidate, gain
    return best
