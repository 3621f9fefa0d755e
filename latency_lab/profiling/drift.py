"""How much slower a machine was from one moment to the next, found in the blocks that were measured then.

    log latency_i = operation_k(i) + moment_w(i) + rest_i

A machine that is shared, or warm, does not hold its speed. Each round measures every operation again, in a new order:
what the operations of one moment have in common is the machine's, and not theirs. Each of the two is the median of what
the other leaves (median polish: J. W. Tukey, "Exploratory Data Analysis", 1977), which a few disturbed blocks do not
move.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOMENT_BLOCKS = 20
"""Blocks of a moment: a second or two, and of runtimes that compile for long ten."""
GOOD = 25
"""The percentile of all moments, by blocks, that is the machine's good speed."""
LEAST_MS = 1e-6
"""What stands for a time of nothing, which a coarse clock may say."""
PASSES = 30
CLOSE = 1e-4


def slowdowns(operations: Sequence[str], boards: Sequence[str], latency_ms: npt.ArrayLike) -> Floats:
    """How many times as long each block took as it would have at the machine's good speed.

    Args:
        operations: what was measured, [n], in the order of measuring.
        boards: on which board; each has moments of its own.
        latency_ms: of the blocks, [n].

    Returns:
        [n]; 1 for all where there are too few blocks to tell moments apart.

    Example:
        >>> from latency_lab.profiling.drift import slowdowns
        >>> names = [f"op {i}" for i in range(60)] * 4
        >>> slowdowns(names, [""] * 240, [1.0] * 180 + [1.5] * 60)[[0, 239]].tolist()
        [1.0, 1.5]
    """
    if not len(operations):
        return np.ones(0)
    log = np.log(np.maximum(np.asarray(latency_ms, np.float64), LEAST_MS))
    operation, moment = _numbered(operations), _moments(boards)
    of_moment = np.zeros(moment.max() + 1)
    for _ in range(PASSES):
        of_operation = _medians(log - of_moment[moment], operation)
        found = _medians(log - of_operation[operation], moment)
        moved = float(np.abs(found - of_moment).max())
        of_moment = found
        if moved < CLOSE:
            break
    slow = of_moment[moment]
    return np.asarray(np.exp(slow - np.percentile(slow, GOOD, method="lower")))


def _numbered(names: Sequence[str]) -> Ints:
    return np.unique(np.asarray(names), return_inverse=True)[1]


def _moments(boards: Sequence[str]) -> Ints:
    """A number for each block: that of the moment it was measured in."""
    board = _numbered(boards)
    found, begun = np.zeros(len(board), np.int64), 0
    for number in range(board.max() + 1):
        rows = np.flatnonzero(board == number)
        count = max(1, len(rows) // MOMENT_BLOCKS)
        found[rows] = begun + np.arange(len(rows)) * count // len(rows)
        begun += count
    return found


def _medians(values: Floats, groups: Ints) -> Floats:
    """The median of each group's values; groups are numbered from 0 without a gap."""
    ordered = values[np.lexsort((values, groups))]
    ends = np.cumsum(np.bincount(groups))
    starts = np.concatenate([[0], ends[:-1]])
    return np.asarray((ordered[(starts + ends - 1) // 2] + ordered[(starts + ends) // 2]) / 2)
