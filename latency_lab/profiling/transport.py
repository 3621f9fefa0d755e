"""A worker process on this machine, asked one block at a time."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latency_lab.errors import MissingRuntimeError, UsageError
from latency_lab.runtimes import worker

BLOCK_TIMEOUT_S = 300.0
EXTRAS = {"onnxruntime": "onnx", "tensorflow": "keras", "tensorflow-xla": "keras"}
"""Where the extra is not named like the runtime."""


def worker_command(python: str | Path) -> tuple[str, str]:
    """What starts a worker under a Python of another environment: one that has the runtime and numpy, 3.9 or newer.

    Raises:
        UsageError: there is no such program.
    """
    found = shutil.which(str(python))
    if found is None:
        raise UsageError(
            f"There is no Python {str(python)!r}. Expected the path of one that has the runtime and numpy."
        )
    return found, worker.__file__


class WorkerDiedError(Exception):
    """The worker ended or hung instead of answering. Costs one operation; the runner starts another worker."""


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
        command = command or worker_command(sys.executable)
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 closed in close()
        self._process = subprocess.Popen(
            [*command, "--runtime", runtime, "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.hello = self._answer()
        except WorkerDiedError as error:
            self.close()
            extra = EXTRAS.get(runtime.partition(":")[0], runtime)
            if "ModuleNotFoundError" in str(error):
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
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"id": 0, "path": path, "settings": dict(settings)}) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it is dead: the answer says how
        return self._answer()

    def close(self) -> None:
        """Ends the worker."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._answers.put(line)
        except ValueError:
            pass  # closed
        self._answers.put("")

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=BLOCK_TIMEOUT_S)
        except queue.Empty:
            self.close()
            raise WorkerDiedError(f"no answer in {BLOCK_TIMEOUT_S:.0f} s") from None
        if not line:
            raise WorkerDiedError(self._how_it_died())
        return dict(json.loads(line))

    def _how_it_died(self) -> str:
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._errors.seek(0)
        tail = " | ".join(line for line in self._errors.read()[-600:].splitlines()[-3:] if line.strip())
        return f"the worker died: {how}" + (f": {tail}" if tail else "")
