"""Which operations the runtime merges: seen by timing the pair as one against its two parts.

The pair is merged where it costs less than the first part and half of the second. Each lone operation pays for a call
that a pair pays once, so the call is taken off first; where what is left of the second part is small beside the first,
or beside the noise, the measurement refuses to decide.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Sequence

import numpy as np

from latency_lab.fitting.points import Measured
from latency_lab.ops import OpConfig
from latency_lab.profiles import Point

_log = logging.getLogger(__name__)

MIN_SHARE = 0.05
NOISES = 3.0


def split(op: OpConfig) -> list[tuple[str, OpConfig, OpConfig]]:
    """(rule, first part or what is left of it, second part) for each way in which an operation may be a merged one.

    Example:
        >>> from latency_lab.ops import OpConfig
        >>> conv = OpConfig("conv2d", height=8, width=8, in_channels=4, out_channels=8, activation="relu")
        >>> [(rule, second.kind) for rule, _, second in split(conv)]
        [('conv2d+relu', 'activation')]
    """
    found = []
    out = OpConfig(
        "activation",
        op.batch,
        op.output_height,
        op.output_width,
        op.out_channels,
        op.out_channels,
        activation="relu",
        dtype=op.dtype,
    )
    if op.activation is not None and op.kind != "activation" and not op.residual:
        part = dataclasses.replace(out, activation=op.activation)
        found.append((f"{op.kind}+{op.activation}", dataclasses.replace(op, activation=None), part))
    if op.residual:
        add = dataclasses.replace(out, kind="add", activation=op.activation, operands=2)
        found.append((f"{op.kind}+add", dataclasses.replace(op, residual=False, activation=None), add))
    if isinstance(op.padding, tuple) and op.kind != "pad" and op.pads != ((0, 0), (0, 0)):
        pad = dataclasses.replace(
            out, kind="pad", height=op.height, width=op.width, activation=None, padding=op.padding
        )
        pad = pad.with_channels(op.in_channels, op.in_channels)
        rest = dataclasses.replace(op, height=pad.output_height, width=pad.output_width, padding="valid")
        found.append((f"pad+{op.kind}", rest, pad))
    return found


def find_fusions(
    measured: Sequence[Measured], conversion: Collection[str], expected: Collection[str]
) -> frozenset[str]:
    """The rules that hold: of conversion, of what the runtime is known to do, and of measurement.

    Args:
        measured: operations, merged ones and their parts among them.
        conversion: rules of the converter, which hold whatever the runtime does.
        expected: rules that the runtime is known to follow. They stand even where merging saves nothing (an activation
            may be a pass of its own inside of one kernel): a merged operation is timed as a whole in any case.
    """
    points = {m.op.key: m.point for m in measured}
    call_ms = min((m.point.latency_ms for m in measured), default=0.0)
    votes: dict[str, list[bool]] = {}
    for m in measured:
        for rule, first, second in split(m.op):
            if first.key in points and second.key in points:
                verdict = _merged(m.point, points[first.key], points[second.key], call_ms)
                if verdict is not None:
                    votes.setdefault(rule, []).append(verdict)
    seen = {rule for rule, verdicts in votes.items() if float(np.mean(verdicts)) > 0.5}
    _log.info("fusions seen: %s; seen not to save: %s", sorted(seen), sorted(set(votes) - seen))
    return frozenset(conversion) | frozenset(expected) | seen


def _merged(both: Point, first: Point, second: Point, call_ms: float) -> bool | None:
    """Whether `both` is cheaper than its parts one after the other; None where noise could decide it."""
    noise = (both.high_ms - both.low_ms) + (first.high_ms - first.low_ms)
    rest = second.latency_ms - call_ms
    if rest < max(NOISES * noise, MIN_SHARE * first.latency_ms, call_ms):
        return None
    return both.latency_ms < first.latency_ms + 0.5 * rest
