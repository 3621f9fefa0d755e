"""From lone kernels to a whole network.

    latency = sum_k (a_g(k) * kernel_ms_k + b) + c * max(0, sum_k warm_k - cached)
    kernel_ms = hot_ms + cold_share * (cold_ms - hot_ms)
    warm_k = once * min(weights_k, alone) of a kernel at one position, else min(weights_k, hot)

A lone kernel runs again and again: its weights and inputs lie in the cache, and each run pays for a call. Inside of a
network inputs were written by other kernels, and the call is paid once. How much of that a kernel feels depends on what
it does, so a is a number for each group of kinds. Of the network's weights a cache keeps some bytes from one run to the
next; the rest come from beyond it in every run. A kernel at many positions goes over its weights again and again, and
finds them close by after the first time; what is more than fits there (hot) it reads from further away, alone as well.
One at one position (dense, squeeze-and-excite) uses each weight once, one
after the other: alone it reads at the speed of the cache that holds them, inside of a network at that of the memory, so
that a weight has a price of its own there. All is fitted on whole networks that were measured on the device. (Profiles
of before have no such price, and take what the cache closest to the core does not hold for paid: alone.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from latency_lab.ops import KERNELED, OpConfig

GROUPS = ("window", "pointwise", "depthwise", "other")
LEAST = 0.1
"""What is left of a_g(k) * kernel_ms_k at least, whatever b takes off."""


def group_of(op: OpConfig) -> str:
    """Which of `GROUPS` a kernel is of: window (k x k), pointwise (1x1, dense), depthwise, other.

    Example:
        >>> from latency_lab.ops import OpConfig
        >>> group_of(OpConfig("conv2d", height=8, width=8, kernel_size=(3, 3)))
        'window'
    """
    if op.kind not in KERNELED:
        return "other"
    if op.kind == "depthwise_conv2d":
        return "depthwise"
    return "window" if max(*op.kernel_size, op.kernel_depth) > 1 else "pointwise"


@dataclass(frozen=True, slots=True)
class NetworkCorrection:
    """The fitted numbers, and how far whole networks were from them.

    Attributes:
        a: group of kinds -> factor on its kernels' times; 1 for a group that is not there.
        b_ms: added for each kernel, ms (negative where a lone kernel pays for a call that a network does not).
        c_ms_per_byte: for each byte of weights that comes from beyond the cache in every run.
        cold_share: how much of what a kernel takes longer with a flushed cache it takes longer inside of a network
            (0 where cold times were not measured).
        residuals: predicted/measured - 1 of each calibration network, predicted without it (leave one out).
        half_width: half of the relative interval that holds 90 % of networks (conformal on `residuals`).
        cached_bytes: of all weights, what the cache keeps from one run to the next.
        alone_bytes: of the weights of a kernel at one position, what a cache keeps when it runs alone; None: all.
        once: what a weight of a kernel at one position costs, in parts of `c_ms_per_byte`.
        hot_bytes: of the weights of a kernel at many positions, what a cache keeps when it runs alone; None: all.
    """

    a: Mapping[str, float] = field(default_factory=dict)
    b_ms: float = 0.0
    c_ms_per_byte: float = 0.0
    cold_share: float = 0.0
    residuals: tuple[float, ...] = ()
    half_width: float = 0.0
    cached_bytes: float = 0.0
    alone_bytes: float | None = None
    once: float = 1.0
    hot_bytes: float | None = None

    def per_kernel_ms(self, op: OpConfig, kernel_ms: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """What a kernel adds to a network, its weights apart, ms; an array of times gives an array."""
        scaled = self.a.get(group_of(op), 1.0) * np.asarray(kernel_ms, np.float64)
        return np.asarray(np.maximum(scaled + self.b_ms, LEAST * scaled))

    def warm_bytes(self, op: OpConfig) -> float:
        """Weights that a kernel found in a cache when it ran alone, in bytes at the price of c."""
        return self.price(op) * min(float(op.weight_bytes), self.most_warm(op))

    def most_warm(self, op: OpConfig) -> float:
        """How many weights a kernel of these positions can find in a cache when it runs alone, bytes; infinity: any.

        Example:
            >>> from latency_lab.ops import OpConfig
            >>> from latency_lab.profiles.correction import NetworkCorrection
            >>> correction = NetworkCorrection(hot_bytes=2e6)
            >>> [correction.most_warm(OpConfig("conv2d", height=size, width=size)) for size in (1, 7)]
            [inf, 2000000.0]
        """
        most = self.alone_bytes if op.output_positions == 1 else self.hot_bytes
        return np.inf if most is None else float(most)

    def price(self, op: OpConfig) -> float:
        """What a weight of a kernel of these positions costs, in parts of c."""
        return self.once if op.output_positions == 1 else 1.0

    def memory_ms(self, warm_bytes: npt.ArrayLike) -> float:
        """What reading a network's weights from memory adds to the times of its kernels, ms.

        Args:
            warm_bytes: of each of its kernels, [n].
        """
        return self.c_ms_per_byte * max(float(np.sum(warm_bytes)) - self.cached_bytes, 0.0)

    def latency_ms(self, ops: Sequence[OpConfig], kernel_ms: npt.ArrayLike) -> float:
        """Latency of a network of these kernels, ms.

        Args:
            ops: the kernels, [n].
            kernel_ms: their times as `DeviceProfile.predict` gives them, [n].
        """
        times = np.asarray(kernel_ms, np.float64)
        parts = [self.per_kernel_ms(op, ms) for op, ms in zip(ops, times, strict=True)]
        return float(np.sum(parts)) + self.memory_ms([self.warm_bytes(op) for op in ops])
