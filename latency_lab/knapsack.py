"""Widths that are worth most within a budget, on a cost with steps: a knapsack.

    maximise  sum_g sum_{k < width_g} worth_gk   subject to  cost.at(widths) <= target

worth_gk is that of the k-th most worthwhile channel of group g. What a group costs depends on its neighbours' widths,
so the way there is in two parts. Descent: from all channels, those with the least worth for their price (the chord's
slope here and now) are closed, a few per cent of the cost at a time. Then, around the widths that were found, what each
width of each group alone adds or saves is read from the staircase; the best choice of one width a group is made (a
multiple-choice knapsack), checked as a whole against the cost, and made again from there until it gains no more.

Source: HALP, arXiv 2110.10811, whose knapsack is over groups of channels at the prices of a look-up table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from latency_lab.cost import Cost

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

STRIDE = 0.03
"""Of the present cost: what the descent closes at the prices of one point."""
BLOCKS = (1, 4, 8, 16, 32)
"""Channels that a descent closes together. Where many groups meet in a sum or a concatenation, none of them reaches a
step by itself, and all do in blocks."""
NEAR, FAR = 4, 8
"""Widths to choose from: all so near to the present one, and about so many between half and one and a half of it."""
ROUNDS, TRIES = 6, 6
"""Knapsacks at new prices; and for each, attempts with less room after the whole cost more than its parts."""
HOPES = (0.0, 0.03, 0.1)
"""Of the target: how much over it the sum of the parts may be, at first; narrowed together, groups save each other."""
STATES = 500
"""Sums that a knapsack tells apart, evenly over the cost."""


def best_widths(cost: Cost, worth: npt.ArrayLike, target: float, lowest: Ints) -> Ints:
    """Widths within a budget whose channels are worth most, by descents in blocks and knapsacks around the best.

    Args:
        cost: read at whole widths, `cost.at`.
        worth: [slots], finite, at least 0.
        target: in the cost's unit; the lowest widths cost no more.
        lowest: the fewest channels of each group, [groups].

    Returns:
        [groups]; `cost.at` of them is at most the target.

    Example:
        >>> from latency_lab.knapsack import best_widths
        >>> def half(cost, worth, lowest):
        ...     return best_widths(cost, worth, 0.5 * cost.at(), lowest)
    """
    shelf = Shelf(cost, np.asarray(worth, float), lowest)
    starts = [shelf.descend(target, cost.at, block) for block in BLOCKS]
    best = max(starts, key=shelf.worth)
    for _ in range(ROUNDS):
        better = _around(shelf, best, target)
        if better is None:
            break
        best = better
    return _filled(shelf, best, target)


def plain_widths(cost: Cost, worth: npt.ArrayLike, target: float, lowest: Ints) -> Ints:
    """Widths within a budget by the chord alone, blind to steps: what `best_widths` is measured against.

    Args:
        cost: read by `cost.value` and `cost.gradient`.
        worth, target, lowest: as of `best_widths`.

    Returns:
        [groups]; `cost.value` of them is at most the target, `cost.at` may be above it.
    """
    return Shelf(cost, np.asarray(worth, float), lowest).descend(target, lambda widths: float(cost.value(widths)), 1)


def choose(costs: Sequence[Floats], worths: Sequence[Floats], room: float) -> list[int]:
    """The multiple-choice knapsack: one option of each group, worth most in sum, within the room.

    Sums of cost and worth that no other sum beats are carried from group to group. It is exact while there are at most
    STATES of them; beyond, of those in the same part of the cost the one that is worth most goes on.

    Args:
        costs, worths: of the options of each group, [options] a group; costs may be negative.
        room: for the sum of costs.

    Returns:
        An index of each group. The cheapest of each where even they do not fit.

    Example:
        >>> import numpy as np
        >>> from latency_lab.knapsack import choose
        >>> choose([np.array([0.0, 2.0]), np.array([0.0, 3.0])], [np.array([0.0, 5.0]), np.array([0.0, 6.0])], 4.0)
        [0, 1]
    """
    cheapest = [int(np.lexsort((-w, c))[0]) for c, w in zip(costs, worths, strict=True)]
    rest = sum(float(c[i]) for c, i in zip(costs, cheapest, strict=True))
    slack = 1e-12 * (abs(room) + sum(float(np.abs(c).max()) for c in costs))
    if rest > room + slack:
        return cheapest
    sum_cost, sum_worth = np.zeros(1), np.zeros(1)
    steps: list[tuple[Ints, Ints]] = []
    for c, w, least in zip(costs, worths, cheapest, strict=True):
        rest -= float(c[least])
        good = _unbeaten(c, w, np.inf)
        all_costs, all_worths = np.add.outer(sum_cost, c[good]).ravel(), np.add.outer(sum_worth, w[good]).ravel()
        kept = _unbeaten(all_costs, all_worths, room - rest + slack)
        steps.append((kept // len(good), good[kept % len(good)]))
        sum_cost, sum_worth = all_costs[kept], all_worths[kept]
    state, picks = len(sum_cost) - 1, []
    for before, option in reversed(steps):
        picks.append(int(option[state]))
        state = int(before[state])
    return picks[::-1]


def _unbeaten(costs: Floats, worths: Floats, room: float) -> Ints:
    """Indices of the sums within the room that cost less than any that is worth as much, ascending in both."""
    order = np.lexsort((-worths, costs))
    order = order[costs[order] <= room]
    best_before = np.maximum.accumulate(np.concatenate([[-np.inf], worths[order][:-1]]))
    order = order[worths[order] > best_before]
    if len(order) > STATES:
        low, high = costs[order[0]], costs[order[-1]]
        cell = np.floor((costs[order] - low) / (high - low) * STATES)
        order = order[np.append(np.diff(cell) > 0, True)]
    return order.astype(np.int64)


class Shelf:
    """Channels in the order of their worth, group by group, and what they cost.

    Attributes:
        cost: of widths.
        sizes, lowest: most and fewest channels of each group, [groups].
        totals: for each group, the worth of its k most worthwhile channels, [size + 1].
    """

    def __init__(self, cost: Cost, worth: Floats, lowest: Ints) -> None:
        offsets = cost.graph.offsets
        spans = list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
        self.cost = cost
        self.lowest = lowest
        self.sizes = np.diff(offsets).astype(np.int64)
        self.totals = [np.concatenate([[0.0], np.cumsum(np.sort(worth[a:b])[::-1])]) for a, b in spans]

    def worth(self, widths: Ints) -> float:
        """Of all channels that stay."""
        return float(sum(total[width] for total, width in zip(self.totals, widths.tolist(), strict=True)))

    def descend(self, target: float, read: Callable[[Ints], float], block: int) -> Ints:
        """Closes the channels that are worth least for their price until a reading of the cost is within the target.

        Args:
            target: for `read`.
            read: the cost of widths.
            block: channels that close together: a width left is a multiple of it, or the most or fewest channels.

        Returns:
            [groups].
        """
        items = self._items(block)
        widths = self.sizes.copy()
        now = read(widths)
        while now > target:
            widths = self._closed(widths, items, min(now - target, STRIDE * now))
            now = read(widths)
        return widths

    def _items(self, block: int) -> Floats:
        """[items, 4] group, fewer and more channels, and the worth of those between: what can close."""
        rows = []
        for group, (low, size) in enumerate(zip(self.lowest.tolist(), self.sizes.tolist(), strict=True)):
            edges = np.unique([low, *range(low - low % block + block, size, block), size])
            spans = zip(edges[:-1], edges[1:], strict=True)
            rows += [(group, a, b, self.totals[group][b] - self.totals[group][a]) for a, b in spans]
        return np.array(rows, float).reshape(-1, 4)

    def _closed(self, widths: Ints, items: Floats, saving: float) -> Ints:
        """Widths without the items of least worth for their price that save so much, by the chord's slopes here."""
        groups, fewer, more = (items[:, i].astype(np.int64) for i in range(3))
        left = more <= widths[groups]
        groups, fewer, more, worth = groups[left], fewer[left], more[left], items[left, 3]
        slopes = np.asarray(self.cost.gradient(widths), float)
        slopes = np.maximum(slopes, 1e-6 * slopes.max(initial=0.0)) if slopes.max(initial=0.0) > 0 else slopes * 0 + 1
        prices = slopes[groups] * (more - fewer)
        order = np.lexsort((-fewer, worth / prices))  # of equals the last: a group closes from its end
        enough = int(np.searchsorted(np.cumsum(prices[order]), saving)) + 1
        closed = order[: min(enough, max(1, len(order) // 20))]
        found = widths.copy()
        np.minimum.at(found, groups[closed], fewer[closed])
        return found

    def options(self, widths: Ints) -> list[Ints]:
        """For each group the widths to choose from around the present one, ascending, [options] a group."""
        found = []
        for width, low, size in zip(widths.tolist(), self.lowest.tolist(), self.sizes.tolist(), strict=True):
            stride = 1 << max(0, int(width // FAR).bit_length() - 1)
            far = np.arange(width // 2 // stride, (3 * width // 2) // stride + 2) * stride
            near = np.arange(width - NEAR, width + NEAR + 1)
            found.append(np.unique(np.clip([*near, *far], low, size)).astype(np.int64))
        return found

    def changes(self, widths: Ints, options: Sequence[Ints]) -> tuple[list[Floats], list[Floats]]:
        """What each option of each group alone adds to the cost, and to the worth: [options] a group, twice."""
        now, trial = self.cost.at(widths), widths.copy()
        costs, worths = [], []
        for group, choices in enumerate(options):
            read = []
            for choice in choices.tolist():
                trial[group] = choice
                read.append(now if choice == widths[group] else self.cost.at(trial))
            trial[group] = widths[group]
            costs.append(np.array(read) - now)
            worths.append(self.totals[group][choices] - self.totals[group][widths[group]])
        return costs, worths


def _around(shelf: Shelf, widths: Ints, target: float) -> Ints | None:
    """Widths near these that are worth more, within the target; None where none are found.

    Groups together cost other than the sum of each alone: with what was too much taken off the room, it is tried again.
    """
    options = shelf.options(widths)
    costs, worths = shelf.changes(widths, options)
    spent, best = shelf.cost.at(widths), widths
    for hope in HOPES:
        room = (1 + hope) * target - spent
        for _ in range(TRIES):
            picks = choose(costs, worths, room)
            found = np.array([choices[pick] for choices, pick in zip(options, picks, strict=True)], np.int64)
            if shelf.worth(found) <= shelf.worth(best) * (1 + 1e-9):
                break
            over = shelf.cost.at(found) - target
            if over <= 0:
                best = found
                break
            room -= 1.02 * over
    return None if best is widths else best


def _filled(shelf: Shelf, widths: Ints, target: float) -> Ints:
    """Widths with what is left of the budget spent, one group's move after another, those worth most for it first."""
    found = widths.copy()
    for _ in range(ROUNDS):
        options = shelf.options(found)
        costs, worths = shelf.changes(found, options)
        room, before = target - shelf.cost.at(found), found.copy()
        moves = [
            (gain / max(extra, 1e-9 * target), group, int(choice))
            for group, choices in enumerate(options)
            for choice, extra, gain in zip(choices, costs[group], worths[group], strict=True)
            if gain > 0 and extra <= room
        ]
        for _, group, choice in sorted(moves, reverse=True):
            trial = found.copy()
            trial[group] = choice
            if choice > found[group] and shelf.cost.at(trial) <= target:
                found = trial
        if np.array_equal(before, found):
            break
    return found
