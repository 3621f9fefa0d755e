"""The roofline: an operation takes at least its work over the peak and its bytes over the bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from latency_lab.ops import OpConfig


@dataclass(frozen=True, slots=True)
class Roofline:
    """Peak and bandwidth of a device.

    Attributes:
        peak_gflops: 1e9 floating point operations a second.
        bandwidth_gb_s: 1e9 bytes a second.

    Source: S. Williams, A. Waterman, D. Patterson, "Roofline", CACM 52(4), 2009.
    """

    peak_gflops: float
    bandwidth_gb_s: float

    def latency_ms(self, op: OpConfig) -> float:
        """max(FLOPs / peak, bytes / bandwidth) in ms: a lower bound that leaves nothing uncharged.

        Example:
            >>> from latency_lab.ops import OpConfig
            >>> op = OpConfig("dense", in_channels=1000, out_channels=1000, use_bias=False)
            >>> round(Roofline(peak_gflops=100.0, bandwidth_gb_s=10.0).latency_ms(op), 4)
            0.4008
        """
        return max(2 * op.macs / self.peak_gflops, op.traffic_bytes / self.bandwidth_gb_s) * 1e-6
