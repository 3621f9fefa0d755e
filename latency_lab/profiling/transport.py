"""Workers, asked one block at a time, and the one on this machine."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from latency_lab.errors import MissingRuntimeError, UsageError
from latency_lab.profiling.answers import block_of, hello_of, plain
from latency_lab.profiling.environment import conditions, identity
from latency_lab.runtimes import vela_worker, worker

BLOCK_TIMEOUT_S = 300.0
LINE_LIMIT = 1 << 20
UNREAD_LIMIT = 1000
"""Bytes of a line and lines that wait to be read: a process that says more is taken for ended."""
TAIL_BYTES = 4096
EXTRAS = {"onnxruntime": "onnx", "tensorflow": "keras", "tensorflow-xla": "keras"}
"""Where the extra is not named like the runtime."""
ESTIMATED = "estimated"
"""What a worker names as the provenance of times that were not measured: the same each time."""
_NOTE = re.compile(r"WARNING: All log messages before absl|[IW][0-9]{4} [0-9:.]+ ")
"""How lines begin that TensorFlow logs below an error, whatever it was asked."""


class Worker(Protocol):
    """What measures models, near or far.

    One that is not on this machine has `environment()` as well: identity and conditions where it is, as of
    `environment.identity` and `environment.conditions`.
    """

    hello: dict[str, Any]

    def block(self, path: str, settings: dict[str, Any]) -> dict[str, Any]:
        """One block of samples of the model in a file of this machine."""
        ...

    def close(self) -> None:
        """Ends the worker."""
        ...


def environment_of(worker: Worker) -> tuple[dict[str, Any], dict[str, Any]]:
    """Identity and conditions where a worker is: those of this machine where it does not say.

    Of an estimate neither matters: it is the same on every machine.
    """
    if worker.hello.get("provenance") == ESTIMATED:
        return {"provenance": ESTIMATED}, {}
    found = getattr(worker, "environment", None)
    return found() if found else (identity(), conditions())


def comparable(hello: Mapping[str, Any], who: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for two measurements to be of one environment: identity, and what the worker runs.

    Args:
        hello: the worker's first line.
        who: identity where it is.
    """
    found = {**who, **{name: hello.get(name) for name in ("package", "version", "worker")}}
    return found | {name: hello[name] for name in ("device", "layout_block") if name in hello}


def worker_command(python: str | Path, runtime: str = "") -> tuple[str, str]:
    """What starts a worker under a Python of another environment: one that has the runtime and numpy, 3.9 or newer.

    Args:
        python: path or name of the program.
        runtime: that it will be asked for; one file times all but vela.

    Raises:
        UsageError: there is no such program.
    """
    found = shutil.which(str(python))
    if found is None:
        raise UsageError(
            f"There is no Python {str(python)!r}. Expected the path of one that has the runtime and numpy."
        )
    return found, vela_worker.__file__ if _kind(runtime) == "vela" else worker.__file__


def _kind(runtime: str) -> str:
    """The runtime without its device: "vela" of "vela:ethos-u55-128"."""
    return runtime.partition(":")[0]


class WorkerDiedError(Exception):
    """The worker ended or hung instead of answering. Costs one operation; the runner starts another worker."""


class Pipe:
    """A process that is told bytes and answers lines: what it says is bounded, and its last words are kept.

    Args:
        command: the words of its command line.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._fault = ""
        self._tail = b""
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_tail, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def say(self, data: bytes) -> None:
        """Send bytes, by a thread: a process that stands still takes none, and its answer is waited for."""
        threading.Thread(target=self._write, args=(data,), daemon=True).start()

    def end(self) -> None:
        """Send nothing more, by a thread: closing waits for what is being sent, and a process that stands still takes
        none."""
        threading.Thread(target=self._close, daemon=True).start()

    def _close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def line(self, timeout_s: float) -> str | None:
        """The next line that it says; None when it has ended.

        Raises:
            TimeoutError: it says none.
        """
        try:
            found = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no answer in {timeout_s:.0f} s") from None
        if found is None:
            self._lines.put(None)
        return found

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def code(self) -> int:
        """Its exit code, negative for a signal. Kills it where it still runs but said too much."""
        if self._fault:
            self._process.kill()
        return self._process.wait()

    def last_words(self) -> str:
        """What was wrong with what it said, or the last lines of stderr, a framework's notes apart; "" for nothing."""
        if self._fault:
            return self._fault
        self._readers[1].join(timeout=2)
        lines = [line.strip() for line in self._tail.decode(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if not _NOTE.match(line)] or lines
        return " | ".join(plain(line) for line in telling[-3:])[-600:]

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=2)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended: the answer says how
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            while line := self._process.stdout.readline(LINE_LIMIT):
                if len(line) == LINE_LIMIT or self._lines.qsize() > UNREAD_LIMIT:
                    self._fault = f"it said more than {LINE_LIMIT} bytes a line or {UNREAD_LIMIT} lines at once"
                    break
                self._lines.put(line.decode(errors="replace"))
        self._lines.put(None)

    def _read_tail(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            while chunk := self._process.stderr.read1(TAIL_BYTES):  # type: ignore[attr-defined]  # it is buffered
                self._tail = (self._tail + chunk)[-TAIL_BYTES:]


class LocalWorker:
    """The worker as a subprocess: a runtime that crashes takes the subprocess with it and nothing else.

    Args:
        runtime: name that the worker knows.
        threads: of the runtime.
        command: what starts a worker, without its options; by default this Python and the worker's file.

    Attributes:
        hello: the worker's first line: runtime, package and version, threads, clock resolution.
    """

    def __init__(self, runtime: str, threads: int, command: Sequence[str] | None = None) -> None:
        command = command or worker_command(sys.executable, runtime)
        self._pipe = Pipe([*command, "--runtime", runtime, "--threads", str(threads)])
        try:
            self.hello = hello_of(self._answer())
        except ValueError as error:
            self.close()
            raise UsageError(f"The worker of {runtime!r} does not start: {error}") from error
        except WorkerDiedError as error:
            self.close()
            if missing_module(str(error)):
                extra = EXTRAS.get(_kind(runtime), _kind(runtime))
                where = f" for {command[0]}" if command[0] != sys.executable else ""
                raise MissingRuntimeError(
                    f"The runtime {runtime!r} is not installed{where}. Run: pip install 'latency-lab[{extra}]'"
                ) from error
            raise UsageError(f"The worker of {runtime!r} does not start: {error}") from error

    def block(self, path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """One block of samples of the model in a file.

        Raises:
            WorkerDiedError: with the reason.
        """
        self._pipe.say(json.dumps({"id": 0, "path": path, "settings": dict(settings)}).encode() + b"\n")
        line = self._answer()
        try:
            return block_of(line)
        except ValueError as error:
            self.close()
            raise WorkerDiedError(f"the worker's answer is no block: {error}") from error

    def close(self) -> None:
        """Ends the worker."""
        self._pipe.close()

    def _answer(self) -> str:
        try:
            line = self._pipe.line(BLOCK_TIMEOUT_S)
        except TimeoutError as error:
            self.close()
            raise WorkerDiedError(str(error)) from None
        if line is None:
            raise WorkerDiedError(how_it_died(self._pipe.code(), self._pipe.last_words()))
        return line


def how_it_died(code: int, last_words: str) -> str:
    """A reason: the signal where the exit code is that of one (negative), and what was said last."""
    known = {number.value: number.name for number in signal.Signals}
    how = f"signal {known[-code]}" if -code in known else f"exit code {code}"
    return f"the worker died: {how}" + (f": {last_words}" if last_words else "")


def missing_module(reason: str) -> str:
    """The module that a worker did not find, by why it ended; "" where that was not the reason.

    Example:
        >>> missing_module("the worker died: exit code 1: ModuleNotFoundError: No module named 'numpy'")
        'numpy'
    """
    found = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", reason)
    return found.group(1) if found else ""
