"""What a network of given widths costs: latency on a device, FLOPs, parameters, activation memory, and combinations."""

from __future__ import annotations

from latency_lab.cost.base import Cost, OpCost, worst_of
from latency_lab.cost.counts import ActivationMemoryCost, FlopsCost, ParamsCost
from latency_lab.cost.estimate import Estimate, OpEstimate
from latency_lab.cost.latency import LatencyCost
from latency_lab.cost.linearised import linearised_loss, linearised_per_op

__all__ = [
    "ActivationMemoryCost",
    "Cost",
    "Estimate",
    "FlopsCost",
    "LatencyCost",
    "OpCost",
    "OpEstimate",
    "ParamsCost",
    "linearised_loss",
    "linearised_per_op",
    "worst_of",
]
