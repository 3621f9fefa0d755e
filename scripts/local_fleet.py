"""A fleet on this machine: a dask scheduler and workers on the loopback address, whose runtime sleeps in place of work.

The stand-in for a runtime is a program that takes a Python's place (`Fleet.python`): it says what `runtimes/worker.py`
says, and a run of any model is a sleep.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from distributed import Client

ROOT = Path(__file__).parents[1]
RESOURCE = "board"
START_S = 120
SLEEPING = """
import os, sys, time
sys.path.insert(0, {root!r})
from latency_lab.runtimes import worker
class Sleeping:
    one_thread = False  # no CPU time
    def __init__(self, path, threads, kernels):
        self.seconds = float(os.environ.get("SLEEP_MS", 5)) / 1e3
    def run(self):
        time.sleep(self.seconds)
    def close(self):
        pass
    @staticmethod
    def version():
        return {{"package": "sleeping", "version": os.environ.get("SLEEP_VERSION", "1")}}
worker.main({{"litert": Sleeping}})
"""


class LocalFleet:
    """A context in which the processes run.

    Args:
        folder: for the stand-in and for logs.
        boards: names, or names with environment variables: SLEEP_MS, SLEEP_VERSION, LATENCY_LAB_BOARD.

    Attributes:
        address: fleet://127.0.0.1:port.
        python: of the boards.
        workers: name -> process.
    """

    def __init__(self, folder: Path, boards: Sequence[str] | Mapping[str, Mapping[str, str]]) -> None:
        self.folder = folder
        self._boards = boards if isinstance(boards, Mapping) else {name: {} for name in boards}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._at = f"127.0.0.1:{probe.getsockname()[1]}"
        self.address = f"fleet://{self._at}"
        self.python = str(folder / "python")
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.scheduler: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalFleet:
        code = self.folder / "sleeping.py"
        code.write_text(SLEEPING.format(root=str(ROOT)))
        program = Path(self.python)
        program.write_text(f'#!/bin/sh\nshift\nexec {shlex.join([sys.executable, str(code)])} "$@"\n')
        program.chmod(0o755)
        host, port = self._at.split(":")
        self.scheduler = self._run("scheduler", ["scheduler", "--host", host, "--port", port, "--no-dashboard"])
        for name, environ in self._boards.items():
            self.add(name, environ)
        try:
            self.wait(len(self.workers))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers.values(), self.scheduler):
            if process is not None:
                process.kill()
                process.wait()

    def add(self, name: str, environ: Mapping[str, str] | None = None) -> None:
        """Starts one more board."""
        words = ["worker", f"tcp://{self._at}", "--nworkers", "1", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        words += ["--host", "127.0.0.1", "--local-directory", str(self.folder), "--name", name]
        self.workers[name] = self._run(name, [*words, "--resources", f"{RESOURCE}=1"], environ)

    def wait(self, count: int) -> None:
        """Waits until so many boards are there."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                with Client(self._at, timeout=5, set_as_default=False) as client:
                    client.wait_for_workers(count, timeout=max(deadline - time.monotonic(), 0.1))
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise

    def log(self, name: str) -> str:
        """What a process wrote."""
        return (self.folder / f"{name}.log").read_text()

    def _run(
        self, name: str, words: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": paths, **(environ or {})},
            )  # fmt: skip
