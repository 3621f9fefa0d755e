"""What a worker is given of a task: a model's file, built when it is first asked for, and the settings of its block."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from latency_lab import runtimes
from latency_lab.errors import LatencyLabError, UnsupportedOpError
from latency_lab.ops import Network
from latency_lab.profiling.protocol import Protocol
from latency_lab.profiling.tasks import Task

_log = logging.getLogger(__name__)


class Models:
    """The models of a run.

    Args:
        runtime: one of `runtimes.NAMES`, or with a device.
        protocol: of the run.
        folder: for the files.
    """

    def __init__(self, runtime: str, protocol: Protocol, folder: Path) -> None:
        self.runtime, self.protocol, self.folder = runtimes.get(runtime), protocol, folder
        self._paths: dict[str, Path] = {}

    def path(self, task: Task) -> Path:
        """The task's model file.

        Raises:
            LatencyLabError: the runtime cannot build it.
        """
        path = self._paths.get(task.key)
        if path is None:
            path = self.folder / f"{len(self._paths)}{self.runtime.suffix}"
            path.write_bytes(self._built(task.network))
            self._paths[task.key] = path
        return path

    def _built(self, network: Network) -> bytes:
        """The bytes of a model. A builder that fails as it does not say it may costs that model, and not the run."""
        try:
            return self.runtime.build(network)
        except LatencyLabError:
            raise
        except Exception as error:
            reason = f"{self.runtime.name} cannot build {network.key!r}: {type(error).__name__}: {error}"
            _log.warning("%s", reason, exc_info=True)
            raise UnsupportedOpError(reason) from error

    def settings(self, task: Task) -> dict[str, Any]:
        """What a worker is told of a block of the task."""
        whole = task.role == "network"
        return {
            **self.protocol.settings(whole),
            "kernels": self.runtime.times_kernels and not whole,
            "cold": int(task.cold),
        }
