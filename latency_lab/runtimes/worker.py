"""Times models on a device. One file: the standard library, numpy and the runtime; Python 3.9 syntax.

Reads one JSON object a line from stdin and answers each with one on stdout. The first line out says who answers:

    {"worker": 1, "runtime": "litert", "version": "2.3.0", "threads": 1, ...}

A request is a block: {"id": 7, "model": base64} or {"id": 7, "path": file}, with the settings of `Settings`. The answer
is {"id": 7, "status": "ok", "count": 41, "repeats": 1, "wall_ms": {...}, "cpu_ms": {...} or null, "cold_ms": ...}, or
{"id": 7, "status": "failed", "reason": text}. Summaries are {"min", "deciles": [nine], "median"} in ms a run.
"""

from __future__ import annotations

import argparse
import base64
import functools
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Callable, TextIO

import numpy as np

VERSION = 1
MAX_SAMPLES = 2000


@dataclass(frozen=True)
class Settings:
    """How one block is timed.

    Attributes:
        kernels: sum the runtime's own kernel times of the operation alone, instead of the time of the whole call.
        cold: runs with a flushed cache, after the others.
        block_ms: repeats go on to about this long, ...
        min_repeats: ... and are at least this many.
        warm_up: runs before them that are not counted.
        resolution_factor: a sample is at least this many times the timer's resolution; short runs are batched.
        flush_bytes: what is read and written between cold runs.
    """

    kernels: bool = False
    cold: int = 0
    block_ms: float = 5.0
    min_repeats: int = 3
    warm_up: int = 2
    resolution_factor: int = 20
    flush_bytes: int = 48 << 20


class Clock:
    """Wall and thread-CPU time in seconds. A test puts its own in its place."""

    wall: Callable[[], float] = staticmethod(time.perf_counter)
    cpu: Callable[[], float] = staticmethod(time.thread_time)

    def resolution(self) -> float:
        """Seconds between two different readings of the wall clock, at best."""
        best = 1.0
        for _ in range(20):
            start = end = self.wall()
            while end == start:
                end = self.wall()
            best = min(best, end - start)
        return best


class LiteRtModel:
    """A TFLite model under ai-edge-litert, or tflite-runtime where that is not installed."""

    def __init__(self, path: str, threads: int, kernels: bool) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            from tflite_runtime.interpreter import Interpreter
        self._interpreter = Interpreter(model_path=path, num_threads=threads)
        self._interpreter.allocate_tensors()
        generator = np.random.default_rng(0)
        for detail in self._interpreter.get_input_details():
            self._interpreter.set_tensor(detail["index"], _random(generator, detail["shape"], detail["dtype"]))
        self.run = self._interpreter.invoke

    def kernel_times_ms(self) -> list[float] | None:
        """Not offered: LiteRT runs a lone operation without anything around it."""
        return None

    def close(self) -> None:
        """Frees the model."""
        del self.run, self._interpreter

    @staticmethod
    def version() -> dict[str, str]:
        """Package and version."""
        try:
            import ai_edge_litert

            return {"package": "ai-edge-litert", "version": str(ai_edge_litert.__version__)}
        except ImportError:
            import tflite_runtime

            return {"package": "tflite-runtime", "version": str(tflite_runtime.__version__)}


class OnnxRuntimeModel:
    """An ONNX model under ONNX Runtime's CPU provider.

    A convolution that stands alone has layout reorders around it that a network does not run, and a test of a fused
    operation needs other operations before it. With `kernels`, the time of a run is the sum over its kernels in ONNX
    Runtime's own profile that are neither a reorder nor named "context".
    """

    _EVENT = re.compile(r'"dur" :(\d+),.*?"name" :"([^"]*)_kernel_time".*?"op_name" : ?"(\w+)"')

    def __init__(self, path: str, threads: int, kernels: bool) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
        if kernels:
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(tempfile.gettempdir(), f"latency-lab-{os.getpid()}")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._kernels = kernels
        binding = self._session.io_binding()
        generator = np.random.default_rng(0)
        self._inputs = []
        for node in self._session.get_inputs():
            self._inputs.append(onnxruntime.OrtValue.ortvalue_from_numpy(_random(generator, node.shape, np.float32)))
            binding.bind_ortvalue_input(node.name, self._inputs[-1])
        for node in self._session.get_outputs():
            binding.bind_output(node.name)
        session = self._session
        self.run = lambda: session.run_with_iobinding(binding)

    def kernel_times_ms(self) -> list[float] | None:
        """Ends profiling: the kernels' time of each run so far, ms."""
        path = self._session.end_profiling()
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        finally:
            os.unlink(path)
        return self.parse(text)

    @classmethod
    def parse(cls, text: str) -> list[float]:
        """Sum of the kernels' times, ms, of each run in a profile's text."""
        runs: list[float] = []
        total = 0.0
        for line in text.splitlines():
            if "_kernel_time" in line:
                found = cls._EVENT.search(line)
                if found and "Reorder" not in found.group(3) and "context" not in found.group(2):
                    total += float(found.group(1)) * 1e-3
            elif '"name" :"model_run"' in line or '"SequentialExecutor::Execute"' in line:
                if '"model_run"' in line:
                    runs.append(total)
                    total = 0.0
        return runs

    def close(self) -> None:
        """Frees the model."""
        del self.run, self._session, self._inputs

    @staticmethod
    def version() -> dict[str, str]:
        """Package and version."""
        import onnxruntime

        return {"package": "onnxruntime", "version": str(onnxruntime.__version__)}


LOADERS: dict[str, Any] = {"litert": LiteRtModel, "onnxruntime": OnnxRuntimeModel}


def time_block(model: Any, settings: Settings, clock: Any, resolution: float, cpu_time: bool) -> dict[str, Any]:
    """Samples of one model: warm-up, then repeats, then cold runs.

    Args:
        model: has `run()` and `kernel_times_ms()`.
        settings: of the block.
        clock: has `wall()` and `cpu()`, seconds.
        resolution: of the wall clock, seconds.
        cpu_time: whether the thread that calls does all of the work, so that its CPU time counts.

    Returns:
        The answer's fields, less id and status.
    """
    for _ in range(max(settings.warm_up - 1, 0)):
        model.run()
    start = clock.wall()
    model.run()
    once = max(clock.wall() - start, 1e-9)
    batch = max(1, int(np.ceil(settings.resolution_factor * resolution / once)))
    count = int(np.clip(np.ceil(settings.block_ms * 1e-3 / (once * batch)), settings.min_repeats, MAX_SAMPLES))
    wall, cpu = [], []
    for _ in range(count):
        cpu_start, start = clock.cpu(), clock.wall()
        for _ in range(batch):
            model.run()
        wall.append((clock.wall() - start) * 1e3 / batch)
        cpu.append((clock.cpu() - cpu_start) * 1e3 / batch)
    cold = _cold_samples(model, settings, clock)
    if settings.kernels:
        per_run = model.kernel_times_ms()
        hot_runs = per_run[max(settings.warm_up, 1) : len(per_run) - len(cold)]
        cold = per_run[len(per_run) - len(cold) :]
        wall, cpu_time = _batched(hot_runs, settings), False
    return {
        "count": len(wall),
        "repeats": batch,
        "wall_ms": summary(wall),
        "cpu_ms": summary(cpu) if cpu_time else None,
        "cold_ms": summary(cold) if cold else None,
    }


def summary(samples: list[float]) -> dict[str, Any]:
    """Minimum, nine deciles and median of samples."""
    deciles = np.percentile(samples, range(10, 100, 10))
    return {"min": min(samples), "deciles": [round(float(d), 9) for d in deciles], "median": float(np.median(samples))}


def _cold_samples(model: Any, settings: Settings, clock: Any) -> list[float]:
    samples = []
    if settings.cold:
        flush = _flush_buffer(settings.flush_bytes // 8)
        for _ in range(settings.cold):
            np.add(flush, 1.0, out=flush)
            start = clock.wall()
            model.run()
            samples.append((clock.wall() - start) * 1e3)
    return samples


@functools.lru_cache(maxsize=1)
def _flush_buffer(count: int) -> Any:
    """Kept from block to block: making it takes longer than flushing with it."""
    return np.ones(count)


def _batched(runs: list[float], settings: Settings) -> list[float]:
    """Means over consecutive runs, each long enough for a clock that counts whole microseconds."""
    typical = max(float(np.median(runs)), 1e-4)
    size = max(
        1, min(int(np.ceil(settings.resolution_factor * 1e-3 / typical)), len(runs) // max(settings.min_repeats, 1))
    )
    return [float(np.mean(runs[i : i + size])) for i in range(0, len(runs) - size + 1, size)]


def _random(generator: Any, shape: Any, dtype: Any) -> Any:
    sizes = [int(size) if isinstance(size, (int, np.integer)) and size > 0 else 1 for size in shape]
    return generator.uniform(-1.0, 1.0, sizes).astype(dtype)


def answer(request: dict[str, Any], loader: Any, threads: int, clock: Any, resolution: float) -> dict[str, Any]:
    """The answer to one request; a model that cannot be loaded or run is a failed block, not an end of the worker."""
    path = request.get("path")
    own = None
    try:
        if path is None:
            handle, own = tempfile.mkstemp(prefix="latency-lab-")
            with os.fdopen(handle, "wb") as file:
                file.write(base64.b64decode(request["model"]))
            path = own
        settings = Settings(**request.get("settings", {}))
        model = loader(path, threads, settings.kernels)
        try:
            found = time_block(model, settings, clock, resolution, threads == 1)
        finally:
            model.close()
        return dict(found, id=request["id"], status="ok")
    except Exception as error:  # whatever a runtime raises is this block's failure alone
        return {"id": request.get("id"), "status": "failed", "reason": f"{type(error).__name__}: {error}"}
    finally:
        if own is not None:
            os.unlink(own)


def serve(source: TextIO, sink: TextIO, loader: Any, runtime: str, threads: int, clock: Any) -> None:
    """Answers requests until `source` ends."""
    resolution = clock.resolution()
    hello = dict(loader.version(), worker=VERSION, runtime=runtime, threads=threads, resolution_s=resolution)
    for line in [json.dumps(hello)]:
        sink.write(line + "\n")
        sink.flush()
    for line in source:
        if line.strip():
            sink.write(json.dumps(answer(json.loads(line), loader, threads, clock, resolution)) + "\n")
            sink.flush()


def main(loaders: dict[str, Any] | None = None) -> None:
    """Serves the runtime that the command line names, with stdout kept for answers alone."""
    parser = argparse.ArgumentParser(description="Times models for latency-lab: JSON lines in, JSON lines out.")
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    own = os.path.dirname(os.path.abspath(__file__))  # holds modules that are named like the runtimes
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != own]
    loader = (loaders or LOADERS)[arguments.runtime]
    sink = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a runtime prints goes to stderr
    serve(sys.stdin, sink, loader, arguments.runtime, arguments.threads, Clock())


if __name__ == "__main__":
    main()
