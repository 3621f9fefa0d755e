"""Which runtimes work on a device, and what makes timing unsteady, with what to do about it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latency_lab import runtimes
from latency_lab.errors import LatencyLabError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling.devices import Device, device
from latency_lab.profiling.environment import IN_A_ROW, samples
from latency_lab.profiling.transport import Worker, WorkerDiedError

BUSY_SHARE = 0.5
LOST_SHARE = 0.10
SPREAD = 1.25
SAMPLES = 50 * IN_A_ROW
"""Five seconds in all: a neighbour of a virtual machine, or a clock that steps, is at work for less and for more than a
tenth of a second at a time."""
HOT_C = 80.0


@dataclass(frozen=True, slots=True)
class RuntimeCheck:
    """Whether a runtime builds and runs an operation there; `detail` is its package and version, or what to do.

    One that runs no operation by itself works where it starts, and `detail` says that nothing was run.
    """

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
    def trusted(self) -> bool:
        """Whether a measurement would be: a runtime works, and timing is steady."""
        return self.steady and any(check.works for check in self.runtimes)

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


def doctor(
    clock: Any = None,
    start_worker: Callable[[str], Worker] | None = None,
    on: str | Device = "local",
    names: Sequence[str] = (),
) -> Doctor:
    """Looks at a device: tries each runtime, and times a fixed piece of work.

    Args:
        clock: has `wall()` and `cpu()` in seconds; the device's own by default.
        start_worker: starts the worker of a runtime by name, in place of the device.
        on: the device: "local", "ssh://user@host:port", "adb://serial", or what `device` gives.
        names: of the runtimes to try, "onnxruntime:openvino" say; by default those that may be there.

    Raises:
        DeviceLostError: the device cannot be reached.
        UsageError: there is no runtime of a name.
    """
    where = device(on)
    names = [runtimes.get(name).name for name in names or where.runtimes]
    start = start_worker or (lambda name: where.start(name, 1))
    seen = where.probe(0 if clock else SAMPLES)
    who, now = seen["identity"], seen["conditions"]
    found = timing_warnings(clock) if clock else spread_warnings(seen["wall_s"], seen["cpu_s"])
    checks = tuple(_check(name, start, who["cores"]) for name in names)
    return Doctor(checks, (*standing_warnings(who, now), *found), {**who, **now})


def standing_warnings(who: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What load, governor, quota, cores and temperature say."""
    found = []
    cores, load, governor, quota = who["cores"], now["load"], who["governor"], who["quota_cores"]
    degrees = now.get("temperature_c")
    if degrees is not None and degrees > HOT_C:
        found.append(
            f"The hottest sensor reads {degrees:.0f} degrees C: processors slow down when they are hot. "
            "Let it cool, or add a heat sink or a fan."
        )
    if load is not None and load > BUSY_SHARE * cores:
        found.append(
            f"The load is {load:.2f} on {cores} cores: something else is running. Stop it, or profile in more --rounds."
        )
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
        found.append(
            "There is one core: this program and the worker share it. Expect a wider interval, or profile in more "
            "--rounds."
        )
    return found


def timing_warnings(clock: Any) -> list[str]:
    """What a fixed piece of work says that is timed `SAMPLES` times."""
    return spread_warnings(*samples(clock.wall, clock.cpu, SAMPLES))


def spread_warnings(wall_s: Sequence[float], cpu_s: Sequence[float]) -> list[str]:
    """What wall and CPU seconds of equal pieces of work say; nothing where there are none."""
    wall, cpu = np.array(wall_s), np.array(cpu_s)
    if not wall.sum() or not cpu.all():
        return []
    found = []
    lost = 1 - float(cpu.sum() / wall.sum())
    if lost > LOST_SHARE:
        found.append(
            f"The CPU was taken away for {lost:.0%} of the time, in {len(wall)} samples of "
            f"{np.median(wall) * 1e3:.2f} ms. "
            "Stop other programs on this machine (and its neighbours, if it is virtual), or profile in more --rounds."
        )
    moments = cpu[: len(cpu) // IN_A_ROW * IN_A_ROW].reshape(-1, IN_A_ROW).min(axis=1)
    spread = float(np.percentile(moments, 90) / moments.min()) if len(moments) else 1.0
    if spread > SPREAD:
        found.append(
            f"The same work took {spread:.2f} times as long in one moment of ten as in the best: the clock or the "
            "memory is shared or throttled. Let the machine cool, fix its clock, or profile in more --rounds."
        )
    return found


def _check(name: str, start: Callable[[str], Worker], cores: int) -> RuntimeCheck:
    op = OpConfig("conv2d", height=4, width=4, in_channels=4, out_channels=4)
    if runtimes.get(name).reason_unsupported(op):
        op = dataclasses.replace(op, dtype="int8")
    reason = runtimes.get(name).reason_unsupported(op)
    try:
        worker = start(name)
    except LatencyLabError as error:
        return RuntimeCheck(name, False, str(error))
    try:
        if not reason:
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
    there = hello.get("device") or f"{cores} cores"
    untried = f"; nothing was run: {reason}" if reason else ""
    return RuntimeCheck(name, True, f"{hello.get('package')} {hello.get('version')}, {there}{untried}")
