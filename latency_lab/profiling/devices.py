"""Where to measure: on this machine, on a device by ssh or adb, or on a fleet of boards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from latency_lab import runtimes
from latency_lab.errors import UsageError
from latency_lab.profiling import environment
from latency_lab.profiling.adb import adb_device
from latency_lab.profiling.fleet import fleet_of
from latency_lab.profiling.ssh import ssh_device
from latency_lab.profiling.transport import LocalWorker, Worker, worker_command


class Device(Protocol):
    """Where workers are started."""

    @property
    def name(self) -> str:
        """The address; "local" for this machine."""
        ...

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Names of those that may be there."""
        ...

    def start(self, runtime: str, threads: int) -> Worker:
        """Starts a worker there."""
        ...

    def probe(self, samples: int = 0) -> dict[str, Any]:
        """Identity, conditions, and wall_s and cpu_s of so many samples of a fixed piece of work."""
        ...


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """This machine.

    Attributes:
        python: that has the runtime; this one by default.
    """

    python: str | None = None
    name: str = "local"
    runtimes: tuple[str, ...] = runtimes.NAMES

    def start(self, runtime: str, threads: int) -> Worker:
        """Starts a subprocess."""
        if self.python is None:
            return LocalWorker(runtime, threads)
        return LocalWorker(runtime, threads, worker_command(self.python, runtime))

    def probe(self, samples: int = 0) -> dict[str, Any]:
        """As of `Device`."""
        return environment.readings(samples)


def device(
    on: str | Device = "local",
    python: str | None = None,
    benchmark_model: str | None = None,
    resource: str | None = None,
) -> Device:
    """The device at an address.

    Args:
        on: "local", "ssh://user@host:port", "adb://serial", or "fleet://host:port" of a dask scheduler; a `Device` is
            given back as it is.
        python: the Python there that has the runtime and numpy, 3.9 or newer; by default this one for "local", python3
            elsewhere.
        benchmark_model: TFLite's `benchmark_model` program, which takes Python's place on adb: a file of this machine,
            which is copied, or a path on the device. For a fleet, "this machine" is each dask worker's.
        resource: of a fleet: that the dask workers of its boards have; "board" by default.

    Raises:
        UsageError: there is no such address, or no such program.

    Example:
        >>> from latency_lab.profiling import device
        >>> device("local").name
        'local'
    """
    if not isinstance(on, str):
        return on
    if on.startswith("fleet://"):
        return fleet_of(on, resource, python, benchmark_model)
    if resource:
        raise UsageError(f"resource is of a fleet://host:port alone. Received: on={on!r}")
    if benchmark_model and not on.startswith("adb://"):
        raise UsageError(f"benchmark_model is run on adb://serial alone. Received: on={on!r}")
    if on == "local":
        if python:
            worker_command(python)
        return LocalDevice(python)
    if on.startswith("ssh://"):
        return ssh_device(on, python)
    if on.startswith("adb://"):
        return adb_device(on, python, benchmark_model)
    raise UsageError(
        f"Expected on to be local, ssh://user@host:port, adb://serial or fleet://host:port. Received: {on!r}"
    )
