"""Where a measurement is taken: what must stay the same (identity), and what is noted each round (conditions)."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    names = [*then, *(name for name in now if name not in then)]
    return [f"{n}: {then.get(n)!r} there, {now.get(n)!r} here" for n in names if then.get(n) != now.get(n)]


def cpu_model() -> str:
    """The processor's name."""
    for line in _lines("/proc/cpuinfo"):
        if line.lower().startswith(("model name", "hardware", "cpu model")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


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


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _lines(path: str) -> list[str]:
    return (_read(Path(path)) or "").splitlines()
