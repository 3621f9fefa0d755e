"""Random widths for a network: what a pruned one may look like, with even and with uneven channel counts."""

from __future__ import annotations

import numpy as np

from latency_lab.graph import ChannelGraph
from latency_lab.structure import Structure

LOW, HIGH = 0.3, 1.0
"""Fractions of a group's channels that a narrowed network keeps."""
MULTIPLE = 8


def narrow(graph: ChannelGraph, random: np.random.Generator, odd: bool) -> Structure:
    """Which channels stay: a random fraction of each group, and random ones of it.

    Args:
        graph: of the whole network.
        random: what is drawn from, groups in the graph's order.
        odd: leave the widths as they fall; else the nearest multiple of 8, at least one, where the group has so many.
    """
    kept = {}
    for group in graph.groups:
        wanted = random.uniform(LOW, HIGH) * group.size
        width = max(round(wanted), 1) if odd else min(max(round(wanted / MULTIPLE), 1) * MULTIPLE, group.size)
        kept[group.name] = tuple(sorted(random.choice(group.size, width, replace=False).tolist()))
    return Structure(kept, {group.name: group.size for group in graph.groups}, graph.digest)
