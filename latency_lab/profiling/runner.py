"""Runs tasks through a worker, round by round, into a journal; or through the boards of a fleet."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latency_lab.errors import LatencyLabError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling.devices import Device, device
from latency_lab.profiling.fleet import Fleet
from latency_lab.profiling.journal import Journal, block_line, failed
from latency_lab.profiling.models import Models
from latency_lab.profiling.protocol import Protocol
from latency_lab.profiling.tasks import Task, precision_of, tasks_of
from latency_lab.profiling.transport import ESTIMATED, Worker, WorkerDiedError, comparable, environment_of

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
        on: the device: "local", "ssh://user@host:port", "adb://serial", "fleet://scheduler:port" for many boards that
            are alike, or what `device` gives.
        start_worker: starts a worker, in place of the device.

    Returns:
        The journal, with every task measured in every round or failed with its reason.

    Raises:
        MissingRuntimeError: the runtime is not installed.
        EnvironmentMismatchError: the journal is of another environment, or boards of a fleet differ.
        DeviceLostError: the device cannot be reached, or not any more. What was measured is in the journal.
    """
    tasks = tasks_of(items)
    protocol = protocol or Protocol()
    where = device(on)
    paced = _paced(on_progress)
    if start_worker is None and isinstance(where, Fleet):
        return where.profile(tasks, runtime, threads, journal, protocol, force, paced)
    start = start_worker or (lambda: where.start(runtime, threads))
    first = start()
    try:
        who, _ = environment_of(first)
    except BaseException:
        first.close()
        raise
    if who.get("provenance") == ESTIMATED:
        protocol = dataclasses.replace(protocol, rounds=1, extra_rounds=0, processes=1)
    there = comparable(first.hello, who) | {"runtime": runtime, "threads": threads, "precision": precision_of(tasks)}
    try:
        book = Journal.resume(journal, there, protocol, force)
    except BaseException:
        first.close()
        raise
    run = _Run(tasks, protocol, book, start, first, paced)
    try:
        with tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
            run.all_rounds(Models(runtime, protocol, Path(folder)))
    finally:
        run.worker.close()
        book.close()
    return book


def _paced(on_progress: Callable[[Progress], None] | None) -> Callable[[int, int], None]:
    """Takes blocks done and in all, and says how long the rest will take."""
    began = time.monotonic()

    def said(done: int, total: int) -> None:
        if on_progress:
            seconds = time.monotonic() - began
            on_progress(Progress(done, total, seconds, seconds / max(done, 1) * (total - done)))

    return said


class _Run:
    """One pass over all rounds."""

    def __init__(
        self,
        tasks: tuple[Task, ...],
        protocol: Protocol,
        journal: Journal,
        start: Callable[[], Worker],
        worker: Worker,
        on_block: Callable[[int, int], None],
    ) -> None:
        self.tasks, self.protocol, self.journal = tasks, protocol, journal
        self.start, self.worker, self.on_block = start, worker, on_block

    def all_rounds(self, models: Models) -> None:
        done = 0
        while waiting := self.journal.waiting(self.tasks, self.protocol):
            total = done + len(waiting)
            for round_, tasks in itertools.groupby(waiting, key=lambda found: found[0]):
                if round_ and self.protocol.process(round_) != self.protocol.process(round_ - 1):
                    self._new_worker()
                _, now = environment_of(self.worker)
                self.journal.append({**block_line("conditions", round_, now), "status": "note"})
                for _, task in tasks:
                    if not self.journal.has(task.key, round_):
                        self.journal.append(self._block(task, round_, models), task)
                    done += 1
                    self.on_block(done, total)

    def _block(self, task: Task, round_: int, models: Models) -> dict[str, Any]:
        try:
            path = models.path(task)
        except LatencyLabError as error:
            return block_line(task.key, round_, failed(str(error)))
        try:
            return block_line(task.key, round_, self.worker.block(str(path), models.settings(task)))
        except WorkerDiedError as error:
            _log.warning("%s: %s", task.key, error)
            self._new_worker()
            return block_line(task.key, round_, failed(str(error)))

    def _new_worker(self) -> None:
        self.worker.close()
        self.worker = self.start()
