"""What a network costs on a device: the number, its interval, and what it stands on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OpEstimate:
    """One kernel's share.

    Attributes:
        name: of the layers that the runtime merges into it.
        kind: of its main op.
        latency_ms: before the whole-network correction.
        source: "measured", "predicted", "extrapolated", "bounded" or "analytic".
    """

    name: str
    kind: str
    latency_ms: float
    source: str


@dataclass(frozen=True)
class Estimate:
    """A network's latency.

    Attributes:
        latency_ms: the prediction.
        interval_ms: (low, high).
        interval_kind: what the interval is.
        ops: each kernel's share.
        uncovered: what was not measured, with the reason.
        profile: name of the device profile.

    Example:
        >>> from latency_lab.cost.estimate import Estimate, OpEstimate
        >>> op = OpEstimate("conv", "conv2d", 1.5, "measured")
        >>> print(Estimate(1.25, (1.2, 1.3), "conformal over whole networks, 90 %", (op,), (), "pi4"))
        1.25 ms [1.20, 1.30]; 1 of 1 kernels measured
    """

    latency_ms: float
    interval_ms: tuple[float, float]
    interval_kind: str
    ops: tuple[OpEstimate, ...]
    uncovered: tuple[str, ...]
    profile: str

    @property
    def coverage(self) -> dict[str, Any]:
        """How many kernels come from where, and what is not covered."""
        counts = Counter(op.source for op in self.ops)
        known = ("measured", "predicted", "extrapolated", "bounded", "analytic")
        return {"ops": len(self.ops), **{name: counts[name] for name in known}, "uncovered": list(self.uncovered)}

    def __str__(self) -> str:
        counts = Counter(op.source for op in self.ops)
        other = ("predicted", "extrapolated", "bounded", "analytic")
        known = [f"{counts[name]} {name}" for name in other if counts[name]]
        places = max(0, 2 - len(f"{self.latency_ms:.0f}") + 1) if self.latency_ms >= 1 else 4
        low, high = self.interval_ms
        numbers = f"{self.latency_ms:.{places}f} ms [{low:.{places}f}, {high:.{places}f}]"
        first = ", ".join([f"{numbers}; {counts['measured']} of {len(self.ops)} kernels measured", *known])
        return "\n".join([first, *(f"  not covered: {line}" for line in self.uncovered)])

    def to_json(self) -> dict[str, Any]:
        """JSON values: latency_ms, interval_ms, interval_kind, coverage, ops, profile."""
        return {
            "latency_ms": self.latency_ms,
            "interval_ms": list(self.interval_ms),
            "interval_kind": self.interval_kind,
            "coverage": self.coverage,
            "ops": [vars(op) for op in self.ops],
            "profile": self.profile,
        }
