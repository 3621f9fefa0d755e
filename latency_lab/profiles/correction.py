"""From lone kernels to a whole network.

    latency = sum_k (a_g(k) * kernel_ms_k + b + c * min(weight_bytes_k, cached_bytes))
    kernel_ms = hot_ms + cold_share * (cold_ms - hot_ms)

A lone kernel runs again and again: its weights and inputs lie in the cache, and each run pays for a call. Inside of a
network the weights come from memory once a run, inputs were written by other kernels, and the call is paid once. How
much of that a kernel feels depends on what it does, so a is a number for each group of kinds. Weights beyond what a
cache holds come from memory even when the kernel is alone. All are fitted on whole networks that were measured on the
device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from latency_lab.ops import KERNELED, OpConfig

GROUPS = ("window", "pointwise", "depthwise", "other")


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
        c_ms_per_byte: for each byte of weights that a lone kernel has in its cache.
        cold_share: how much of what a kernel takes longer with a flushed cache it takes longer inside of a network
            (0 where cold times were not measured).
        residuals: predicted/measured - 1 of each calibration network, predicted without it (leave one out).
        half_width: half of the relative interval that holds 90 % of networks (conformal on `residuals`).
        cached_bytes: how many of a kernel's weights those are at most; None: all.
    """

    a: Mapping[str, float] = field(default_factory=dict)
    b_ms: float = 0.0
    c_ms_per_byte: float = 0.0
    cold_share: float = 0.0
    residuals: tuple[float, ...] = ()
    half_width: float = 0.0
    cached_bytes: float | None = None

    def per_kernel_ms(
        self, op: OpConfig, kernel_ms: npt.ArrayLike, weight_bytes: npt.ArrayLike
    ) -> npt.NDArray[np.float64]:
        """What a kernel adds to a network, ms; arrays of times and weights give an array."""
        scaled = self.a.get(group_of(op), 1.0) * np.asarray(kernel_ms, np.float64)
        held = held_bytes(weight_bytes, self.cached_bytes)
        return np.asarray(scaled + self.b_ms + self.c_ms_per_byte * held)

    def latency_ms(self, ops: Sequence[OpConfig], kernel_ms: npt.ArrayLike) -> float:
        """Latency of a network of these kernels, ms.

        Args:
            ops: the kernels, [n].
            kernel_ms: their times as `DeviceProfile.predict` gives them, [n].
        """
        times = np.asarray(kernel_ms, np.float64)
        parts = [self.per_kernel_ms(op, ms, op.weight_bytes) for op, ms in zip(ops, times, strict=True)]
        return float(np.sum(parts))


def held_bytes(weight_bytes: npt.ArrayLike, cached_bytes: float | None) -> npt.NDArray[np.float64]:
    """The bytes of weights that a lone kernel has in its cache."""
    found = np.asarray(weight_bytes, np.float64)
    return found if cached_bytes is None else np.minimum(found, cached_bytes)
