"""Phones and boards by adb, through the user's own `adb`: a Python there, or TFLite's `benchmark_model`.

`benchmark_model` prints whole microseconds and few statistics: see `parse`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latency_lab.errors import UsageError
from latency_lab.profiling.answers import checked_block, plain
from latency_lab.profiling.remote import (
    LinkLostError,
    Remote,
    RemoteWorker,
    Session,
    checked_probe,
    quoted,
    read_model,
)
from latency_lab.profiling.transport import BLOCK_TIMEOUT_S, Worker, WorkerDiedError
from latency_lab.runtimes import worker

VARIABLE = "ADB"
"""Environment variable: the adb program."""
MEANS_BELOW_US = 20.0
LONGEST_S = 60
_SERIAL = re.compile(r"adb://([A-Za-z0-9][A-Za-z0-9._:-]*)/?")
_COUNT = re.compile(r"\bcount=([0-9]{1,9})\b")
_VALUE = re.compile(r"\b([a-z][a-z0-9]{0,9})=([0-9.]{1,20}(?:e[+-]?[0-9]{1,3})?)(?=[\s(]|$)")

PROBE = "; ".join(
    [
        'echo "machine=$(uname -m)"',
        'echo "system=$(uname -s)"',
        'echo "model=$(getprop ro.product.model 2>/dev/null)"',
        'echo "chip=$(getprop ro.soc.model 2>/dev/null)"',
        'echo "cores=$(nproc 2>/dev/null || grep -c ^processor /proc/cpuinfo)"',
        'echo "governor=$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)"',
        'echo "time=$(date -u +%Y-%m-%dT%H:%M:%SZ)"',
        'echo "load=$(cut -d " " -f 1 /proc/loadavg 2>/dev/null)"',
        'for z in /sys/class/thermal/thermal_zone*/temp; do echo "heat=$(cat "$z" 2>/dev/null)"; done',
    ]
)
"""Says what a device without Python is, a name=value a line."""


def adb_device(on: str, python: str | None = None, benchmark_model: str | None = None) -> Remote:
    """A device by its serial number, as `adb devices` lists it.

    Args:
        on: adb://serial.
        python: of the device.
        benchmark_model: the program that is run in Python's place: a file here, which is copied, or a path there.

    Raises:
        UsageError: the address is none, there is no adb, or both programs are named.
    """
    found = _SERIAL.fullmatch(on)
    if found is None:
        raise UsageError(f"Expected adb://serial, of a device that adb devices lists. Received: {on!r}")
    adb = os.environ.get(VARIABLE, "adb")
    if shutil.which(adb) is None:
        raise UsageError(
            f"There is no adb program {adb!r}. Install Android's platform-tools, or name it in {VARIABLE}."
        )
    if python and benchmark_model:
        raise UsageError("Expected a Python of the device or a benchmark_model, received both.")
    prefix = (adb, "-s", found.group(1))
    advice = f"See that this works: {' '.join(prefix)} shell true"
    if benchmark_model:
        runtimes = ("litert",)
        return AdbBenchmark(on, (*prefix, "shell"), "", "/data/local/tmp", advice, runtimes, benchmark_model)
    return Remote(on, (*prefix, "shell"), python or "python3", "/data/local/tmp", advice)


@dataclass
class AdbBenchmark(Remote):
    """A device on which `benchmark_model` measures, without Python.

    Attributes:
        program: a file of this machine, or a path on the device.
    """

    program: str = ""

    def start(self, runtime: str, threads: int) -> Worker:
        """Starts what runs `benchmark_model`.

        Raises:
            UsageError: it does not run this runtime.
        """
        if runtime not in self.runtimes:
            raise UsageError(f"benchmark_model runs litert alone. Received: runtime={runtime!r}")
        return BenchmarkWorker(self, runtime, threads)

    def probe(self, samples: int = 0) -> dict[str, Any]:
        """Identity and conditions, of what a shell can read; there are no samples."""
        try:
            return checked_probe(described(self.run("sh -c " + shlex.quote(PROBE))))
        except (ValueError, WorkerDiedError) as error:
            raise UsageError(f"{self.name} does not say what it is: {error}") from error

    def push(self, path: str, target: str) -> None:
        """Copies a file of this machine to a path there.

        Raises:
            LinkLostError: that failed.
        """
        command = [*self.prefix[:-1], "push", path, target]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=BLOCK_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise LinkLostError(f"adb push took more than {BLOCK_TIMEOUT_S:.0f} s") from None
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise LinkLostError("adb push: " + plain(said, 300))


class BenchmarkWorker(RemoteWorker):
    """Runs `benchmark_model` once a block."""

    device: AdbBenchmark

    def open(self) -> tuple[Session, dict[str, Any]]:
        """A session that holds the folder until it ends, with the program in it, and what would be a worker's hello."""
        local = Path(self.device.program)
        session = Session(self.device, {}, "cat >/dev/null")
        try:
            if local.is_file():
                self._program = f"{session.folder}/benchmark_model"
                self.device.push(str(local), self._program)
                self.device.run(f"chmod 755 {self._program}")
                version = hashlib.sha256(local.read_bytes()).hexdigest()
            else:
                self._program = quoted(self.device.program)
                (line,) = self.device.run(f"sha256sum {self._program}")
                version = line.split()[0]
            if not re.fullmatch("[0-9a-f]{64}", version):
                raise ValueError(f"sha256sum says {plain(version, 80)!r}")
        except BaseException:
            session.close()
            raise
        return session, {
            "worker": worker.VERSION,
            "runtime": self.runtime,
            "package": "benchmark_model",
            "version": f"sha256 {version[:16]}",
            "threads": self.threads,
        }

    def measure(self, path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """One block, in this session."""
        if self.session is None:
            raise WorkerDiedError("the worker has ended")
        self._must_live(self.session)
        read_model(path)
        model = f"{self.session.folder}/model.tflite"
        self.device.push(path, model)
        flags = {
            "graph": model,
            "num_threads": int(self.threads),
            "warmup_runs": int(settings.get("warm_up", 2)),
            "warmup_min_secs": 0,
            "num_runs": int(settings.get("min_repeats", 3)),
            "min_secs": float(settings.get("block_ms", 5.0)) * 1e-3,
            "max_secs": LONGEST_S,
        }
        words = " ".join(f"--{name}={value}" for name, value in flags.items())
        try:
            lines = self.device.run(f"{self._program} {words} 2>&1")
            return checked_block({"id": 0, **parse(lines)})
        except (ValueError, WorkerDiedError) as error:
            self._must_live(self.session)
            return {"id": 0, "status": "failed", "reason": f"benchmark_model: {error}"}

    @staticmethod
    def _must_live(session: Session) -> None:
        """The folder with the program goes with the session.

        Raises:
            LinkLostError: it has ended.
        """
        if session.pipe.ended:
            raise LinkLostError(session.pipe.last_words() or "the shell on the device ended")


def parse(lines: Sequence[str]) -> dict[str, Any]:
    """A block of what `benchmark_model` prints, in whole microseconds; its last line of counts, the first is warm-up:

        count=74 first=14850 curr=13315 min=13105 max=15765 avg=13520.2 std=470 p5=13109 median=13402 p95=14801

    Newer ones print percentiles as well; where all values are the same, "count=3 curr=12(all same)". All that is
    printed is kept. Of short runs the mean takes the minimum's place, since it is finer than a microsecond.

    Raises:
        ValueError: there is no such line.
    """
    found = [line for line in lines if _COUNT.search(line)]
    if len(found) < 2:
        raise ValueError("it printed no statistics: " + plain(" | ".join(line.strip() for line in lines[-3:]), 300))
    printed = {name: float(value) for name, value in _VALUE.findall(found[-1])}
    if not printed.get("count") or "curr" not in printed:
        raise ValueError(f"it printed {plain(found[-1], 200)!r}")
    least = printed.get("min", printed["curr"])
    mean = printed.get("avg", printed["curr"])
    middle = printed.get("median", mean)
    low = mean if least < MEANS_BELOW_US else least
    wall = {"min": low * 1e-3, "median": max(low, middle) * 1e-3}
    times = {"wall_ms": wall, "cpu_ms": None, "cold_ms": None, "printed_us": printed}
    return {"status": "ok", "count": int(printed["count"]), "repeats": 1, **times}


def described(lines: Sequence[str]) -> dict[str, Any]:
    """What `PROBE` says, as `environment.py` would.

    Raises:
        ValueError: a number is none.
    """
    pairs = [line.strip().partition("=") for line in lines]
    found = {name: value for name, _, value in pairs if value}
    heat = [int(value) / 1000 for name, _, value in pairs if name == "heat" and value.lstrip("-").isdigit()]
    who: dict[str, Any] = {
        "cpu": " ".join(found[k] for k in ("model", "chip") if k in found) or "unknown",
        "machine": found.get("machine"),
        "system": found.get("system"),
        "cores": int(found.get("cores", "")),
        "governor": found.get("governor"),
        "quota_cores": None,
        "cache_bytes": {},
    }
    load = found.get("load")
    now = {
        "time": found.get("time"),
        "load": float(load) if load else None,
        "clock_mhz": None,
        "temperature_c": max(heat, default=None),
    }
    return {"identity": who, "conditions": now}
