"""Where a measurement is taken: what must stay the same (identity), and what is noted each round (conditions).

The standard library alone, Python 3.9 syntax: on a device that is elsewhere this file is run as a program, which prints
one JSON object: {"identity": {...}, "conditions": {...}, "wall_s": [...], "cpu_s": [...]}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WARM_UP = 5
IN_A_ROW = 3
REST_S = 0.1
"""Between the moments at which samples are taken, a few in a row at each."""
_CPU = Path("/sys/devices/system/cpu/cpu0")


def identity() -> dict[str, Any]:
    """What makes two measurements comparable: CPU model, cores, governor, quota, caches, system."""
    return {
        "cpu": cpu_model(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": available_cores(),
        "governor": _read(_CPU / "cpufreq/scaling_governor"),
        "quota_cores": quota_cores(),
        "cache_bytes": cache_bytes(),
    }


def conditions() -> dict[str, Any]:
    """What may change from one round to the next: load, clock, temperature, time."""
    megahertz = [float(line.split(":")[1]) for line in _lines("/proc/cpuinfo") if line.startswith("cpu MHz")]
    zones = [_read(path / "temp") for path in sorted(Path("/sys/class/thermal").glob("thermal_zone*"))]
    degrees = [int(text) / 1000 for text in zones if text and text.lstrip("-").isdigit()]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "clock_mhz": max(megahertz, default=None),
        "temperature_c": max(degrees, default=None),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each value in which two identities differ."""
    return [f"{name}: {then.get(name)!r} there, {now.get(name)!r} here" for name in differing(then, now)]


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the values in which two identities differ."""
    names = [*then, *(name for name in now if name not in then)]
    return [name for name in names if then.get(name) != now.get(name)]


def cpu_model() -> str:
    """The processor's name."""
    for line in _lines("/proc/cpuinfo"):
        if line.lower().startswith(("model name", "hardware", "cpu model")):
            return line.split(":", 1)[1].strip()
    board = _read(Path("/proc/device-tree/model"))
    return board.rstrip("\0") if board else platform.processor() or "unknown"


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota_cores() -> float | None:
    """Cores that a container's quota allows; None where there is none."""
    words = (_read(Path("/sys/fs/cgroup/cpu.max")) or "max").split()
    if len(words) == 2 and words[0] != "max":
        return int(words[0]) / int(words[1])
    quota = _read(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
    period = _read(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def cache_bytes() -> dict[str, int]:
    """Sizes of the data caches of the first core: {"L1": ..., "L2": ..., "L3": ...}."""
    found = {}
    for index in sorted((_CPU / "cache").glob("index*")):
        size, level, kind = _read(index / "size"), _read(index / "level"), _read(index / "type")
        if size and level and kind != "Instruction":
            found[f"L{level}"] = int(size.rstrip("KMG")) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1], 1)
    return found


def samples(
    wall: Callable[[], float], cpu: Callable[[], float], count: int, rest: Callable[[], None] = lambda: None
) -> tuple[list[float], list[float]]:
    """A fixed piece of work, timed again and again after a warm-up, a few times in a row at each of many moments.

    Args:
        wall, cpu: clocks, seconds.
        count: samples; `IN_A_ROW` of them follow on one another.
        rest: called before each moment.

    Returns:
        Wall and CPU seconds of each.
    """
    generator = random.Random(0)
    work = [generator.random() for _ in range(10_000)]
    found = []
    for number in range(-WARM_UP, count):
        if number >= 0 and number % IN_A_ROW == 0:
            rest()
        cpu_start, start = cpu(), wall()
        sorted(work)
        found.append((wall() - start, cpu() - cpu_start))
    return [w for w, _ in found[WARM_UP:]], [c for _, c in found[WARM_UP:]]


def readings(count: int = 0) -> dict[str, Any]:
    """identity, conditions, and wall_s and cpu_s of so many samples, which take `count / IN_A_ROW * REST_S` seconds."""
    clocks = (time.perf_counter, time.thread_time)
    wall_s, cpu_s = samples(*clocks, count, lambda: time.sleep(REST_S)) if count else ([], [])
    return {"identity": identity(), "conditions": conditions(), "wall_s": wall_s, "cpu_s": cpu_s}


def main() -> None:
    """Prints identity and conditions, and samples where they are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=0)
    print(json.dumps(readings(parser.parse_args().samples)))  # noqa: T201 it is a program there


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return None


def _lines(path: str) -> list[str]:
    return (_read(Path(path)) or "").splitlines()


if __name__ == "__main__":
    main()
