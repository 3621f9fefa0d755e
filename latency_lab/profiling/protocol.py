"""How an operation is measured, and what its latency is once it was.

Measured: in rounds, each a new random order of all operations, over several worker processes; a round is one block an
operation. What is unstable after the rounds that all have (`Statistic.unstable`) is measured in more, until it is
stable or has had `extra_rounds`: on a machine that is slowed down now and then, more rounds tell which are not. On
reading:

    latency = lower quartile over rounds of min(wall minimum, 10th percentile of thread CPU time) / slowdown,
              each round counted slowdown**-10 times

and below 1 ms of the wall minimum alone. The slowdown is the machine's at that moment (`drift`), where a journal has
enough blocks to tell: what was measured at a third less than its good speed is less certain, however it is corrected,
since the machine does not slow all alike, nor for a whole moment. Of five rounds at one speed the lower quartile is the
second lowest: what was seen once may be luck, and a minimum falls with the number of rounds, which is not the same for
all. A run that is longer than a scheduler slice may never go through without being preempted, which thread CPU time
does not count. Rounds below a quarter of their median are left out: of a short kernel, whose time is a span less the
profiler's own part, a bad estimate of that part leaves next to nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

WALL_ONLY_BELOW_MS = 1.0
UNSTABLE_WIDTH = 0.10
LEAST_OF_MEDIAN = 0.25
QUARTILE = 0.25
DISTRUST = 10.0
"""Power of the slowdown that a round counts less by: half at 1.07."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """Settings of a measurement.

    Attributes:
        rounds: blocks an operation at least.
        extra_rounds: blocks more at most, of what is unstable after those.
        processes: worker processes that the rounds are spread over.
        block_ms: repeats of a block go on to about this long.
        min_repeats: samples of an operation's block at least.
        network_repeats: samples of a whole network's block at least: it is long, and few of its runs go through without
            being disturbed.
        warm_up: runs before them.
        seed: of the orders.
    """

    rounds: int = 5
    extra_rounds: int = 10
    processes: int = 2
    block_ms: float = 4.0
    min_repeats: int = 3
    network_repeats: int = 8
    warm_up: int = 2
    seed: int = 0

    def settings(self, whole: bool) -> dict[str, Any]:
        """What a worker is told of a block, of a whole network or of a lone operation."""
        repeats = self.network_repeats if whole else self.min_repeats
        return {"block_ms": self.block_ms, "min_repeats": repeats, "warm_up": self.warm_up}

    def process(self, round_: int) -> int:
        """The worker process that a round belongs to, counted from 0; extra rounds have more of them."""
        return round_ * self.processes // self.rounds

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Statistic:
    """What the blocks of one operation say.

    Attributes:
        latency_ms: the protocol's statistic.
        median_ms: median over rounds of the blocks' wall medians.
        low_ms, high_ms: 90 % bootstrap interval of the latency over rounds.
        cold_ms: minimum over rounds with a flushed cache; None where there were none.
        rounds: blocks.
        samples: in all of them.
        unstable: the interval is wider than 10 % of the latency.
    """

    latency_ms: float
    median_ms: float
    low_ms: float
    high_ms: float
    cold_ms: float | None
    rounds: int
    samples: int
    unstable: bool


def block_latency_ms(block: Mapping[str, Any]) -> float:
    """min(wall minimum, 10th percentile of thread CPU time) of one block, ms; wall alone below 1 ms."""
    wall = float(block["wall_ms"]["min"])
    if wall < WALL_ONLY_BELOW_MS or not block.get("cpu_ms"):
        return wall
    return min(wall, float(block["cpu_ms"]["deciles"][0]))


def statistic(blocks: Sequence[Mapping[str, Any]], slowdowns: npt.ArrayLike | None = None) -> Statistic:
    """The statistic of an operation's blocks.

    Args:
        blocks: one a round; at least one.
        slowdowns: how many times as long each took as at the machine's good speed; None: not known, 1.
    """
    slow = np.ones(len(blocks)) if slowdowns is None else np.asarray(slowdowns, np.float64)
    found = np.array([block_latency_ms(block) for block in blocks]) / slow
    kept = found >= LEAST_OF_MEDIAN * np.median(found)
    rounds, trust = found[kept], slow[kept] ** -DISTRUST
    draws = np.random.default_rng(0).integers(0, len(rounds), (200, len(rounds)))
    low, high = np.percentile(quantile(rounds[draws], trust[draws], QUARTILE), [5, 95])
    latency = float(quantile(rounds, trust, QUARTILE))
    cold = [block["cold_ms"]["min"] / s for block, s in zip(blocks, slow, strict=True) if block.get("cold_ms")]
    return Statistic(
        latency_ms=latency,
        median_ms=float(np.median([block["wall_ms"]["median"] for block in blocks] / slow)),
        low_ms=float(low),
        high_ms=float(high),
        cold_ms=float(np.median(cold)) if cold else None,
        rounds=len(found),
        samples=sum(int(block["count"]) for block in blocks),
        unstable=bool(high - low > UNSTABLE_WIDTH * latency),
    )


def quantile(values: Floats, weights: Floats, share: float) -> Floats:
    """The least value that, with all below it, has this share of the weight, [...]: the inverse of the distribution.

    Args:
        values: [..., n].
        weights: of each, positive, [..., n].
        share: from 0 to 1.
    """
    order = np.argsort(values, axis=-1)
    below = np.cumsum(np.take_along_axis(weights, order, axis=-1), axis=-1)
    first = np.argmax(below >= share * below[..., -1:], axis=-1)
    chosen = np.take_along_axis(order, first[..., None], axis=-1)
    return np.asarray(np.take_along_axis(values, chosen, axis=-1)[..., 0])


def ratio_interval(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> tuple[float, float, float]:
    """(ratio, low, high) of two models' latencies from interleaved rounds; 95 % bootstrap over rounds.

    Args:
        ours, theirs: a block a round, the same number of both, round i of one beside round i of the other.
    """
    a = np.array([block_latency_ms(block) for block in ours])
    b = np.array([block_latency_ms(block) for block in theirs])
    draws = np.random.default_rng(0).integers(0, len(a), (1000, len(a)))
    over, under = (np.quantile(times[draws], QUARTILE, axis=1) for times in (a, b))
    low, high = np.percentile(over / under, [2.5, 97.5])
    paired = np.percentile(a / b, [10, 90])
    ratio = float(np.quantile(a, QUARTILE) / np.quantile(b, QUARTILE))
    return ratio, float(min(low, paired[0])), float(max(high, paired[1]))
