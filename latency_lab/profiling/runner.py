"""Runs tasks through workers, round by round, into a journal."""

from __future__ import annotations

import dataclasses
import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latency_lab import runtimes
from latency_lab.errors import LatencyLabError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling.devices import Device, device
from latency_lab.profiling.journal import Journal
from latency_lab.profiling.protocol import Protocol
from latency_lab.profiling.tasks import Task, precision_of, tasks_of
from latency_lab.profiling.transport import ESTIMATED, Worker, WorkerDiedError, environment_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        done, total: blocks.
        seconds: since the run began.
        left_s: seconds that the rest will take at this pace.
    """

    done: int
    total: int
    seconds: float
    left_s: float


def profile(  # noqa: PLR0913 what, on what, how, and two ways to say where
    items: Iterable[OpConfig | Network | Task],
    *,
    runtime: str,
    threads: int = 1,
    journal: str | Path,
    protocol: Protocol | None = None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on: str | Device = "local",
    start_worker: Callable[[], Worker] | None = None,
) -> Journal:
    """Measures operations and networks on a device, and keeps every block.

    Args:
        items: operations, networks or tasks; each key is measured once.
        runtime: one of `runtimes.NAMES`; TensorFlow's may name a device: "tensorflow:GPU:0".
        threads: of the runtime.
        journal: file to append to; a run that was killed goes on from it.
        protocol: rounds and repeats; of an estimate (vela), which is the same each time, one round is taken.
        force: go on with a journal of another environment.
        on_progress: called after each block.
        on: the device: "local", "ssh://user@host:port", "adb://serial", or what `device` gives.
        start_worker: starts a worker, in place of the device.

    Returns:
        The journal, with every task measured in every round or failed with its reason.

    Raises:
        MissingRuntimeError: the runtime is not installed.
        EnvironmentMismatchError: the journal is of another environment.
        DeviceLostError: the device cannot be reached, or not any more. What was measured is in the journal.
    """
    tasks = tasks_of(items)
    protocol = protocol or Protocol()
    where = device(on)
    start = start_worker or (lambda: where.start(runtime, threads))
    first = start()
    try:
        who, _ = environment_of(first)
    except BaseException:
        first.close()
        raise
    if who.get("provenance") == ESTIMATED:
        protocol = dataclasses.replace(protocol, rounds=1, processes=1)
    there = {**who, **{k: first.hello.get(k) for k in ("package", "version", "worker")}}
    there |= {"runtime": runtime, "threads": threads, "precision": precision_of(tasks)}
    there |= {k: first.hello[k] for k in ("device", "layout_block") if k in first.hello}
    try:
        book = Journal.resume(journal, there, protocol, force)
    except BaseException:
        first.close()
        raise
    run = _Run(tasks, runtime, protocol, book, start, first, on_progress)
    try:
        with tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
            run.all_rounds(Path(folder))
    finally:
        run.worker.close()
        book.close()
    return book


class _Run:
    """One pass over all rounds."""

    def __init__(
        self,
        tasks: tuple[Task, ...],
        runtime: str,
        protocol: Protocol,
        journal: Journal,
        start: Callable[[], Worker],
        worker: Worker,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.tasks, self.protocol, self.journal = tasks, protocol, journal
        self.runtime = runtimes.get(runtime)
        self.start, self.worker = start, worker
        self.on_progress = on_progress or (lambda progress: None)
        self.paths: dict[str, Path] = {}

    def all_rounds(self, folder: Path) -> None:
        waiting = [
            (r, task) for r in range(self.protocol.rounds) for task in self.tasks if not self.journal.has(task.key, r)
        ]
        began, total, done = time.monotonic(), len(waiting), 0
        for round_ in range(self.protocol.rounds):
            tasks = [task for r, task in waiting if r == round_]
            if not tasks:
                continue
            if round_ and round_ * self.protocol.processes % self.protocol.rounds < self.protocol.processes:
                self._new_worker()
            _, now = environment_of(self.worker)
            self.journal.append({"key": "conditions", "round": round_, "status": "note", **now})
            random.Random(f"{self.protocol.seed}:{round_}").shuffle(tasks)
            for task in tasks:
                if not self.journal.has(task.key, round_):
                    self.journal.append(self._block(task, round_, folder), task)
                done += 1
                seconds = time.monotonic() - began
                self.on_progress(Progress(done, total, seconds, seconds / done * (total - done)))

    def _block(self, task: Task, round_: int, folder: Path) -> dict[str, Any]:
        line: dict[str, Any] = {"key": task.key, "round": round_}
        whole = task.role == "network"
        settings = {
            **self.protocol.settings(whole),
            "kernels": self.runtime.times_kernels and not whole,
            "cold": int(task.cold),
        }
        try:
            path = self._model(task, folder)
        except LatencyLabError as error:
            return {**line, "status": "failed", "reason": str(error)}
        try:
            found = self.worker.block(str(path), settings)
        except WorkerDiedError as error:
            _log.warning("%s: %s", task.key, error)
            self._new_worker()
            return {**line, "status": "failed", "reason": str(error)}
        found.pop("id", None)
        return {**line, **found}

    def _model(self, task: Task, folder: Path) -> Path:
        """The task's model file, built when it is first asked for."""
        path = self.paths.get(task.key)
        if path is None:
            path = folder / f"{len(self.paths)}{self.runtime.suffix}"
            path.write_bytes(self.runtime.build(task.network))
            self.paths[task.key] = path
        return path

    def _new_worker(self) -> None:
        self.worker.close()
        self.worker = self.start()
