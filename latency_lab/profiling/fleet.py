"""Many boards that are alike, and one plan: each is behind a dask worker that has a resource, and dask hands it out.

A chunk of blocks is a task of dask's. One whose board is lost is given to another board by dask's scheduler; the
journal is written here, as the chunks come back. What a board measures is in `fleet_board`; what it answers is checked,
and boards compared, in `boards`.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from latency_lab import runtimes
from latency_lab.errors import (
    DeviceLostError,
    EnvironmentMismatchError,
    LatencyLabError,
    MissingRuntimeError,
    UsageError,
)
from latency_lab.extras import missing
from latency_lab.profiling import boards, fleet_board
from latency_lab.profiling.answers import plain
from latency_lab.profiling.boards import Answer
from latency_lab.profiling.journal import Journal, block_line, failed
from latency_lab.profiling.models import Models
from latency_lab.profiling.protocol import Protocol
from latency_lab.profiling.tasks import Task, precision_of
from latency_lab.profiling.transport import Worker

CONNECT_S, GREET_S = 15, 300.0
PATIENCE_S = 60.0
"""How long a run goes on without any board."""
LOOK_S = 5.0
"""Pauses between two looks at which boards there are."""
AHEAD = 2
"""Chunks a board that are on their way: the one that it measures, and the next."""
CHUNK_BYTES = 16 << 20
"""Of models in a chunk, where it is of more than one."""
_ADDRESS = re.compile(r"fleet://([A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})/?")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Boards behind the workers of a dask scheduler.

    Attributes:
        name: fleet://host:port, of the scheduler.
        resource: that the workers of these boards have, one each.
        python, benchmark_model: of each board, as of `devices.device`.
        runtimes: names of those that may be there.
    """

    name: str
    resource: str = "board"
    python: str | None = None
    benchmark_model: str | None = None
    runtimes: tuple[str, ...] = runtimes.NAMES

    def start(self, runtime: str, threads: int) -> Worker:
        """A fleet measures plans.

        Raises:
            UsageError: always, with its boards.
        """
        self._one_board_alone()

    def probe(self, samples: int = 0) -> dict[str, Any]:
        """As of `start`."""
        self._one_board_alone()

    def profile(
        self,
        tasks: tuple[Task, ...],
        runtime: str,
        threads: int,
        journal: str | Path,
        protocol: Protocol,
        force: bool,
        on_block: Callable[[int, int], None],
    ) -> Journal:
        """Measures tasks, as `runner.profile` does; `on_block` takes blocks done and in all."""
        if runtime.partition(":")[0] == "vela":
            raise UsageError(f"vela estimates, on this machine: leave out on={self.name!r}.")
        precision = precision_of(tasks)
        with self._client() as client, tempfile.TemporaryDirectory(prefix="latency-lab-") as folder:
            models = Models(runtime, protocol, Path(folder))
            run = _Run(self, client, models, threads, boards.common_tasks(precision))
            try:
                there = run.greet() | {"runtime": runtime, "threads": threads, "precision": precision}
                with contextlib.closing(Journal.resume(journal, there, protocol, force)) as book:
                    while waiting := book.waiting(tasks, protocol):
                        run.measure(book, waiting, on_block)
            finally:
                run.end()
        for line in boards.warnings_of(boards.boards_of(book)):
            _log.warning("%s: %s", self.name, line)
        return book

    def workers(self, client: Any) -> dict[str, str]:
        """The boards that are there now: address of the dask worker -> name.

        Raises:
            UsageError: one would be given several chunks at a time.
        """
        with self.reached():
            there = client.scheduler_info(n_workers=-1)["workers"]
        found = {}
        for address, worker in there.items():
            count = worker.get("resources", {}).get(self.resource)
            name = plain(str(worker.get("name", address)), boards.NAME_LIMIT)
            if count is not None and count != 1:
                raise UsageError(
                    f"{self.name}: {name} has {self.resource}={count:g}. A board measures one thing at a time: start "
                    f'its worker with --resources "{self.resource}=1".'
                )
            if count:
                found[str(address)] = name
        return found

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """What asks the scheduler.

        Raises:
            DeviceLostError: it was lost.
        """
        from distributed import CancelledError, TimeoutError

        try:
            yield
        except TimeoutError:
            raise
        except (CancelledError, OSError) as error:
            raise DeviceLostError(
                f"{self.name} cannot be reached any more. What was measured is in the journal."
            ) from error

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        try:
            from distributed import Client
        except ModuleNotFoundError as error:
            raise missing(error, self.name) or error from error
        address = self.name.removeprefix("fleet://").rstrip("/")
        try:
            client = Client(address, timeout=CONNECT_S, set_as_default=False)
        except OSError as error:  # a timeout is one
            raise DeviceLostError(
                f"{self.name} cannot be reached: {plain(str(error), 300)}. See that a dask scheduler listens there."
            ) from error
        try:
            yield client
        finally:
            client.close(timeout=CONNECT_S)

    def _one_board_alone(self) -> NoReturn:
        with self._client() as client:
            names = sorted(self.workers(client).values())
        raise UsageError(
            f"{self.name} is a fleet ({len(names)} boards{': ' if names else ''}{', '.join(names)}): it is for profile "
            "alone. Name one board by ssh://user@host or adb://serial."
        )


def fleet_of(on: str, resource: str | None, python: str | None, benchmark_model: str | None) -> Fleet:
    """A fleet by its address.

    Args:
        on: fleet://host:port, of the dask scheduler.
        resource: that the workers of its boards have; "board" where it is None.
        python, benchmark_model: of each board.

    Raises:
        UsageError: the address is none.
    """
    if _ADDRESS.fullmatch(on) is None:
        raise UsageError(f"Expected fleet://host:port, of a dask scheduler. Received: {on!r}")
    return Fleet(on, resource or "board", python, benchmark_model)


@dataclass
class _Run:
    """One plan on its way through the boards.

    Attributes:
        fleet, client, models, threads: where and how.
        common: operations that every board times.
    """

    fleet: Fleet
    client: Any
    models: Models
    threads: int
    common: tuple[Task, ...]
    _name: str = field(default_factory=lambda: uuid.uuid4().hex)
    _boards: dict[str, str] = field(default_factory=dict)
    _identity: dict[str, Any] = field(default_factory=dict)
    _done: int = 0
    _noted: set[tuple[str, int]] = field(default_factory=set)
    _flying: dict[Any, tuple[int, tuple[Task, ...]]] = field(default_factory=dict)
    _left: deque[tuple[int, tuple[Task, ...]]] = field(default_factory=deque)

    # ---- before -------------------------------------------------------------------------------------------------

    def greet(self) -> dict[str, Any]:
        """Starts the runtime on every board: the identity that they have in common.

        Raises:
            UsageError: there is no board.
            MissingRuntimeError: the runtime is not on a board.
            EnvironmentMismatchError: boards differ; the message names them.
        """
        self.common = tuple(task for task in self.common if self._builds(task))
        self._boards = self.fleet.workers(self.client)
        if not self._boards:
            raise UsageError(
                f"{self.fleet.name} has no board: no dask worker with the resource {self.fleet.resource!r}. On each "
                f"board: dask worker {self.fleet.name.removeprefix('fleet://')} --nworkers 1 --nthreads 1 --name NAME "
                f'--resources "{self.fleet.resource}=1"'
            )
        identities = {answer.board: answer.identity for answer in self._first_answers() if not self._lost(answer)}
        if not identities:
            raise DeviceLostError(f"{self.fleet.name}: no board answers.")
        self._must_be_alike(boards.odd_ones(identities))
        self._identity = boards.usual_identity(identities)
        return dict(self._identity)

    def _first_answers(self) -> list[Answer]:
        """One of each board that is not lost meanwhile."""
        asked = {self._submit(0, (), address): address for address in self._boards}
        deadline, pending = time.monotonic() + GREET_S, list(asked)
        while pending and time.monotonic() < deadline:
            self._wait(pending, LOOK_S, every=True)
            there = self.fleet.workers(self.client)
            pending = [future for future in pending if not future.done() and asked[future] in there]
        answered = [future for future in asked if future.done()]
        self.client.cancel([future for future in asked if future not in answered])
        answers = [self._answer(future, 0) for future in answered]
        return [answer for answer in answers if answer is not None]

    def _builds(self, task: Task) -> bool:
        try:
            self.models.path(task)
        except LatencyLabError:
            return False
        return True

    # ---- the plan -----------------------------------------------------------------------------------------------

    def measure(
        self, journal: Journal, waiting: Sequence[tuple[int, Task]], on_block: Callable[[int, int], None]
    ) -> None:
        """All blocks that are waited for, into the journal."""
        total = self._done + len(waiting)
        self._left = deque(boards.chunks(waiting, len(self._boards)))
        looked = seen = time.monotonic()
        while self._left or self._flying:
            while self._left and len(self._flying) < AHEAD * max(len(self._boards), 1):
                self._send(journal)
            for future in self._wait(list(self._flying), LOOK_S):
                self._take(future, journal)
            self._done = total - self._open()
            on_block(self._done, total)
            if (now := time.monotonic()) - looked >= LOOK_S:
                looked, self._boards = now, self.fleet.workers(self.client)
                seen = now if self._boards else seen
            if now - seen > PATIENCE_S:
                raise DeviceLostError(f"{self.fleet.name} has no board any more. What was measured is in the journal.")

    def _open(self) -> int:
        """Blocks that are not done."""
        return sum(len(tasks) for _, tasks in (*self._left, *self._flying.values()))

    def end(self) -> None:
        """Gives up what is on its way, and has the boards put their tools away."""
        with contextlib.suppress(Exception):  # the scheduler may be what was lost
            self.client.cancel(list(self._flying))
            self.client.run(fleet_board.release, self._name, workers=list(self.fleet.workers(self.client)))

    def _send(self, journal: Journal) -> None:
        """Gives the next chunk to dask; what cannot be built has failed, what is too much to send waits."""
        round_, tasks = self._left.popleft()
        chosen: list[Task] = []
        size = 0
        for i, task in enumerate(tasks):
            if journal.has(task.key, round_):
                continue
            try:
                size += self.models.path(task).stat().st_size
            except LatencyLabError as error:
                journal.append(block_line(task.key, round_, failed(str(error))), task)
                continue
            if chosen and size > CHUNK_BYTES:
                self._left.appendleft((round_, tasks[i:]))
                break
            chosen.append(task)
        if chosen:
            self._flying[self._submit(round_, tuple(chosen))] = (round_, tuple(chosen))

    def _take(self, future: Any, journal: Journal) -> None:
        """What came back, into the journal; or again to the boards."""
        round_, tasks = self._flying.pop(future)
        if _killed_boards(future):
            self._left.extendleft((round_, (task,)) for task in tasks if len(tasks) > 1)
            if len(tasks) == 1:
                line = failed("every board that was given it was lost")
                journal.append(block_line(tasks[0].key, round_, line), tasks[0])
            return
        answer = self._answer(future, len(tasks))
        if answer is None:
            self._flying[future] = (round_, tasks)
            return
        if self._lost(answer):
            self._left.appendleft((round_, tasks))
            return
        self._must_be_alike(boards.unlike(answer.board, answer.identity, self._identity))
        if (answer.board, round_) not in self._noted:
            self._noted.add((answer.board, round_))
            note = block_line("conditions", round_, answer.conditions, board=answer.board)
            journal.append({**note, "status": "note"})
        for task, block in zip(self.common, answer.common, strict=False):
            if block["status"] == "ok":
                journal.append({**block_line(task.key, round_, block, board=answer.board), "status": "common"})
        for task, block in zip(tasks, answer.blocks, strict=True):
            if not journal.has(task.key, round_):
                journal.append(block_line(task.key, round_, block, board=answer.board), task)

    def _lost(self, answer: Answer) -> bool:
        """Whether a board cannot be reached from its dask worker, which is then retired.

        Raises:
            MissingRuntimeError, UsageError: it cannot measure for another reason.
        """
        if not answer.error:
            return False
        said = f"{self.fleet.name}: {answer.board}: {answer.reason}"
        if answer.error != "DeviceLostError":
            raise (MissingRuntimeError if answer.error == "MissingRuntimeError" else UsageError)(said)
        addresses = [address for address, name in self._boards.items() if name == answer.board]
        if addresses:  # not retired before, for another chunk
            _log.warning("%s. It is left out until its dask worker is started again.", said)
            self.client.retire_workers(addresses)
            self._boards = {address: name for address, name in self._boards.items() if address not in addresses}
        return True

    def _must_be_alike(self, found: Sequence[str]) -> None:
        if found:
            lines = "\n".join(f"  * {line}" for line in found)
            raise EnvironmentMismatchError(
                f"Boards of {self.fleet.name} are not alike:\n{lines}\n"
                "Make them so, or give each kind a resource of its own (--resources on the board, --resource here)."
            )

    # ---- dask ---------------------------------------------------------------------------------------------------

    def _submit(self, round_: int, tasks: Sequence[Task], address: str | None = None) -> Any:
        job = {
            "run": self._name,
            "process": self.models.protocol.process(round_),
            "runtime": self.models.runtime.name,
            "threads": self.threads,
            "python": self.fleet.python,
            "benchmark_model": self.fleet.benchmark_model,
            "suffix": self.models.runtime.suffix,
            "round": round_,
            "common": self._models(self.common if tasks else ()),
            "blocks": self._models(tasks),
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            return self.client.submit(
                fleet_board.measure,
                job,
                resources={self.fleet.resource: 1},
                workers=[address] if address else None,
                pure=False,
            )

    def _models(self, tasks: Sequence[Task]) -> list[tuple[bytes, dict[str, Any]]]:
        return [(self.models.path(task).read_bytes(), self.models.settings(task)) for task in tasks]

    def _wait(self, futures: list[Any], seconds: float, every: bool = False) -> list[Any]:
        """Those that are done: at the first one, or at all, or after a while."""
        from distributed import TimeoutError, wait

        with contextlib.suppress(TimeoutError), self.fleet.reached(), self.client.as_current():
            if futures:
                wait(futures, timeout=seconds, return_when="ALL_COMPLETED" if every else "FIRST_COMPLETED")
        return [future for future in futures if future.done()]

    def _answer(self, future: Any, blocks: int) -> Answer | None:
        """What a future that is done holds; None where that was lost with its board, and is measured again."""
        from distributed import TimeoutError

        if future.status == "error":
            error = future.exception()
            raise UsageError(
                f"{self.fleet.name}: a board cannot measure: {type(error).__name__}: {plain(str(error), 300)}. Each "
                "needs this release of latency-lab: pip install 'latency-lab[fleet]'"
            ) from error
        try:
            with self.fleet.reached():
                said = future.result(timeout=LOOK_S)
            return boards.answer_of(said, blocks, len(self.common))
        except TimeoutError:
            return None
        except ValueError as error:
            raise UsageError(f"{self.fleet.name}: a board's answer is none: {error}.") from error


def _killed_boards(future: Any) -> bool:
    """Whether dask gave a chunk up: the boards that it was given to were lost, one after the other."""
    from distributed import KilledWorker

    return future.status == "error" and isinstance(future.exception(), KilledWorker)
