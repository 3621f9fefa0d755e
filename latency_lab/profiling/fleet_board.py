"""What runs on a board of a fleet, or for it, in its dask worker: plain values come in, one JSON text goes out.

The runtime's worker is kept from one request to the next; `release` ends it.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latency_lab.errors import LatencyLabError
from latency_lab.profiling.journal import failed
from latency_lab.profiling.transport import Worker, WorkerDiedError, environment_of

VARIABLE = "LATENCY_LAB_BOARD"
"""Environment variable of a dask worker: the address of the board that it measures for; its own machine by default."""
_lock = threading.Lock()
_ended: set[str] = set()
_bench: _Bench | None = None


def measure(job: Mapping[str, Any]) -> bytes:
    """What was asked of a board.

    Args:
        job: run and process (a name and a number: a worker of the runtime is kept for each), runtime, threads, python,
            benchmark_model, suffix (of model files), round; blocks and common: [(bytes of a model, settings)].

    Returns:
        JSON: board, hello, identity, conditions, blocks, and common where it is the board's first time in this round;
        or board, error (the name of a class) and reason.
    """
    from distributed import get_worker

    name = str(get_worker().name)
    with _lock:
        try:
            found = _bench_of(job).measure(job)
        except (LatencyLabError, WorkerDiedError) as error:
            _put_away()
            found = {"error": type(error).__name__, "reason": str(error)}
        if job["run"] in _ended:
            _put_away()
    return json.dumps({"board": name, **found}).encode()


def release(run: str) -> None:
    """Ends what was kept for a run, or has it end itself after the block that it is at."""
    _ended.add(run)
    if _lock.acquire(blocking=False):
        try:
            if _bench is not None and _bench.kept_for[0] == run:
                _put_away()
        finally:
            _lock.release()


class _Bench:
    """A worker of the runtime, and what it was asked before."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        from latency_lab.profiling.devices import device  # which knows fleets, too

        self.kept_for = (job["run"], job["process"])
        self._where = device(os.environ.get(VARIABLE, "local"), job["python"], job["benchmark_model"])
        self._runtime, self._threads = job["runtime"], job["threads"]
        self._rounds: set[int] = set()
        self._count = 0
        self._worker: Worker = self._where.start(self._runtime, self._threads)

    def measure(self, job: Mapping[str, Any]) -> dict[str, Any]:
        who, now = environment_of(self._worker)
        found: dict[str, Any] = {"hello": self._worker.hello, "identity": who, "conditions": now}
        if job["blocks"] and job["round"] not in self._rounds:
            found["common"] = self._blocks(job["common"], job)
            self._rounds.add(job["round"])
        return {**found, "blocks": self._blocks(job["blocks"], job)}

    def close(self) -> None:
        self._worker.close()

    def _blocks(self, asked: Sequence[tuple[bytes, dict[str, Any]]], job: Mapping[str, Any]) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
            return [self._block(model, settings, folder, job) for model, settings in asked]

    def _block(self, model: bytes, settings: dict[str, Any], folder: str, job: Mapping[str, Any]) -> dict[str, Any]:
        if job["run"] in _ended:
            return failed("the run has ended")
        path = Path(folder) / f"{self._count}{job['suffix']}"
        self._count += 1
        path.write_bytes(model)
        try:
            return self._worker.block(str(path), settings)
        except WorkerDiedError as error:
            self._worker.close()
            self._worker = self._where.start(self._runtime, self._threads)
            return failed(str(error))
        finally:
            path.unlink()


def _bench_of(job: Mapping[str, Any]) -> _Bench:
    global _bench
    if _bench is None or _bench.kept_for != (job["run"], job["process"]):
        _put_away()
        _bench = _Bench(job)
    return _bench


def _put_away() -> None:
    global _bench
    if _bench is not None:
        _bench.close()
        _bench = None
