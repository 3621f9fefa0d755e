"""A device that is elsewhere: a shell there that a program of the user's reaches (ssh, adb), and the worker in it.

One shell script is run there for all that is done. It makes a fresh folder, says "latency-lab began FOLDER PID", takes
files from its stdin, runs one command on the rest of its stdin, removes the folder, and says "latency-lab ended CODE".
So a connection that was lost (no "ended") is told from a command that failed; and when the connection goes, the
command's stdin ends, it ends too, and the folder is removed. A device that did not notice is told by the next
connection.

The script is fixed text and paths that the user gave, quoted. What the device says is data: see `answers`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from latency_lab import runtimes
from latency_lab.errors import DeviceLostError, EnvironmentMismatchError, MissingRuntimeError, UsageError
from latency_lab.profiling import environment
from latency_lab.profiling.answers import block_of, hello_of, plain, values_of
from latency_lab.profiling.environment import differences
from latency_lab.profiling.transport import BLOCK_TIMEOUT_S, Pipe, Worker, WorkerDiedError, how_it_died, missing_module
from latency_lab.runtimes import worker

BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Pauses before a connection that was lost is tried again."""
BEGIN_TIMEOUT_S = 60.0
END_TIMEOUT_S = 10.0
NOISE_LINES = 200
"""Lines of a login shell's own that are passed over."""
MOST_LINES = 10_000
"""That one command says."""
MODEL_LIMIT = 1 << 30
"""Bytes of a model that is sent."""
PACKAGES = {
    "litert": "numpy ai-edge-litert  (where that has no wheel: 'numpy<2' tflite-runtime)",
    "onnxruntime": "numpy onnxruntime",
    "tensorflow": "tensorflow",
    "tensorflow-xla": "tensorflow",
}
"""What to install on the device."""
_BEGAN = re.compile(r"latency-lab began (/[A-Za-z0-9._/-]{0,300}/latency-lab-[A-Za-z0-9]{6,20}) ([0-9]{1,10})\s*")
_ENDED = re.compile(r"latency-lab ended ([0-9]{1,3})\s*")
_log = logging.getLogger(__name__)
T = TypeVar("T")


class LinkLostError(Exception):
    """The connection ended before the script on the device did."""


@dataclass
class Remote:
    """A device behind a program that runs a shell script there.

    Attributes:
        name: as the user gave it.
        prefix: words of the command that runs a script there; the script is added as the last one.
        python: of the device; "~/" is its home there.
        base: folder for fresh folders where the device's TMPDIR is not set.
        advice: what to try when it cannot be reached.
        runtimes: names of those that may be there.
    """

    name: str
    prefix: tuple[str, ...]
    python: str = "python3"
    base: str = "/tmp"
    advice: str = ""
    runtimes: tuple[str, ...] = runtimes.NAMES
    _reached: bool = field(default=False, init=False)

    def start(self, runtime: str, threads: int) -> Worker:
        """Starts a worker there.

        Raises:
            MissingRuntimeError: the runtime, numpy or Python is not there.
            DeviceLostError: the device cannot be reached.
            UsageError: the runtime runs on no device.
        """
        if runtime.partition(":")[0] == "vela":
            raise UsageError(f"vela estimates, on this machine: leave out on={self.name!r}.")
        return RemoteWorker(self, runtime, threads)

    def probe(self, samples: int = 0) -> dict[str, Any]:
        """What `environment.py` prints there: identity, conditions, wall_s and cpu_s of so many samples."""
        source = Path(environment.__file__).read_bytes()
        command = f'{quoted(self.python)} "$d/environment.py" --samples {samples}'
        try:
            lines = self.run(command, {"environment.py": source})
            return checked_probe(values_of(lines[-1] if lines else ""))
        except (ValueError, WorkerDiedError) as error:
            raise UsageError(f"{self.name} does not say what it is: {error}. {self._python_hint()}") from error

    def run(self, command: str, files: Mapping[str, bytes] | None = None) -> list[str]:
        """Runs a command there to its end: the lines that it says.

        Raises:
            WorkerDiedError: its exit code is not 0.
        """

        def once() -> list[str]:
            lines: list[str] = []
            session = Session(self, files or {}, command)
            try:
                while (line := session.line(BLOCK_TIMEOUT_S)) is not None:
                    lines.append(line)
                    if len(lines) > MOST_LINES:
                        raise WorkerDiedError(f"it says more than {MOST_LINES} lines")
                if session.ended:
                    said = plain(" | ".join(line.strip() for line in lines[-2:]), 300)
                    raise WorkerDiedError(session.reason() + (f": {said}" if said else ""))
                return lines
            finally:
                session.close()

        return self.reach(once)

    def reach(self, action: Callable[[], T]) -> T:
        """Does what needs the device; tried again after a while where the device was reached before.

        Raises:
            DeviceLostError: it cannot be reached.
        """
        last: LinkLostError | None = None
        for delay in (0.0, *(BACKOFF_S if self._reached else ())):
            if delay:
                _log.warning("%s: %s; trying again in %g s", self.name, last, delay)
            time.sleep(delay)
            try:
                found = action()
                self._reached = True
                return found
            except LinkLostError as error:
                last = error
        again = " any more" if self._reached else ""
        raise DeviceLostError(f"{self.name} cannot be reached{again}: {last}. {self.advice}") from last

    def not_started(self, runtime: str, reason: str) -> Exception:
        """Why a worker did not start there, with what to do."""
        module = missing_module(reason)
        if module:
            return MissingRuntimeError(
                f"{runtime} on {self.name}: {self.python} has no module {module!r}. Run there: "
                f"{self.python} -m pip install {PACKAGES.get(runtime.partition(':')[0], runtime)}"
            )
        return UsageError(f"The worker of {runtime!r} does not start on {self.name}: {reason}. {self._python_hint()}")

    def argv(self, script: str) -> list[str]:
        """The command that runs a script there."""
        return [*self.prefix, "exec sh -c " + shlex.quote(script)]

    def _python_hint(self) -> str:
        return f"It needs Python 3.9 or newer, here {self.python!r}: name another with --python."


class Session:
    """One run of the script on a device.

    Args:
        device: where.
        files: name -> bytes, put into the fresh folder; names are fixed text.
        command: run there, in a shell in which `$d` is the folder.

    Attributes:
        pipe: to it.
        folder: the fresh one there.
        ended: the command's exit code, once it has ended.

    Raises:
        LinkLostError: it does not begin.
    """

    def __init__(self, device: Remote, files: Mapping[str, bytes], command: str) -> None:
        self._device = device
        self.pipe = Pipe(device.argv(script(device.base, {n: len(data) for n, data in files.items()}, command)))
        self.folder, self._pid, self._closed = "", "", False
        self.ended: int | None = None
        try:
            self._await_begin()
        except BaseException:
            self.pipe.close()
            raise
        self.pipe.say(b"".join(files.values()))

    def line(self, timeout_s: float = BEGIN_TIMEOUT_S) -> str | None:
        """The next line that the command says; None when it has ended.

        Raises:
            LinkLostError: the connection was lost.
            WorkerDiedError: nothing was said; the session is closed.
        """
        found: str | None = "\n"
        while found is not None and not found.strip():
            try:
                found = self.pipe.line(timeout_s)
            except TimeoutError as error:
                self.close()
                raise WorkerDiedError(str(error)) from None
        if found is None:
            raise LinkLostError(self.pipe.last_words() or f"{self._device.prefix[0]} ended without a reason")
        end = _ENDED.fullmatch(found)
        if end:
            self.ended = int(end.group(1))
            return None
        return found

    def reason(self) -> str:
        """How the command ended."""
        code = self.ended or 0
        return how_it_died(128 - code if code > 128 else code, self.pipe.last_words())

    def close(self) -> None:
        """Ends the command and has the folder removed."""
        if self._closed:
            return
        self._closed = True
        self.pipe.end()
        deadline = time.monotonic() + END_TIMEOUT_S
        gone = self.ended is not None
        with contextlib.suppress(TimeoutError):
            while not gone:
                found = self.pipe.line(max(deadline - time.monotonic(), 0.0))
                gone = found is None or bool(_ENDED.fullmatch(found))
        self.pipe.close()
        if not gone:
            self._end_by_signal()

    def end_what_is_left(self) -> None:
        """By another connection: a device that did not notice that this one was lost still runs the command."""
        is_ours = f"(cat /proc/{self._pid}/cmdline || ps -p {self._pid} -o args=) 2>/dev/null | grep -q latency-lab"
        end = f"{is_ours} && kill -HUP {self._pid}; rm -rf {self.folder}"
        if not self._tell(f"test ! -d {self.folder} || {{ {end}; }}"):
            self._warn()

    def _await_begin(self) -> None:
        noise = ""
        for _ in range(NOISE_LINES):
            try:
                found = self.pipe.line(BEGIN_TIMEOUT_S)
            except TimeoutError as error:
                raise LinkLostError(str(error)) from None
            if found is None:
                break
            began = _BEGAN.fullmatch(found)
            if began:
                self.folder, self._pid = began.group(1), began.group(2)
                return
            noise = plain(found.strip(), 200) or noise
        said = [words for words in (self.pipe.last_words(), noise) if words]
        raise LinkLostError(" | ".join(said) or "no shell that makes a folder answered")

    def _end_by_signal(self) -> None:
        """The command hangs: tell its shell, which ends it and removes the folder."""
        if not self._tell(f"kill -HUP {self._pid}"):
            self._warn()

    def _tell(self, script: str) -> bool:
        """Runs a script there by a connection of its own: whether it went well."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                self._device.argv(script), stdin=subprocess.DEVNULL, capture_output=True, timeout=BEGIN_TIMEOUT_S
            )
            return done.returncode == 0
        return False

    def _warn(self) -> None:
        _log.warning(
            "%s: the worker (under process %s) may still run, and %s be left", self._device.name, self._pid, self.folder
        )


def script(base: str, sizes: Mapping[str, int], command: str) -> str:
    """What is run on a device, in one line.

    Args:
        base: folder for fresh folders where TMPDIR is not set.
        sizes: name -> bytes of the files that come on stdin, in order.
        command: run on what follows them.
    """
    steps = [
        "umask 077",
        f'd=$(mktemp -d "${{TMPDIR:-{base}}}/latency-lab-XXXXXXXX") || exit 1',
        "p=",
        """trap 'test -n "$p" && kill -9 "$p" 2>/dev/null; rm -rf "$d"' EXIT""",
        "trap 'exit 129' HUP INT TERM",
        'echo "latency-lab began $d $$"',
        *(f'dd bs=1 count={size} of="$d/{name}" 2>/dev/null' for name, size in sizes.items()),
        "exec 3<&0",  # a command in the background is given stdin by number alone
        'export d TMPDIR="$d"',
        f"{command} <&3 3<&- & p=$!",
        "exec 3<&- </dev/null",
        'wait "$p"',
        "c=$?",
        "p=",
        'rm -rf "$d"',
        r"""printf '\nlatency-lab ended %s\n' "$c" """.strip(),
    ]
    return "; ".join(steps)


class RemoteWorker:
    """The worker on a device elsewhere. A connection that was lost is made again, and the block measured anew.

    Attributes:
        hello: the worker's first line.

    Raises:
        MissingRuntimeError: the runtime, numpy or Python is not there.
        DeviceLostError: the device cannot be reached.
    """

    def __init__(self, device: Remote, runtime: str, threads: int) -> None:
        self.device, self.runtime, self.threads = device, runtime, threads
        self.session: Session | None = None
        self.hello = device.reach(self._begin)
        self._identity: dict[str, Any] = {}

    def block(self, path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """One block of samples of the model in a file of this machine.

        Raises:
            WorkerDiedError: the worker died, hung, or the connection was lost twice.
            DeviceLostError: the device stays away.
            EnvironmentMismatchError: what answers after the connection was lost is another environment.
        """
        for _ in range(2):
            try:
                return self.measure(path, settings)
            except LinkLostError as error:
                _log.warning("%s: the connection was lost: %s", self.device.name, error)
                self._resume()
            except ValueError as error:
                self.close()
                raise WorkerDiedError(f"the worker's answer is no block: {error}") from error
        raise WorkerDiedError("the connection was lost twice while this was measured")

    def environment(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Identity and conditions of the device."""
        found = self.device.probe()
        self._identity = self._identity or found["identity"]
        return found["identity"], found["conditions"]

    def close(self) -> None:
        """Ends the worker and has its folder removed."""
        if self.session is not None:
            self.session.close()
            self.session = None

    # ---- what a worker of another kind does in its own way ------------------------------------------------------

    def open(self) -> tuple[Session, dict[str, Any]]:
        """A session with a worker in it, and its first line."""
        source = Path(worker.__file__).read_bytes()
        options = f"--runtime {shlex.quote(self.runtime)} --threads {int(self.threads)}"
        command = f'{quoted(self.device.python)} "$d/worker.py" {options}'
        session = Session(self.device, {"worker.py": source}, command)
        try:
            line = session.line(BLOCK_TIMEOUT_S)
            if line is None:
                raise WorkerDiedError(session.reason())
            return session, hello_of(line)
        except BaseException:
            session.close()
            raise

    def measure(self, path: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """One block, in this session."""
        if self.session is None:
            raise WorkerDiedError("the worker has ended")
        model = read_model(path)
        request = {"id": 0, "model": base64.b64encode(model).decode(), "settings": dict(settings)}
        self.session.pipe.say(json.dumps(request).encode() + b"\n")
        line = self.session.line(BLOCK_TIMEOUT_S)
        if line is None:
            raise WorkerDiedError(self.session.reason())
        return block_of(line)

    # ---- connections --------------------------------------------------------------------------------------------

    def _begin(self) -> dict[str, Any]:
        try:
            self.session, hello = self.open()
        except (WorkerDiedError, ValueError) as error:
            raise self.device.not_started(self.runtime, str(error)) from error
        return hello

    def _resume(self) -> None:
        """Connect again: to the same environment as before."""
        lost = self.session
        self.close()
        hello = self.device.reach(self._begin)
        if lost is not None:
            lost.end_what_is_left()
        found = differences(*({k: v for k, v in h.items() if k != "resolution_s"} for h in (self.hello, hello)))
        if self._identity:
            found += differences(self._identity, self.device.probe()["identity"])
        if found:
            self.close()
            lines = "\n".join(f"  * {line}" for line in found)
            raise EnvironmentMismatchError(f"{self.device.name} is another environment than before:\n{lines}")


def read_model(path: str) -> bytes:
    """The bytes of a model's file.

    Raises:
        WorkerDiedError: there are too many to send.
    """
    data = Path(path).read_bytes()
    if len(data) > MODEL_LIMIT:
        raise WorkerDiedError(f"the model has {len(data)} bytes; at most {MODEL_LIMIT} are sent to a device")
    return data


def quoted(path: str) -> str:
    """A path for a shell; "~/" is left to it.

    Example:
        >>> quoted("~/my env/bin/python")
        '"$HOME"/\\'my env/bin/python\\''
    """
    return '"$HOME"/' + shlex.quote(path[2:]) if path.startswith("~/") else shlex.quote(path)


def checked_probe(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a device says of itself, with the values that are used of the types that they have here.

    Raises:
        ValueError: it is something else.
    """
    who, now = found.get("identity"), found.get("conditions")
    if not isinstance(who, Mapping) or not isinstance(now, Mapping):
        raise ValueError("it names neither identity nor conditions")
    numbers = {"cores": who.get("cores"), "quota_cores": who.get("quota_cores"), "load": now.get("load")}
    numbers["temperature_c"] = now.get("temperature_c")
    for name, value in numbers.items():
        if not (type(value) in (int, float) or (value is None and name != "cores")):
            raise ValueError(f"{name} is {plain(repr(value), 40)}, expected a number")
    samples = {name: _times(name, found.get(name, [])) for name in ("wall_s", "cpu_s")}
    if len(samples["wall_s"]) != len(samples["cpu_s"]):
        raise ValueError("wall_s and cpu_s are not of one length")
    return {"identity": _plain_values(who), "conditions": _plain_values(now), **samples}


def _plain_values(found: Mapping[str, Any]) -> dict[str, Any]:
    return {plain(str(k), 80): plain(v, 200) if isinstance(v, str) else v for k, v in found.items()}


def _times(name: str, values: Any) -> Sequence[float]:
    if not isinstance(values, list) or any(type(v) not in (int, float) or v < 0 for v in values):
        raise ValueError(f"{name} holds something else than seconds")
    return values
