"""From lone kernels to a whole network.

    latency = a * sum(kernel_ms) + b * n_kernels + c * sum(max(0, bytes - cache_bytes))
    kernel_ms = hot_ms + cold_share * (cold_ms - hot_ms)

A lone kernel runs with a warm cache and pays for its own call; inside of a network caches are colder and the call is
paid once. The four numbers are fitted on whole networks that were measured on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latency_lab.ops import OpConfig


@dataclass(frozen=True, slots=True)
class NetworkCorrection:
    """The fitted numbers, and how far whole networks were from them.

    Attributes:
        a: factor on the sum of the kernels' times.
        b_ms: added for each kernel, ms (negative where a lone kernel pays for a call that a network does not).
        c_ms_per_byte: for each byte that a kernel moves beyond `cache_bytes`.
        cold_share: how much of what a kernel takes longer with a flushed cache it takes longer inside of a network
            (0 where cold times were not measured).
        cache_bytes: size of the cache that a kernel's tensors may stay in.
        residuals: predicted/measured - 1 of each calibration network, predicted without it (leave one out).
        half_width: half of the relative interval that holds 90 % of networks (conformal on `residuals`).
    """

    a: float = 1.0
    b_ms: float = 0.0
    c_ms_per_byte: float = 0.0
    cold_share: float = 0.0
    cache_bytes: int = 0
    residuals: tuple[float, ...] = ()
    half_width: float = 0.0

    def latency_ms(self, ops: Sequence[OpConfig], kernel_ms: npt.ArrayLike) -> float:
        """Latency of a network of these kernels, ms.

        Args:
            ops: the kernels, [n].
            kernel_ms: their times as `DeviceProfile.predict` gives them, [n].
        """
        beyond = sum(max(0, op.traffic_bytes - self.cache_bytes) for op in ops)
        total = float(np.sum(np.asarray(kernel_ms, np.float64)))
        return self.a * total + self.b_ms * len(ops) + self.c_ms_per_byte * beyond
