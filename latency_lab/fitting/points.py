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
    (`Runtime.contexts_of`; without a time of that it is left out), or the call, where calls cost much: the time of the
    cheapest.
    """
    runtime, found = runtimes.get(journal.identity["runtime"]), []
    tasks = ((key, task) for key, task in journal.tasks.items() if task.role == "op" and key in journal.blocks)
    lone = {task.network.nodes[0][0]: journal.statistic(key) for key, task in tasks}
    call_ms = min((s.latency_ms for s in lone.values()), default=0.0) if runtime.pays_for_calls else 0.0
    for op, s in lone.items():
        contexts = runtime.contexts_of(op)
        if all(context in lone for context in contexts):
            taken_ms = sum(lone[context].latency_ms for context in contexts) if contexts else call_ms
            found.append(Measured(op, _point(op, s, taken_ms)))
    return found


def _point(op: OpConfig, s: Statistic, less_ms: float) -> Point:
    """With less_ms taken off, but for a small share of what was measured."""
    shortest_ms = max(SHORTEST_MS, LEAST_SHARE * s.latency_ms if less_ms else 0.0)
    latency_ms, high_ms = (max(ms - less_ms, shortest_ms) for ms in (s.latency_ms, s.high_ms))
    low_ms = max(s.low_ms - less_ms, 0.0)
    return Point(op.in_channels, op.out_channels, latency_ms, low_ms, high_ms, s.cold_ms, s.unstable)


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
