"""What is to be measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from latency_lab.errors import UsageError
from latency_lab.ops import Network, OpConfig

ROLES = ("op", "fusion", "network")
_NARROWEST = ("int8", "float16", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to measure.

    Attributes:
        network: of operations; one node for a lone operation.
        role: "op" (one point of a table), "fusion" (a pair that may be one kernel: its kernels are timed, as of a lone
            operation), "network" (a whole call).
        cold: measure with a flushed cache, too.
    """

    network: Network
    role: str = "op"
    cold: bool = False

    @property
    def key(self) -> str:
        """Names the task in a journal."""
        return self.network.key if self.role == "op" else f"{self.role}: {self.network.key}"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"role": self.role, "cold": self.cold, "network": self.network.to_json()}


def tasks_of(items: Iterable[OpConfig | Network | Task]) -> tuple[Task, ...]:
    """Tasks of operations, networks or tasks, each key once, in order.

    Raises:
        UsageError: an item is none of these, or there are none.
    """
    found: dict[str, Task] = {}
    for item in items:
        if isinstance(item, OpConfig):
            task = Task(Network.of(item))
        elif isinstance(item, Network):
            task = Task(item, "network" if len(item.nodes) > 1 else "op")
        elif isinstance(item, Task):
            task = item
        else:
            raise UsageError(f"Expected operations, networks or tasks to measure. Received: {item!r}")
        found.setdefault(task.key, task)
    if not found:
        raise UsageError("There is nothing to measure: the list of operations is empty.")
    return tuple(found.values())


def precision_of(tasks: Iterable[Task]) -> str:
    """What a profile of these tasks is of: the narrowest type that any operation has (a model's edges may be float32).

    Args:
        tasks: at least one.

    Example:
        >>> ops = [OpConfig("dense", dtype=dtype) for dtype in ("float32", "float16")]
        >>> precision_of([Task(Network.of(op)) for op in ops])
        'float16'
    """
    found = {op.dtype for task in tasks for op, _ in task.network.nodes}
    return min(found, key=_NARROWEST.index)
