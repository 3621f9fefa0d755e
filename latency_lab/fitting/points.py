"""The measured points of a journal, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from latency_lab import runtimes
from latency_lab.ops import OpConfig
from latency_lab.profiles import LookupTable, Point
from latency_lab.profiling import Journal
from latency_lab.profiling.protocol import Statistic

SHORTEST_MS = 3e-4
"""What is shorter cannot be told from nothing."""
LEAST_SHARE = 0.02
"""Of what was measured with a call or a context: what is less cannot be told from these."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One lone operation that was measured."""

    op: OpConfig
    point: Point


def measured_ops(journal: Journal) -> list[Measured]:
    """Every lone operation of a journal that has at least one block, in order.

    What the operation does not do itself is taken off its time: the context that its model has, if it has one
    (`Runtime.context_of`; without a time of that it is left out), or the call, where calls cost much.
    """
    runtime, lone, found = runtimes.get(journal.identity["runtime"]), _lone(journal), []
    call = call_ms(journal)
    for op, key in lone.items():
        context = runtime.context_of(op)
        if context is None or context in lone:
            less_ms = call if context is None else journal.statistic(lone[context]).latency_ms
            found.append(Measured(op, _point(op, journal.statistic(key), less_ms)))
    return found


def call_ms(journal: Journal) -> float:
    """What each lone operation pays for its call, ms: the time of the cheapest; 0 where calls cost next to nothing."""
    if not runtimes.get(journal.identity["runtime"]).pays_for_calls:
        return 0.0
    return min((journal.statistic(key).latency_ms for key in _lone(journal).values()), default=0.0)


def _point(op: OpConfig, s: Statistic, less_ms: float) -> Point:
    """With less_ms taken off, but for a small share of what was measured."""
    shortest_ms = max(SHORTEST_MS, LEAST_SHARE * s.latency_ms if less_ms else 0.0)
    latency_ms, high_ms = (max(ms - less_ms, shortest_ms) for ms in (s.latency_ms, s.high_ms))
    low_ms = max(s.low_ms - less_ms, 0.0)
    return Point(op.in_channels, op.out_channels, latency_ms, low_ms, high_ms, s.cold_ms, s.unstable)


def _lone(journal: Journal) -> dict[OpConfig, str]:
    """Lone operations that were measured, and their keys."""
    tasks = ((key, task) for key, task in journal.tasks.items() if task.role == "op" and key in journal.blocks)
    return {task.network.nodes[0][0]: key for key, task in tasks}


def tables_of(measured: Iterable[Measured]) -> dict[str, LookupTable]:
    """Static key -> its points, by channels."""
    grouped: dict[str, list[Measured]] = {}
    for item in measured:
        grouped.setdefault(item.op.static_key, []).append(item)
    return {
        key: LookupTable(
            items[0].op,
            {
                (m.op.in_channels, m.op.out_channels): m.point
                for m in sorted(items, key=lambda m: (m.op.in_channels, m.op.out_channels))
            },
        )
        for key, items in sorted(grouped.items())
    }
