"""Which operations and networks to measure for a profile: of a model's sweep, or of networks in general."""

from __future__ import annotations

from collections.abc import Sequence

from latency_lab.graph import ChannelGraph
from latency_lab.plan.general import general_plan, refinement
from latency_lab.plan.model import model_plan, sweep
from latency_lab.plan.passes import measure_in_general
from latency_lab.profiling import Task

__all__ = ["general_plan", "measure_in_general", "model_plan", "plan", "refinement", "sweep"]


def plan(graphs: Sequence[ChannelGraph], runtime: str, precision: str = "float32") -> tuple[Task, ...]:
    """What to measure for these models on one runtime; the general plan where there are none.

    Args:
        graphs: of the models.
        runtime: one of `runtimes.NAMES`.
        precision: "float32" or "int8".
    """
    return model_plan(graphs, runtime, precision) if graphs else general_plan(runtime, precision)
