"""The journal: one JSON object a line, appended and flushed block by block, from which a killed run goes on.

    {"key": "environment", "round": -1, "status": "header", "journal": 1, "identity": {...}, "protocol": {...}}
    {"key": "conditions", "round": 0, "status": "note", "load": ...}
    {"key": "dense 1x1 bias float32 8->8", "round": 0, "status": "ok", "task": {...}, "wall_ms": {...}, "time": ...}
    {"key": "...", "round": 0, "status": "failed", "reason": "..."}

A line of a fleet's journal names the board that measured it ("board"), and some are of operations that every board
times again and again, by which boards are compared; they are no part of the measurement:

    {"key": "dense 1x1 ...", "round": 0, "status": "common", "board": "pi-3", "count": ..., "wall_ms": {...}}

"task" stands in the first line of a key alone; "time" is when the line was written, seconds since 1970 (what is
estimated has none: it is the same each time). A key and round stand in at most one line. A run that goes on with other
settings adds a header: the last one counts.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from latency_lab.errors import EnvironmentMismatchError, FileFormatError
from latency_lab.ops import Network
from latency_lab.profiling.drift import slowdowns
from latency_lab.profiling.environment import differences
from latency_lab.profiling.protocol import Protocol, Statistic, block_latency_ms, statistic
from latency_lab.profiling.tasks import Task

VERSION = 1
_OWN = ("id", "key", "round", "task", "board", "time")
"""What the journal says of a block, and no worker."""
_HEADER = '{"key": "environment"'


class Journal:
    """Measured blocks on disk.

    Attributes:
        path: of the file.
        identity: of the environment that it was taken in.
        protocol: that it was taken with.
        tasks: key -> task, of all that was measured or failed.
        blocks: key -> blocks, in order of rounds.
        failures: key -> reason.
        notes: conditions, a line a round (and board).
        common: blocks of the operations that every board of a fleet times.
        measured: all blocks, in the order of measuring.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.identity: dict[str, Any] = {}
        self.protocol: dict[str, Any] = {}
        self.tasks: dict[str, Task] = {}
        self.blocks: dict[str, list[dict[str, Any]]] = {}
        self.failures: dict[str, str] = {}
        self.notes: list[dict[str, Any]] = []
        self.common: list[dict[str, Any]] = []
        self._file: IO[str] | None = None
        self.measured: list[dict[str, Any]] = []
        self._rows: dict[str, list[int]] = {}
        self._slowdowns = np.ones(0)

    @classmethod
    def load(cls, path: str | Path) -> Journal:
        """Reads a journal. A last line that was cut off is left out.

        Raises:
            FileFormatError: the file is missing or is no journal; the message names the line.
        """
        journal = cls(path)
        text = _text(journal.path)
        for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
            try:
                journal._take(json.loads(line))
            except (ValueError, KeyError, TypeError, FileFormatError) as error:
                raise FileFormatError(
                    f"{path} is not a journal: line {number}: {type(error).__name__}: {error}"
                ) from error
        if not journal.identity:
            raise FileFormatError(f"{path} is not a journal: it has no line that says where it was taken.")
        return journal

    @classmethod
    def resume(cls, path: str | Path, identity: Mapping[str, Any], protocol: Protocol, force: bool = False) -> Journal:
        """Opens a journal to go on with, or begins one.

        Args:
            path: of the file.
            identity: of the environment here.
            protocol: to measure with.
            force: go on although the environment differs.

        Raises:
            EnvironmentMismatchError: the journal is of another environment; the message says in what.
            FileFormatError: the file is no journal; it is left as it is.
        """
        path = Path(path)
        text = _text(path) if path.exists() else ""
        if text and "\n" not in text and not _HEADER.startswith(text[: len(_HEADER)]):
            raise FileFormatError(f"{path} is not a journal, and is left as it is. Name another journal (--journal).")
        if "\n" in text:
            journal = cls.load(path)
            found = differences(journal.identity, identity)
            if found and not force:
                lines = "\n".join(f"  * {line}" for line in found)
                raise EnvironmentMismatchError(
                    f"The journal {path} was taken in another environment:\n{lines}\n"
                    "Name another journal (--journal), or take it all the same (--force)."
                )
            _drop_partial_line(path)
            journal._file = path.open("a", encoding="utf-8")
            if journal.protocol != protocol.to_json():
                journal._append_header(journal.identity, protocol)
            return journal
        journal = cls(path)
        journal._file = path.open("w", encoding="utf-8")
        journal._append_header(identity, protocol)
        return journal

    def _append_header(self, identity: Mapping[str, Any], protocol: Protocol) -> None:
        header = {"key": "environment", "round": -1, "status": "header", "journal": VERSION}
        self.append({**header, "identity": dict(identity), "protocol": protocol.to_json()})

    def append(self, line: dict[str, Any], task: Task | None = None) -> None:
        """Writes one line through to the file."""
        if task is not None and task.key not in self.tasks:
            line = {**line, "task": task.to_json()}
        if self._file is None:
            raise FileFormatError(f"The journal {self.path} is open for reading alone.")
        if line["status"] == "ok" and "provenance" not in self.identity:
            line = {**line, "time": round(time.time(), 2)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._take(line)

    def has(self, key: str, round_: int) -> bool:
        """Whether a task needs no block in this round: it has one, or it failed before."""
        return key in self.failures or any(block["round"] == round_ for block in self.blocks.get(key, ()))

    def waiting(self, tasks: Iterable[Task], protocol: Protocol) -> list[tuple[int, Task]]:
        """(round, task) of the blocks to measure next: round by round, each in a random order of its own.

        First all that is left of the rounds that every task has; after them, one more block of each unstable task. None
        are left once every task is stable, has had its extra rounds, or has failed.
        """
        tasks = tuple(tasks)
        rounds = [
            (round_, [task for task in tasks if not self.has(task.key, round_)]) for round_ in range(protocol.rounds)
        ]
        if not any(left for _, left in rounds):
            rounds = self._unstable(tasks, protocol)
        found = []
        for round_, left in rounds:
            random.Random(f"{protocol.seed}:{round_}").shuffle(left)
            found += [(round_, task) for task in left]
        return found

    def _unstable(self, tasks: Iterable[Task], protocol: Protocol) -> list[tuple[int, list[Task]]]:
        """(round, tasks) of the next extra round of each unstable task that may have one.

        A task that was found stable, and so had no block in the last two of these rounds, is not looked at again: every
        block shifts what is known of the machine's speed a little, and with it which of many tasks are just stable.
        """
        found: dict[int, list[Task]] = {}
        newest = max((line["round"] for line in self.measured), default=0)
        since = next((i for i, line in enumerate(self.measured) if line["round"] >= newest - 1), 0)
        for task in tasks:
            if task.key not in self.failures and self._rows[task.key][-1] >= since:
                if self.statistic(task.key).unstable:
                    round_ = 1 + max(block["round"] for block in self.blocks[task.key])
                    found.setdefault(round_, []).append(task)
        return sorted((r, left) for r, left in found.items() if r < protocol.rounds + protocol.extra_rounds)

    def statistic(self, key: str) -> Statistic:
        """The protocol's statistic of a task that was measured, at the machine's good speed."""
        return statistic(self.blocks[key], self.slowdowns[self._rows[key]])

    @property
    def slowdowns(self) -> npt.NDArray[np.float64]:
        """How many times as long each block took as at the machine's good speed (`drift`), in their order, [blocks]."""
        if len(self._slowdowns) != len(self.measured):
            lines = self.measured
            latency_ms = [block_latency_ms(line) for line in lines]
            boards = [line.get("board", "") for line in lines]
            self._slowdowns = slowdowns([line["key"] for line in lines], boards, latency_ms)
        return self._slowdowns

    def slowdown_at(self, time_s: float) -> float:
        """The same of the block that was written next to this time, seconds since 1970; 1 where there is none."""
        times = np.array([line.get("time", np.inf) for line in self.measured])
        if not np.isfinite(times).any():
            return 1.0
        return float(self.slowdowns[int(np.argmin(np.abs(times - time_s)))])

    def first_rounds(self, tasks: Iterable[Task], rounds: int) -> Journal:
        """What these tasks' blocks of the first rounds say alone, whatever was measured besides; for reading."""
        found, keys = Journal(self.path), {task.key for task in tasks}
        found.identity, found.protocol, found.notes = self.identity, self.protocol, self.notes
        found.tasks = {key: task for key, task in self.tasks.items() if key in keys}
        found.failures = {key: reason for key, reason in self.failures.items() if key in keys}
        for line in self.measured:
            if line["key"] in keys and line["round"] < rounds:
                found._take(line)
        return found

    def close(self) -> None:
        """Ends writing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def samples(self) -> int:
        """Samples in all blocks."""
        return sum(int(block["count"]) for blocks in self.blocks.values() for block in blocks)

    def _take(self, line: dict[str, Any]) -> None:
        status = line["status"]
        if status == "header":
            self.identity, self.protocol = line["identity"], line["protocol"]
            return
        if status == "note":
            self.notes.append(line)
            return
        if status == "common":
            self.common.append(line)
            return
        key = line["key"]
        if "task" in line:
            task = line["task"]
            self.tasks[key] = Task(Network.from_json(task["network"]), task["role"], task["cold"])
        if status == "ok":
            self.blocks.setdefault(key, []).append(line)
            self._rows.setdefault(key, []).append(len(self.measured))
            self.measured.append(line)
        else:
            self.failures[key] = line["reason"]


def block_line(key: str, round_: int, found: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The line of a block: what a worker answered, less what the journal alone says.

    Args:
        key, round_: of the block.
        found: the checked answer.
        more: what else is known of it.
    """
    said = {name: value for name, value in found.items() if name not in _OWN}
    return {"key": key, "round": round_, **said, **more}


def failed(reason: str) -> dict[str, Any]:
    """What a block that could not be measured has in an answer's place."""
    return {"status": "failed", "reason": reason}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileFormatError(f"Cannot read a journal from {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not a journal: it is no UTF-8 text.") from error


def _drop_partial_line(path: Path) -> None:
    """Cuts off what follows the last newline: a line that a killed run did not finish."""
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
