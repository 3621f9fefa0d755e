"""The measured points of a journal, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from latency_lab.ops import OpConfig
from latency_lab.profiles import LookupTable, Point
from latency_lab.profiling import Journal

SHORTEST_MS = 3e-4
"""What is shorter cannot be told from nothing."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One lone operation that was measured."""

    op: OpConfig
    point: Point


def measured_ops(journal: Journal) -> list[Measured]:
    """Every lone operation of a journal that has at least one block, in order."""
    found = []
    for key, task in journal.tasks.items():
        if task.role == "op" and key in journal.blocks:
            op = task.network.nodes[0][0]
            s = journal.statistic(key)
            latency_ms = max(s.latency_ms, SHORTEST_MS)
            high_ms = max(s.high_ms, SHORTEST_MS)
            point = Point(op.in_channels, op.out_channels, latency_ms, s.low_ms, high_ms, s.cold_ms, s.unstable)
            found.append(Measured(op, point))
    return found


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
