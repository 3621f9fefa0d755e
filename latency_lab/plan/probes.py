"""Probes of what a runtime does: the edges of its channel steps, and which operations it merges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from latency_lab.fitting.fusions import split
from latency_lab.ops import ACTIVATIONS, MIXING, OpConfig

PROBES = (4, 8, 12, 15, 16, 17, 20, 24, 31, 32, 33, 36, 48, 63, 64, 65, 68, 80, 96, 97, 100, 112, 127, 128)
CANDIDATES = frozenset(
    f"{kind}+{what}"
    for kind in ("conv2d", "depthwise_conv2d", "dense", "add", "multiply", "batch_norm")
    for what in ACTIVATIONS
) | {"pad+conv2d", "pad+depthwise_conv2d", "conv2d+add", "depthwise_conv2d+add"}
"""Merges that a runtime may do: each that a model could show is timed against its parts once."""


def step_probes(ops: Iterable[OpConfig]) -> Iterator[OpConfig]:
    """Around the edges of likely steps, on the smallest operation of each family that is large enough to time."""
    families: dict[str, list[OpConfig]] = {}
    for op in ops:
        if (op.macs or op.kind in {"add", "batch_norm"}) and not op.residual and op.groups == 1 and op.batch == 1:
            families.setdefault(op.family, []).append(op)
    for family in families.values():
        op = min(family, key=lambda op: abs(np.log(max(op.traffic_bytes, 1) / 200_000)))
        ratio = max(1, op.out_channels // op.in_channels)
        for count in PROBES:
            if op.kind not in MIXING:
                yield op.with_channels(count, count * ratio)
                continue
            yield op.with_channels(op.in_channels, count)
            if op.in_channels > 4:
                yield op.with_channels(count, op.out_channels)


def merge_probes(ops: Iterable[OpConfig]) -> Iterator[OpConfig]:
    """For each rule that an operation may show, both parts of the operation whose second part weighs most."""
    best: dict[str, tuple[float, OpConfig, OpConfig, OpConfig]] = {}
    for op in ops:
        for rule, first, second in split(op):
            weight = second.traffic_bytes / (first.macs + first.traffic_bytes)
            if rule not in best or weight > best[rule][0]:
                best[rule] = (weight, op, first, second)
    for _, op, first, second in best.values():
        yield from (op, first, second)
