"""Which runtimes work here, and what makes timing unsteady, with what to do about it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latency_lab import runtimes
from latency_lab.errors import LatencyLabError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling.environment import available_cores, conditions, identity
from latency_lab.profiling.transport import LocalWorker, WorkerDiedError
from latency_lab.runtimes.worker import Clock

BUSY_SHARE = 0.5
LOST_SHARE = 0.10
SPREAD = 1.25
SAMPLES = 60


@dataclass(frozen=True, slots=True)
class RuntimeCheck:
    """Whether a runtime builds and runs an operation here; `detail` is its package and version, or what to do."""

    name: str
    works: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Doctor:
    """What was seen.

    Attributes:
        runtimes: a check each.
        warnings: what makes timing unsteady: what was seen with numbers, then what to do.
        environment: identity and conditions.
    """

    runtimes: tuple[RuntimeCheck, ...]
    warnings: tuple[str, ...]
    environment: Mapping[str, Any]

    @property
    def steady(self) -> bool:
        """Whether nothing was seen that makes timing unsteady."""
        return not self.warnings

    def to_json(self) -> dict[str, Any]:
        """runtimes, steady, warnings, environment."""
        return {
            "runtimes": [{"name": r.name, "works": r.works, "detail": r.detail} for r in self.runtimes],
            "steady": self.steady,
            "warnings": list(self.warnings),
            "environment": dict(self.environment),
        }

    def __str__(self) -> str:
        lines = ["Runtimes:"]
        lines += [f"  {r.name}: {'works' if r.works else 'does not work'}: {r.detail}" for r in self.runtimes]
        lines += ["Timing:"]
        lines += [f"  * {warning}" for warning in self.warnings] or ["  steady, as far as can be seen"]
        return "\n".join(lines)


def doctor(clock: Any = None, start_worker: Callable[[str], LocalWorker] | None = None) -> Doctor:
    """Looks at this machine: tries each runtime, and times a fixed piece of work.

    Args:
        clock: has `wall()` and `cpu()` in seconds; the machine's own by default.
        start_worker: starts the worker of a runtime by name.
    """
    start = start_worker or (lambda name: LocalWorker(name, 1))
    who, now = identity(), conditions()
    warnings = [*standing_warnings(who, now), *timing_warnings(clock or Clock())]
    return Doctor(tuple(_check(name, start) for name in runtimes.NAMES), tuple(warnings), {**who, **now})


def standing_warnings(who: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What load, governor, quota and cores say."""
    found = []
    cores, load, governor, quota = who["cores"], now["load"], who["governor"], who["quota_cores"]
    if load is not None and load > BUSY_SHARE * cores:
        found.append(f"The load is {load:.2f} on {cores} cores: something else is running. Stop it, or add --rounds.")
    if governor not in {None, "performance"}:
        found.append(
            f"The CPU governor is {governor!r}, which changes the clock under way. "
            "Run: sudo cpupower frequency-set -g performance"
        )
    if quota is not None and quota < cores:
        found.append(
            f"A quota allows {quota:g} of {cores} cores: a run may be held up in the middle. "
            "Lift the container's CPU limit, or use --threads 1."
        )
    if cores < 2:
        found.append("There is one core: this program and the worker share it. Expect a wider interval; add --rounds.")
    return found


def timing_warnings(clock: Any) -> list[str]:
    """What a fixed piece of work says that is timed `SAMPLES` times."""
    block = np.random.default_rng(0).normal(size=(160, 160))
    wall, cpu = np.zeros(SAMPLES), np.zeros(SAMPLES)
    for i in range(-5, SAMPLES):
        cpu_start, start = clock.cpu(), clock.wall()
        for _ in range(3):
            np.sort(block, axis=1)
        wall[max(i, 0)], cpu[max(i, 0)] = clock.wall() - start, clock.cpu() - cpu_start
    found = []
    lost = 1 - float(cpu.sum() / wall.sum())
    if lost > LOST_SHARE:
        found.append(
            f"The CPU was taken away for {lost:.0%} of the time, in {SAMPLES} samples of "
            f"{np.median(wall) * 1e3:.2f} ms. "
            "Stop other programs on this machine (and its neighbours, if it is virtual), or add --rounds."
        )
    spread = float(np.percentile(cpu, 90) / cpu.min())
    if spread > SPREAD:
        found.append(
            f"The same work took {spread:.2f} times as long at the 90th percentile as at best: the clock or the memory "
            "is shared or throttled. Let the machine cool, fix its clock, or add --rounds."
        )
    return found


def _check(name: str, start: Callable[[str], LocalWorker]) -> RuntimeCheck:
    op = OpConfig("conv2d", height=4, width=4, in_channels=4, out_channels=4)
    try:
        worker = start(name)
    except LatencyLabError as error:
        return RuntimeCheck(name, False, str(error))
    try:
        with tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
            path = Path(folder) / f"model{runtimes.get(name).suffix}"
            path.write_bytes(runtimes.get(name).build(Network.of(op)))
            found = worker.block(str(path), {})
        if found["status"] != "ok":
            return RuntimeCheck(name, False, str(found["reason"]))
    except (LatencyLabError, WorkerDiedError) as error:
        return RuntimeCheck(name, False, str(error))
    finally:
        worker.close()
    hello = worker.hello
    return RuntimeCheck(name, True, f"{hello.get('package')} {hello.get('version')}, {available_cores()} cores")
